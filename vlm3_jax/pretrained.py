"""From the name of a model to the folder that holds it."""

import pathlib

from vlm3_jax.checkpoint import locate, tiny
from vlm3_jax.errors import UserError
from vlm3_jax.storage import local_path


def resolve_model(name: str, workdir, seed: int = 0) -> pathlib.Path:
    """The model folder that `name` stands for; `hf.load` takes it, and config and tokenizer lie in it.

    `name`: an HF directory, a converted checkpoint, a training workdir (its export, or its newest step until it is
    finished), "tiny:SIZE" (made once, in the workdir) or a hub name. UserError if there is none.
    """
    if not name:
        raise UserError(
            "no model is given: set --config.model (or --model) to an HF directory, a hub name or tiny:demo"
        )
    if name.startswith("tiny:"):
        size = name.removeprefix("tiny:")
        folder = pathlib.Path(workdir) / f"tiny-{size}-{seed}"
        return folder if (folder / "config.json").exists() else tiny.make(folder, size, seed)
    folder = local_path(name, "model")
    if (folder / "export" / "config.json").is_file():
        return folder / "export"
    if locate.is_workdir(folder):
        return locate.locate(folder).files
    # A workdir has a config.json too, that of the run.
    return folder if (folder / "config.json").is_file() else locate.fetch(name)
