"""One question about image files, for `vlm3 ask` and for a first look at a model."""

import pathlib

import jax
import jax.numpy as jnp
from PIL import Image

from vlm3_jax.camera import Camera
from vlm3_jax.checkpoint import hf
from vlm3_jax.data.chat import ChatFormat
from vlm3_jax.data.image import ImagePlan, VisionSpec, plan_image
from vlm3_jax.data.records import ImageRef, View
from vlm3_jax.errors import UserError
from vlm3_jax.infer.engine import Engine
from vlm3_jax.train.run import resolve_model


def plan_file(path, spec: VisionSpec) -> ImagePlan:
    """The plan of an image file as it is, without focal unification. UserError if it is not an image."""
    path = pathlib.Path(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None
    ref = ImageRef(width, height, str(path), path=path)
    return plan_image(View(ref, Camera.from_fov(width, height, 60.0)), spec)


def ask(model: str, images, question: str, max_new_tokens: int = 256) -> str:
    """The model's greedy answer to a question about image files; `model` is an HF directory or hub name."""
    model_dir = resolve_model(model, ".")
    spec = VisionSpec.from_dir(model_dir)
    plans = tuple(plan_file(path, spec) for path in images)
    cfg, params = hf.load(model_dir)
    engine = Engine(
        cfg,
        jax.tree.map(jnp.asarray, params),
        ChatFormat.from_dir(model_dir),
        spec,
        image_sets=1,
        questions=1,
        max_new_tokens=max_new_tokens,
    )
    return engine.answer([plans], [[question]])[0][0]
