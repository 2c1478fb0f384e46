"""A run's numbers on Weights & Biases, beside metrics.jsonl and TensorBoard (`train.wandb`)."""

import importlib.util
import math
import pathlib
import secrets

from vlm3_jax import files
from vlm3_jax.errors import UserError

# Holds the name that the run has there: the same command goes on with it.
ID_FILE = "wandb-run-id.txt"


def require() -> None:
    """UserError if the package is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("train.wandb needs wandb: pip install 'vlm3-jax[wandb]', or set train.wandb to \"\"")


class WeightsAndBiases:
    """The run `name` ("": the folder's) of a local workdir in the project `project` ("": none).

    Where it goes wandb's environment says (WANDB_MODE).

    UserError if wandb refuses (nobody is logged in, no network).
    """

    def __init__(self, project: str, workdir: pathlib.Path, config, name: str = ""):
        self._run = None
        if not project:
            return
        import wandb

        # The terminal is ours.
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        try:
            self._run = wandb.init(
                project=project,
                name=name or pathlib.Path(workdir).name,
                id=_run_id(pathlib.Path(workdir)),
                resume="allow",
                dir=str(workdir),
                config=config.to_dict(),
                settings=settings,
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(f'train.wandb: {reason}; mend that, set WANDB_MODE=offline or train.wandb to ""') from None

    def write(self, row: dict) -> None:
        """The finite numbers of a row under its step; rows of steps that a killed run had told already are dropped."""
        if self._run:
            numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
            self._run.log({key: value for key, value in numbers.items() if math.isfinite(value)}, step=row["step"])

    def close(self) -> None:
        """Hands over what is still on its way."""
        if self._run:
            self._run.finish()


def _run_id(workdir: pathlib.Path) -> str:
    path = workdir / ID_FILE
    if not path.exists():
        files.write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text().strip()
