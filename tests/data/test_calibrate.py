"""`vlm3 data calibrate`: a file beside every image, in a fixed order, resumable."""

import json
import sys

import pytest
from PIL import ExifTags, Image

from vlm3_jax.cli import main
from vlm3_jax.data.calibrate import AnyCalib, calibrate
from vlm3_jax.errors import UserError
from vlm3_jax.processor import intrinsics
from vlm3_jax.processor.photo import open_photo

# The interface of AnyCalib's package, with a fit that is easy to foresee; its weights are a gigabyte.
PACKAGE = """
import torch

class AnyCalib(torch.nn.Module):
    def __init__(self, model_id):
        super().__init__()
        assert model_id == "anycalib_gen"

    def predict(self, im, cam_id):
        assert cam_id == "pinhole" and im.shape[0] == 3 and im.dtype == torch.float32 and 0.9 < im.max() <= 1
        height, width = im.shape[1:]
        return {"intrinsics": torch.tensor([1.25 * width, 1.5 * width, width / 2, height / 2])}
"""


@pytest.fixture
def folder(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 36
    image = Image.new("RGB", (360, 240), (250, 5, 7))
    (tmp_path / "below").mkdir()
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "b.png")
    image.resize((90, 120)).save(tmp_path / "below" / "c.webp")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    return tmp_path


def run(folder, *args):
    lines = []
    counts = calibrate(folder, *args, say=lines.append, progress=False)
    return dict(counts), [line.removeprefix(f"{folder}/") for line in lines]


def test_every_image_gets_a_file_and_says_from_what(folder):
    counts, lines = run(folder, intrinsics.rule("fov:90"))
    assert counts == {"EXIF": 1, "flag": 2, "none": 1}
    assert lines[:3] == [
        "a.jpg: 360 x 240, focal length 360.0 px (EXIF)",
        "b.png: 360 x 240, focal length 180.0 px (flag)",
        "below/c.webp: 90 x 120, focal length 45.0 px (flag)",
    ]
    assert lines[3].startswith("broken.jpg: set aside: cannot be read as an image")
    assert not (folder / "broken.camera.json").exists()
    written = json.loads((folder / "a.camera.json").read_text())
    assert (written["source"], written["fx"]) == ("EXIF", pytest.approx(360))
    assert open_photo(folder / "b.png").camera.fx == pytest.approx(180)
    assert open_photo(folder / "b.png").source == "b.camera.json"


def test_a_second_run_keeps_what_is_there_and_does_the_rest(folder):
    assert run(folder)[0] == {"EXIF": 1, "none": 3}
    before = (folder / "a.camera.json").stat().st_mtime_ns
    counts, lines = run(folder, intrinsics.rule("fov:90"))
    assert counts == {"kept": 1, "flag": 2, "none": 1}
    assert "(kept)" in lines[0]
    assert (folder / "a.camera.json").stat().st_mtime_ns == before


def test_anycalib_comes_last(folder, tmp_path_factory, monkeypatch):
    package = tmp_path_factory.mktemp("package")
    (package / "anycalib.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(package))
    counts, _ = run(folder, None, lambda: AnyCalib("anycalib_gen"))
    del sys.modules["anycalib"]
    assert counts == {"EXIF": 1, "AnyCalib anycalib_gen": 2, "none": 1}
    # Its pixels count from the corner of the first one.
    matrix = open_photo(folder / "below" / "c.webp").camera.matrix
    assert matrix.tolist() == [[112.5, 0, 44.5], [0, 135, 59.5], [0, 0, 1]]


def test_without_its_package_one_line_says_so(folder, capsys):
    assert main(["data", "calibrate", str(folder), "--calibrator=anycalib_pinhole"]) == 2
    assert "AnyCalib is not installed" in capsys.readouterr().err
    assert (folder / "a.camera.json").is_file()


def test_the_command_counts_and_ends_with_1_if_an_image_is_left(folder, capsys):
    assert main(["data", "calibrate", str(folder), "--camera=35mm:36"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 EXIF; 2 flag; 1 none"
    (folder / "broken.jpg").unlink()
    assert main(["data", "calibrate", str(folder)]) == 0
    assert main(["data", "calibrate", str(folder), "--camera=x"]) == 2


def test_what_the_user_has_to_mend(folder, tmp_path_factory):
    with pytest.raises(UserError, match="no images"):
        calibrate(tmp_path_factory.mktemp("empty"))
    Image.new("RGB", (8, 8)).save(folder / "b.jpg")
    with pytest.raises(UserError, match=r"b\.jpg, b\.png: their cameras would share a file"):
        calibrate(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"fx": 50, "fy": 50, "cx": 32, "cy": 24, "width": 360, "height": 240, "k1": 0.1}', "k1: a camera here is"),
        ('{"K": [[300, 0, 180], [0, -300, 120], [0, 0, 1]]}', "fx and fy above 0"),
        ('{"fx": 1e400, "fy": 50, "cx": 32, "cy": 24, "width": 360, "height": 240}', "positive and finite"),
        ('{"fx": 0.5, "fy": 0.5, "cx": 32, "cy": 24, "width": 360, "height": 240}', "implausible field of view"),
        ('{"K": 5}', "expected a"),
    ],
)
def test_a_file_that_is_no_camera_is_named_and_stops(folder, text, reason):
    (folder / "b.camera.json").write_text(text)
    with pytest.raises(UserError, match=f"{folder}/b.camera.json: .*{reason}"):
        run(folder)


def test_what_is_no_folder_or_no_camera_ends_in_a_line(folder, capsys):
    (folder / "below" / "c.camera.json").mkdir()
    for arguments, said in (
        ([folder / "none"], "none: no such folder"),
        ([folder / "b.png"], "b.png: it is a file"),
        ([folder, "--camera="], "'' is no camera"),
        ([folder, "--camera=fov:60"], "c.camera.json: cannot be written"),
    ):
        assert main(["data", "calibrate", *map(str, arguments)]) == 2
        captured = capsys.readouterr().err
        assert said in captured
        assert len(captured.splitlines()) == 1
