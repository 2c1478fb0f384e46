"""Answers on eight devices, a line of JSON for each case: `mesh_answers_worker.py OUT MODEL MESH...`."""

import json
import pathlib
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np

import vlm3_jax
from vlm3_jax import pretrained
from vlm3_jax.camera import Camera
from vlm3_jax.infer.engine import Engine
from vlm3_jax.infer.tree import TreePlan
from vlm3_jax.model import params as parameters
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.processor.image import image_layout
from vlm3_jax.records import ImageRef, View

NEW = 12
# (name, replica x fsdp x tensor, dtype); image sets lie beside each other on the first two axes if four do.
CASES = [
    ("one", None, "float32"),
    ("fsdp 8", (1, 8, 1), "float32"),
    ("fsdp 2 x tensor 2", (2, 2, 2), "float32"),
    ("one", None, "bfloat16"),
    ("fsdp 4 x tensor 2", (1, 4, 2), "bfloat16"),
]
SIZES = [(32, 24), (48, 8), (24, 48)]
QUESTIONS = [
    ["How far is (12, 7)?", "And the wall behind?", "Which of them moved?"],
    ["What is two and two?", "Name a colour, please"],
    ["Is there a chair, 5?", "How far is (29, 14)?", "Hello, who are you? 7", "What?"],
]


def pictures() -> list[np.ndarray]:
    """Blocks of random colours."""
    rng = np.random.default_rng(3)
    made = (rng.integers(0, 255, (height // 4, width // 4, 3)) for width, height in SIZES)
    return [np.kron(blocks, np.ones((4, 4, 1))).astype(np.uint8) for blocks in made]


def look(folder: pathlib.Path, shape, dtype: str) -> dict:
    """Answers of one model on one mesh, the bytes on every device, and the most that numpy held while loading."""
    model = pretrained.open(folder)
    mesh = meshes.make_mesh(*shape) if shape else None
    _ = model.source
    tracemalloc.start()
    params = model.params(mesh, dtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = dict.fromkeys(map(str, jax.devices()), 0)
    for array in jax.tree.leaves(params):
        assert array.dtype == jnp.dtype(dtype)
        for shard in array.addressable_shards:
            held[str(shard.device)] += shard.data.nbytes
    engine = Engine(model.cfg, params, model.chat, model.spec, jnp.dtype(dtype), mesh, 4, 4, NEW)
    refs = [ImageRef(*image.shape[1::-1], "image", pixels=image) for image in pictures()]
    views = [View(ref, Camera(50.0, 50.0, ref.width / 2, ref.height / 2, ref.width, ref.height)) for ref in refs]
    layouts = [(image_layout(view, model.spec),) for view in views]
    answers = engine.answer(layouts, QUESTIONS)
    front = vlm3_jax.load(folder, max_new_tokens=NEW, dtype=dtype, mesh=mesh)
    itemsize = jnp.dtype(dtype).itemsize
    return {
        "answers": [*answers, front.ask(pictures(), "How far is (12, 7)?")],
        "trees": trees(engine, layouts) if dtype == "float32" else [],
        "held": sorted(held.values()),
        "whole": parameters.count(model.cfg) * itemsize,
        "peak": peak,
    }


def trees(engine: Engine, layouts) -> list[tuple[str, dict[str, float]]]:
    """Of each answer its text and the numbers of three digits that may stand there, with their probabilities."""
    found = engine.explore(layouts, QUESTIONS, TreePlan(6, 0.0, 3))
    return [(one.text, dict(zip(one.numbers.texts, one.numbers.probabilities))) for row in found for one in row]


def main(out: pathlib.Path, folder: pathlib.Path, names: list[str]) -> None:
    """The cases of meshes with these names."""
    assert len(jax.devices()) == 8
    lines = [
        {"mesh": name, "dtype": dtype, **look(folder, shape, dtype)} for name, shape, dtype in CASES if name in names
    ]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:])
