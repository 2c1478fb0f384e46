"""Checks of stored fields: each names the field that is not what it should be."""

import numpy as np

from vlm3_jax.errors import BadRecord


def need(right: object, field: str, what: str) -> None:
    """BadRecord that says `what` is wrong with the field unless it is right."""
    if not right:
        raise BadRecord(f"{field}: {what}")


def array(tree, field: str, *shape: int | None) -> np.ndarray:
    """A stored array of numbers; BadRecord unless it has this shape (None: any length)."""
    dtype = np.dtype(tree["dtype"])
    if dtype.kind not in "iuf":
        raise BadRecord(f"{field}: expected an array of numbers, got {dtype}")
    values = np.frombuffer(tree["bytes"], dtype).reshape(tree["shape"])
    if not values.size and shape[0] is None:
        # np.array([]) has but one axis.
        return values.reshape(0, *shape[1:])
    right = values.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, values.shape))
    if not right:
        wanted = " x ".join("N" if n is None else str(n) for n in shape)
        raise BadRecord(f"{field}: expected {wanted} numbers, got shape {list(values.shape)}")
    return values


def pixels(tree, field: str, *shape: int | None) -> np.ndarray:
    """A stored array of pixel coordinates; BadRecord unless they are finite."""
    points = array(tree, field, *shape)
    need(points.dtype.kind != "f" or np.isfinite(points).all(), field, "its pixels are not finite")
    return points


def view_number(tree, field: str, views: int) -> int:
    """Which of the record's `views` a label belongs to."""
    view = tree["view"]
    right = isinstance(view, int) and 0 <= view < views
    need(right, f"{field}.view", f"is {view!r}, and the record has {views} views, counted from 0")
    return view
