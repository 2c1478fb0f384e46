import io
import pickle

import numpy as np
import pytest

from vlm3_jax.errors import BadRecord
from vlm3_jax.formats.npz import read_object_npy, read_objects


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "values",
    [
        np.array(["0000 0", "0015 1", None, "ü"], object),
        np.array([1, 70_000, -3, 2**40, "a" * 300], object),
        np.array([["a", 1, 2, 0.5], ["b", 3, 4, 0.25]], object),
        np.array([], object),
        np.array(["plain", "text"]),
        np.arange(6).reshape(2, 3),
        np.array([(1, 2.5)], [("a", "i4"), ("b", "f4")]),
    ],
)
def test_lists_of_texts_and_numbers_are_read(values):
    expected = [list(row) for row in values.tolist()] if values.dtype.names else values.tolist()
    assert read_objects(npz(values=values), "x.npz", "values") == expected


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_of_all_protocols(protocol):
    values = np.array([["0000 0", 7, None], ["x", np.str_("y"), np.int64(9)]], object)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": (2, 3)})
    assert read_object_npy(head.getvalue() + pickle.dumps(values, protocol), "x") == [
        ["0000 0", 7, None],
        ["x", "y", 9],
    ]


class Harmful:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize("bad", [Harmful(), {"a": 1}, [1, Harmful()], np.zeros(3), len])
def test_nothing_else_is_built(bad, capsys):
    values = np.array([None, "fine"], object)
    values[0] = bad
    with pytest.raises(BadRecord, match=r"^x\.npz: values: its pickle holds more than texts and numbers"):
        read_objects(npz(values=values), "x.npz", "values")
    assert not capsys.readouterr().out


def test_damage_is_named():
    whole = npz(values=np.array(["a", "b"], object))
    with pytest.raises(BadRecord, match=r"x\.npz: cannot read other"):
        read_objects(whole, "x.npz", "other")
    with pytest.raises(BadRecord, match=r"x\.npz: cannot read values"):
        read_objects(whole[:50], "x.npz", "values")
    buffer = io.BytesIO()
    np.save(buffer, np.array(["a", "b"], object))
    for cut in range(80, len(buffer.getvalue()), 7):
        with pytest.raises(BadRecord):
            read_object_npy(buffer.getvalue()[:cut], "x")
