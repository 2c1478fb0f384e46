"""A model directory whose random model has something to say."""

import pytest

from vlm3_jax.checkpoint import hf
from vlm3_jax.model import params as parameters


@pytest.fixture(scope="session")
def lively(tiny_model, tmp_path_factory):
    """The tiny model with quiet embeddings and loud, sharp layers: as it is, it repeats its last token for ever."""
    cfg, params = hf.load(tiny_model)
    flat = parameters.flatten(params)
    flat["text", "embed"] *= 0.05
    flat["text", "norm"] *= 20.0
    for path, value in flat.items():
        value *= {"o_proj": 10.0, "down_proj": 4.0, "q_norm": 3.0}.get(path[-1], 1.0)
    return hf.save(tmp_path_factory.mktemp("lively") / "model", cfg, parameters.nest(flat), tiny_model)
