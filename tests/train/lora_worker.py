"""Steps with adapters on eight devices: `lora_worker.py MODEL FOLDER` writes mesh.npz; test_lora.py starts it."""

import pathlib
import sys

import numpy as np
import partial_steps
from partial_steps import Partial, settings

from vlm3_jax.parallel import mesh as meshes


def main(model_dir: str, folder: pathlib.Path) -> None:
    """Losses on fsdp 4 x tensor 2, and how the adapters lie there; every row stands in the batch twice."""
    start = partial_steps.start(model_dir, folder / "data")
    start.batch.update({name: np.concatenate([value, value]) for name, value in start.batch.items()})
    partial = Partial(start, settings(rank=4), mesh=meshes.make_mesh(1, 4, 2), remat="full")
    found = {"losses": partial.run(4)}
    layers, moments = (tree["text"]["layers"] for tree in (partial.state.params, partial.adam().mu))
    for name in ("q_proj_lora_a", "q_proj_lora_b", "o_proj_lora_a", "o_proj_lora_b"):
        found[name] = str(tuple(layers[name].sharding.spec))
        assert moments[name].sharding.is_equivalent_to(layers[name].sharding, moments[name].ndim)
    np.savez(folder / "mesh.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
