"""Weights as the engine wants them."""

import jax
import numpy as np


def layer_by_layer(params: dict) -> dict:
    """The decoder's stacks as lists of layers, on a CPU, whose loops would copy every layer out of its stack.

    The layers are views: nothing is held twice, where memory is aligned as jax wants it.
    """
    text = {name: _layers(value) if isinstance(value, dict) else value for name, value in params["text"].items()}
    return {**params, "text": text}


def _layers(stack: dict) -> list[dict]:
    arrays = {name: np.asarray(value) for name, value in stack.items()}
    count = {len(array) for array in arrays.values()}.pop()
    return [{name: jax.device_put(array[i], may_alias=True) for name, array in arrays.items()} for i in range(count)]
