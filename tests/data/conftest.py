"""Fixtures of the data tests: a tiny model's settings, shards of small records, and a mixture of them."""

import json

import pytest
from small_data import Opened, small_record, write_shard

from vlm3_jax.checkpoint import tiny
from vlm3_jax.data.component import SampleSettings
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import VisionSpec


@pytest.fixture(scope="session")
def settings(tmp_path_factory) -> SampleSettings:
    """A tiny model's chat and image settings, and a row of about three small samples."""
    model = tiny.make(tmp_path_factory.mktemp("model") / "tiny", "demo")
    return SampleSettings(ChatFormat.from_dir(model), VisionSpec.from_dir(model), RowBudget(512, 192, 160))


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder with two shards of 30 small records each."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        write_shard(
            folder / f"small.array_record-{shard:05d}-of-00002", [small_record(30 * shard + i) for i in range(30)]
        )
    return folder


@pytest.fixture(scope="session")
def table(shards):
    """A mixture table of two components over the same shards."""
    small = {"path": str(shards), "protocol": "short", "resize": "focal:100", "questions": 6}
    return {"near": {**small, "weight": 3.0}, "far": {**small, "resize": "focal:130", "flip": 0.5}}


@pytest.fixture
def opened(table, settings):
    """The table's mixture on four streams."""
    return Opened(table, settings, 4)


@pytest.fixture
def jsonl(tmp_path):
    """Ten images with labels; the pixels of number 3 are cut off."""
    lines = []
    for number in range(10):
        record = small_record(number)
        data = record.views[0].image.data
        (tmp_path / f"{number}.png").write_bytes(data[: len(data) // 2] if number == 3 else data)
        lines.append(
            {
                "image": f"{number}.png",
                "intrinsics": [100, 100, 64, 48, 128, 96],
                "pixel_coords": record.depth[0].points_px.tolist(),
                "depth": record.depth[0].depth_m.tolist(),
            }
        )
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"x": {
        "kind": "depthlm", "path": str(tmp_path / "x.jsonl"), "depth_kind": "z", "protocol": "short",
        "resize": "focal:100", "questions": 6,
    }}  # fmt: skip
