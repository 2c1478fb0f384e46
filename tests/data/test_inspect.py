import numpy as np
from check_world import pair
from PIL import Image
from small_data import write_shard

from vlm3_jax import synth
from vlm3_jax.config import component_config
from vlm3_jax.data import drawing, inspect
from vlm3_jax.data.mixture import Mixture, build_components, first_phase
from vlm3_jax.records.colours import depth_colours


def test_show_says_what_the_model_sees(opened, settings, tmp_path):
    index = next(i for i in range(20) if opened.mixture.sample(i).images[0].flip)
    text = inspect.show(opened.mixture, index, tmp_path / "a.png")
    sample = opened.mixture.sample(index)
    assert text.startswith(f"{sample.id}: record r")
    assert "seen 160 x 128, 80 patches, 20 visual tokens, mirrored" in text
    answers = settings.chat.decode(sample.target_tokens).split()
    assert [part.split("]")[0] for part in text.split("[")[2:]] == answers
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (160 * 6, 128 * 6)
    seen = drawing.pixels(sample.images[0], settings.vision)
    stored = opened.components[1].source[opened.mixture.draw(index).record].views[0].image.load()[:, ::-1]
    np.testing.assert_array_equal(seen, Image.fromarray(stored).resize((166, 124), 3).resize((160, 128), 3))


def test_show_draws_whichever_view_is_asked_about(tmp_path, settings):
    """Depth asks about either view of a pair: the picture and the labels are those of the view that is shown."""
    options = synth.SynthOptions(width=64, height=48, focal_px=64.0, focal_factor=(1.0, 1.0), depth_points=6)
    synth.build(tmp_path / "pairs", 4, options, seed=0, workers=1, progress=False)
    entry = component_config(
        path=str(tmp_path / "pairs"), task="depth", protocol="short", resize="focal:64", questions=4
    )
    parts = build_components({"pairs": entry}, settings)
    table = Mixture(parts, 0, [first_phase({"pairs": 4}, {"pairs": 1.0})])
    for index in range(8):
        sample = table.sample(index)
        record = sample.record
        text = inspect.show(table, index, tmp_path / "sample.png")
        assert f"image {record.views[sample.views[0]].image.name}:" in text
        with Image.open(tmp_path / "sample.png") as picture:
            assert picture.width % sample.images[0].final[0] == 0
    assert {table.sample(index).views for index in range(8)} == {(0,), (1,)}


def test_show_draws_depth_maps_below_the_images(tmp_path, settings):
    """As the model sees the images: also mirrored."""
    (tmp_path / "pairs").mkdir()
    write_shard(tmp_path / "pairs" / "a.array_record", [pair(n, matches=False) for n in range(3)])
    entry = component_config(
        path=str(tmp_path / "pairs"), task="depth", protocol="short", resize="focal:60", questions=2, flip=0.5
    )
    parts = build_components({"pairs": entry}, settings)
    table = Mixture(parts, 0, [first_phase({"pairs": 3}, {"pairs": 1.0})])
    flips = set()
    for index in range(8):
        sample = table.sample(index)
        flips.add(sample.images[0].flip)
        inspect.show(table, index, tmp_path / "sample.png")
        record = parts[0].source[table.draw(index).record]
        with Image.open(tmp_path / "sample.png") as picture:
            sheet = np.asarray(picture)
        view, stored = sample.views[0], record.depth_maps[sample.views[0]]
        image = Image.fromarray(record.views[view].image.load())
        colours = np.asarray(drawing.shaded(depth_colours(stored.load()), image))
        colours = colours[:, ::-1] if sample.images[0].flip else colours
        below = Image.fromarray(sheet[len(sheet) // 2 :]).resize((64, 48), Image.Resampling.BOX)
        near = np.abs(np.asarray(below).astype(int) - colours).mean()
        other = np.abs(np.asarray(below).astype(int) - colours[:, ::-1]).mean()
        assert near < other / 2
    assert flips == {False, True}
