"""The generic layout: depth and cameras are those of the world, and nothing is guessed."""

import pytest

from tests.builders import files, streets, truth
from vlm3_jax.builders import common
from vlm3_jax.builders.street_scenes import StreetScenes
from vlm3_jax.errors import BadRecord, UserError

TOLERANCE_M = 0.5 / 256 + 1e-4


@pytest.mark.parametrize("kind", ["z", "distance"])
def test_records_are_what_the_world_shows(tmp_path, kind):
    raw = streets.write(tmp_path, 4, kind=kind)
    items = StreetScenes().frames(raw, "train")
    assert [item.key for item in items] == ["scene0/000", "scene0/002", "scene1/001", "scene1/003"]
    for item in items:
        record, frame = StreetScenes().record(raw, item), streets.frame(streets.number(item.key))
        assert (record.id, record.scene) == (item.key, item.key.split("/")[0])

        def check(one, frame=frame):
            truth.check_depth(one, frame, TOLERANCE_M)

        check(record)
        truth.check_image(record, frame)
        truth.all_fail(check, truth.wrong_depths(record))


def test_what_is_missing_is_skipped_and_what_is_damaged_named(tmp_path):
    raw = streets.write(tmp_path, 2)
    builder = StreetScenes()
    first, second = builder.frames(raw, "train")
    (raw / "train" / "depth" / "scene0" / "000.png").unlink()
    with pytest.raises(common.Skip, match="no depth of it"):
        builder.record(raw, first)
    (raw / "train" / "intrinsics" / "scene1" / "001.json").write_text("[1, 2]")
    with pytest.raises(BadRecord, match=r"scene1/001: intrinsics: expected"):
        builder.record(raw, second)
    files.dump(raw / "train" / "intrinsics" / "scene1" / "001.json", [50, 50, 32, 24, 64, 48])
    (raw / "train" / "depth" / "scene1" / "001.png").write_bytes(b"\x89PNG")
    with pytest.raises(BadRecord, match=r"scene1/001 depth: cannot decode"):
        builder.record(raw, second)


def test_the_kind_of_depth_must_be_told(tmp_path):
    raw = streets.write(tmp_path, 1)
    (raw / "about.json").unlink()
    with pytest.raises(UserError, match="write what the depths are"):
        StreetScenes().frames(raw, "train")
    files.dump(raw / "about.json", {"depth_kind": "Z", "depth_scale": 1})
    with pytest.raises(UserError, match='must be "z" or "distance"'):
        StreetScenes().frames(raw, "train")
    files.dump(raw / "about.json", streets.ABOUT)
    with pytest.raises(UserError, match=r"val.rgb: not there"):
        StreetScenes().frames(raw, "val")
