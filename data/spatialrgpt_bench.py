"""SpatialRGPT-Bench: questions about regions of photographs from driving and indoor sets, with true answers."""

import re

from vlm3_jax.builders import common
from vlm3_jax.builders.open_spatial import OpenSpatial, read_item
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats.json_items import item_spans


class SpatialRgptBench(OpenSpatial):
    """One question an item, its regions the boxes of `bbox`; the image is that of image_info.file_path.

    A record's id ends in its type and category (00000012-qualitative-left_predicate), by which scores are grouped. The
    photographs belong to other sets and are looked for in images/ (or train/, or beside the file). Rows with more than
    one conversation, masks as run lengths and cameras are as in OpenSpatialDataset.
    """

    name = "spatialrgpt_bench"
    title = "SpatialRGPT-Bench"
    folder = "bench"
    splits = ("test",)
    held_out = "test"
    layout = "one *.jsonl or *.json (id, image_info, bbox, qa_info, conversations) and images/FILE_PATH"
    labels = "a question about regions (boxes in pixels) and its answer in words"
    licence = "for research, as its sources (Omni3D); huggingface.co/datasets/a8cheng/SpatialRGPT-Bench"
    doubts = ("the published file was not at hand: its fields are those of SpatialRGPT's evaluation",)
    test = "tests/builders/test_spatialrgpt_bench.py"

    def frames(self, raw, split):
        """Every row, by its number, type and category."""
        found = sorted(path for path in raw.glob("*.json*") if path.suffix in (".json", ".jsonl"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise UserError(f"{raw}: expected the one file of questions (.jsonl or .json) in it, found {names}")
        items = []
        for number, span in enumerate(item_spans(found[0]).tolist()):
            key = f"{number:08d}" + _kind(found[0], span)
            items.append(common.Item(key, "", {"file": found[0].name, "span": span}))
        return items


def _kind(path, span) -> str:
    """The type and category of a row, as the end of its id; "" for one that has none, which is told when it is read."""
    try:
        info = read_item(path, span).get("qa_info")
        words = [info["type"], info["category"]]
    except (BadRecord, AttributeError, KeyError, TypeError):
        return ""
    return "".join("-" + re.sub(r"[^A-Za-z0-9_]+", "_", str(word)) for word in words)
