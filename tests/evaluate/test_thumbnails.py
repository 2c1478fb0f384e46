import dataclasses

import numpy as np
import pytest
from evaluate_toys import make_questions
from PIL import Image

from vlm3_jax import records
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.items import Questions
from vlm3_jax.evaluate.thumbnails import FOLDER, MAX_SIDE, RECORDS, read_thumbnails, spread, write_thumbnails
from vlm3_jax.processor.image import ImageLayout


def test_spread_takes_evenly_and_all_when_few():
    assert spread(list(range(10)), 3) == [0, 3, 6]
    assert spread([1, 2], 6) == [1, 2]


def test_what_was_shown_of_some_records_of_each_task_is_kept(tmp_path):
    asked = make_questions("depth", 20) + make_questions("pose", 2)
    write_thumbnails(tmp_path, asked)
    kept = [read_thumbnails(tmp_path, questions.component, questions.record) for questions in asked]
    assert [k for k, pictures in enumerate(kept) if pictures] == [0, 3, 6, 10, 13, 16, 20, 21]
    assert len(list((tmp_path / FOLDER).glob("*.jpg"))) == RECORDS + 2 * 2
    for questions, pictures in zip(asked, kept, strict=True):
        for layout, picture in zip(questions.images, pictures):
            assert np.abs(picture.astype(float) - layout.ref.load()).mean() < 3


def test_thumbnails_are_mirrored_cropped_and_small(tmp_path):
    """As the image is: smaller than its stored self, mirrored, then cut."""
    stored = np.zeros((1000, 1200, 3), np.uint8)
    stored[:, 600:] = 255
    ref = records.ImageRef(1200, 1000, "halves", pixels=stored)
    layout = ImageLayout(ref, (1200, 1000), (960, 640), (40, 60), 2, crop=(300, 0, 1260, 640), flip=True)
    asked = [Questions("c", "r", "depth", (layout,), ())]
    write_thumbnails(tmp_path, asked)
    (picture,) = read_thumbnails(tmp_path, "c", "r")
    assert max(picture.shape) == MAX_SIDE
    assert picture[:, : MAX_SIDE * 290 // 960].mean() > 250
    assert picture[:, MAX_SIDE * 310 // 960 : MAX_SIDE * 890 // 960].mean() < 5


def test_thumbnails_of_another_evaluation_go(tmp_path):
    first, second = make_questions("depth", 2), make_questions("depth", 2, component="other")
    write_thumbnails(tmp_path, first)
    write_thumbnails(tmp_path, second)
    assert not read_thumbnails(tmp_path, "toy-depth", first[0].record)
    assert read_thumbnails(tmp_path, "other", second[0].record)
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]


@pytest.mark.parametrize("record", ["../../../etc/x", "/abs", "a/b", "", "é" * 500, "\ud800"])
def test_no_name_of_a_record_leads_elsewhere(tmp_path, record):
    asked = [dataclasses.replace(make_questions("depth", 1)[0], record=record)]
    write_thumbnails(tmp_path / "out", asked)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert path.parent == tmp_path / "out" / FOLDER
    assert len(read_thumbnails(tmp_path / "out", "toy-depth", record)) == 1


@pytest.mark.parametrize("fault", ["text", "png", "large"])
def test_files_that_are_no_thumbnails_are_named(tmp_path, fault):
    (asked,) = make_questions("depth", 1)
    write_thumbnails(tmp_path, [asked])
    (path,) = (tmp_path / FOLDER).iterdir()
    if fault == "text":
        path.write_text("no picture")
    else:
        Image.new("RGB", (9000, 40) if fault == "large" else (40, 40)).save(path, "JPEG" if fault == "large" else "PNG")
    with pytest.raises(UserError, match=rf"{path.name}: not a picture .*; delete it"):
        read_thumbnails(tmp_path, asked.component, asked.record)


def test_those_answered_worst_stand_apart(tmp_path):
    asked = make_questions("depth", 20)
    name = asked[5].component, asked[5].record
    write_thumbnails(tmp_path, asked, {name, ("depth", "none")})
    assert not read_thumbnails(tmp_path, *name)
    assert len(read_thumbnails(tmp_path, *name, worst=True)) == 1
    assert not read_thumbnails(tmp_path, asked[0].component, asked[0].record, worst=True)
