"""Loads models onto meshes of eight devices: `sharded_worker.py OUT FOLDER... [--process=I --processes=N --port=P]`.

Writes what it saw to OUT, a line of JSON for each mesh and folder.
"""

import argparse
import json
import pathlib

import jax
import numpy as np

from vlm3_jax.checkpoint import hf
from vlm3_jax.checkpoint.sources import open_source
from vlm3_jax.model import params as parameters
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps

MESHES = {"fsdp 8": (1, 8, 1), "fsdp 4 x tensor 2": (1, 4, 2), "replica 2 x fsdp 4": (2, 4, 1)}


def held(array: jax.Array) -> dict:
    """{place: number of values} of the different parts of an array that this process holds."""
    return {str(shard.index): shard.data.size for shard in array.addressable_shards}


def look(folder: pathlib.Path, shape: tuple[int, int, int]) -> dict:
    """Loads one folder onto one mesh, compares with the plain load, and counts bytes."""
    cfg, plain = hf.load(folder)
    mesh, tx = meshes.make_mesh(*shape), optimizers.optax.scale_by_adam()
    abstract = steps.abstract_state(cfg, tx, mesh).params
    source = open_source(folder)
    loaded = hf.place(source, abstract)
    plain, wanted = parameters.flatten(plain), parameters.flatten(abstract)
    assert plain.keys() == parameters.flatten(loaded).keys()
    for path, array in parameters.flatten(loaded).items():
        value, like = plain[path], wanted[path]
        assert array.sharding == like.sharding, path
        assert (array.dtype, array.shape) == (like.dtype, like.shape), path
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), value[shard.index], err_msg=str(path))
    state = steps.create_state(cfg, loaded, tx, mesh)
    assert all(a is b for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(loaded), strict=True))
    flat, whole, share, patches = parameters.flatten(loaded), 0, 0, 0
    for row in source.rows:
        parts, itemsize = held(flat[row.path]), source.dtype(row).itemsize
        whole += row.size * itemsize
        if row.layout == "patch":
            # Its parts do not lie apart in the file: it is read as a whole for each of them.
            patches += len(parts) * row.size * itemsize
        else:
            share += sum(parts.values()) * itemsize
    return {"asked": getattr(source, "asked", None), "share": share, "patches": patches, "whole": whole}


def main() -> None:
    """All meshes and folders."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    for name, default in (("process", 0), ("processes", 1), ("port", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    if args.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{args.port}", args.processes, args.process)
    lines = [
        {"mesh": name, "folder": folder.name, **look(folder, shape)}
        for name, shape in MESHES.items()
        for folder in args.folders
    ]
    args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
