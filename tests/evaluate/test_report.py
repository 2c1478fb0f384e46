import base64
import html.parser
import importlib
import io
import json
import shutil
import sys

import numpy as np
import pytest
from evaluate_toys import Constant, Truthful, make_questions, mixed_questions
from PIL import Image

from vlm3_jax.errors import UserError
from vlm3_jax.evaluate.report import album, charts, frusta, groups, panels, pictures
from vlm3_jax.evaluate.report.page import read_metrics, write_report
from vlm3_jax.evaluate.run import evaluate
from vlm3_jax.evaluate.scoring import Answers, read_cells
from vlm3_jax.evaluate.worst import worst_records
from vlm3_jax.pose import matrix_from_euler
from vlm3_jax.tasks import TASKS

HOSTILE = '<script>alert("&")</script> 3 m'
VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Tags, balanced or not, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words, self.problems = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)

    def images(self):
        return [attrs["src"] for tag, attrs in self.tags if tag == "img"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    asked = mixed_questions()
    evaluate(Constant(HOSTILE), asked, folder / "before", progress=False)
    evaluate(HalfRight(asked), asked, folder / "after", progress=False)
    rows = [{"step": k, "samples": 16 * k, "loss": 3 / (1 + k / 40), "lr": 1e-3} for k in range(200)]
    rows += [{"step": k, "eval_loss/toy-depth": 1.5 - k / 400, "answer_entropy/toy-depth": 1.36} for k in (0, 100, 199)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = write_report(
        folder / "out" / "page.html",
        {"before <b>training</b>": folder / "before", "after training": folder / "after"},
        title="Toy & report",
        metrics=folder / "metrics.jsonl",
        summary={"model": "tiny <0.8 M>"},
        commands=["vlm3 eval --config=tiny"],
    )
    assert path.stat().st_size < 8_000_000
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    return Page(path.read_text(encoding="utf-8"))


class HalfRight(Truthful):
    """Every third answer is hostile text."""

    def answer(self, images, questions):
        texts = super().answer(images, questions)
        return [[HOSTILE if k % 3 == 0 else text for k, text in enumerate(group)] for group in texts]


def test_the_page_is_whole_and_depends_on_nothing_outside(page):
    assert page.problems == []
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "b"} & {tag for tag, _ in page.tags}
    assert all(src.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for src in page.images())
    allowed = {"class", "alt", "src", "lang", "charset", "name", "content", "open", "id", "href", "http-equiv"}
    assert {name for _, attrs in page.tags for name in attrs} <= allowed


def test_model_text_is_shown_as_text(page):
    assert HOSTILE in page.text
    assert "before <b>training</b>" in page.text
    assert "tiny <0.8 M>" in page.text


def test_every_picture_decodes(page):
    # An interval chart, four bad and six other pictures a task, two charts of depth, and the loss.
    sources = page.images()
    assert len(sources) == 11 * len(TASKS) + 3
    for source in sources:
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        image.load()
        assert min(image.size) > 80
        assert np.asarray(image.convert("L")).std() > 5


def test_scores_references_and_published_tables_are_there(page):
    for text in ("delta1 ↑", "epe ↓", "best constant", "copy query", "shuffled", "unreadable", "Not comparable"):
        assert text in page.text
    assert page.text.count("before <b>training</b>") >= 4
    assert "41.30" in page.text
    assert "40.93" in page.text


def test_without_thumbnails_and_metrics_only_charts_remain(tmp_path):
    asked = make_questions("depth", 3)
    evaluate(Constant("2 m"), asked, tmp_path / "run", progress=False)
    shutil.rmtree(tmp_path / "run" / "thumbnails")
    page = Page(write_report(tmp_path / "r.html", {"model": tmp_path / "run"}).read_text(encoding="utf-8"))
    assert len(page.images()) == 3
    assert "Loss" not in page.text
    # The worst are told all the same.
    assert "Worst cases" in page.text
    assert "true" in page.text


def test_pictures_beyond_the_limit_are_left_out_and_counted(tmp_path, monkeypatch):
    asked = make_questions("depth", 3)
    evaluate(Constant("2 m"), asked, tmp_path / "run", progress=False)
    monkeypatch.setattr(album, "PICTURE_BYTES", 50_000)
    page = Page(write_report(tmp_path / "r.html", {"m": tmp_path / "run"}).read_text(encoding="utf-8"))
    assert len(page.images()) < 5
    assert "pictures left out" in page.text


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.colors", None)
    for name in ("drawing", "charts", "pictures", "frusta", "panels", "section", "page"):
        monkeypatch.delitem(sys.modules, f"vlm3_jax.evaluate.report.{name}")
        monkeypatch.delattr(f"vlm3_jax.evaluate.report.{name}")
    with pytest.raises(UserError, match=r"vlm3-jax\[demo\]"):
        importlib.import_module("vlm3_jax.evaluate.report.page")


def test_tasks_stand_in_their_order(page):
    titles = [page.text.index(f"{task} on toy-{task}") for task in TASKS]
    assert titles == sorted(titles)


def test_text_that_no_file_can_hold_is_replaced(tmp_path):
    evaluate(Constant("no"), make_questions("pose", 1), tmp_path / "run", variants=("model",), progress=False)
    path = tmp_path / "run" / "predictions.jsonl"
    path.write_text(path.read_text().replace('"prediction": "no"', r'"prediction": "\ud800"'))
    assert ": ? (true" in write_report(tmp_path / "r.html", {"a": tmp_path / "run"}).read_text(encoding="utf-8")


def test_metrics_rows_merge_by_step_and_later_rows_win(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 2, "loss": 1.0},
        {"step": 1, "loss": 3.0},
        {"step": 2, "eval_loss/a": 2.0},
        {"step": 2, "loss": 1.5},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.5, "eval_loss/a": 2.0}]
    path.write_text('{"step": 1, "lo')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1"):
        read_metrics(path)
    with pytest.raises(UserError, match="no such metrics file"):
        read_metrics(tmp_path / "none.jsonl")


def test_smoothing_keeps_a_constant_and_follows_a_step():
    assert charts._smooth(np.full(120, 2.0)) == pytest.approx(np.full(120, 2.0))
    smooth = charts._smooth(np.r_[np.zeros(100), np.ones(100)])
    assert (smooth[:100] == 0).all()
    assert smooth[104] == pytest.approx(1)


def test_drawings_cope_with_unreadable_and_absurd_answers(rng):
    photo = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
    points, true = rng.random((5, 2)), rng.uniform(1, 9, 5)
    for predicted in (np.full(5, np.nan), np.array([0.0, -3, 1e300, 1e-300, np.nan]), true):
        assert pictures.depth_points(photo, points, true, predicted)
        assert charts.depth_scatter(true, predicted)
    for predicted in (np.full((5, 2), np.nan), points * 1e300, -points):
        assert pictures.match_lines(photo, photo, points, points, predicted)
    turned = matrix_from_euler(10, 0, 0)
    for predicted in ((None, None), (turned, None), (None, np.array([0, 0, 1.0])), (turned, np.array([0, -1.0, 0]))):
        assert frusta.pose_views(photo, photo, (turned, np.array([0, 0, 1.0])), predicted)
    assert charts.intervals(["a $x$", "b"], [np.nan, 1.0], [np.nan, 0.5], [np.nan, 2.0], "épe $")
    assert pictures.depth_points(photo, points[:1], np.array([2.3]), np.array([2.4]))


def test_correct_matches_are_green_and_wrong_ones_red():
    photo = np.full((60, 80, 3), 255, np.uint8)
    query = np.array([[0.3, 0.5]])

    def colours(predicted):
        data = pictures.match_lines(photo, photo, query, query, np.array([predicted]))
        pixels = np.asarray(Image.open(io.BytesIO(data))).astype(int)
        red, green, _ = np.moveaxis(pixels, -1, 0)
        return (red > green + 60).sum(), (green > red + 60).sum()

    red, green = colours([0.3, 0.5])
    assert green > 30
    assert red < 10
    red, green = colours([0.9, 0.1])
    assert red > 100
    assert green < 10


def test_intervals_and_what_may_be_taken_for_the_answer():
    """Rows that lack any of it are left out; intervals of several levels are none."""
    true = np.linspace(1, 3, 50)
    answers = depth_answers(true, 2 * true, spreads=[0.1] * 50)
    plain = groups.reliability(answers)
    assert (plain.interval, plain.taken) == (None, ())
    for row, metres in zip(answers.rows, true.tolist(), strict=True):
        row |= {"median_m": metres, "expected_m": 1.5 * metres, "low_m": 0.9 * metres, "high_m": 1.3 * metres}
        row["level"] = 0.9
    for row in answers.rows[:10]:
        row["low_m"] = row["median_m"] * 1.1
    answers.rows[-1] |= {"median_m": None}
    found = groups.reliability(answers)
    assert found.interval == pytest.approx((0.9, 39 / 49, 1.3))
    assert [(name, delta) for name, delta, _ in found.taken] == [("greedy", 0), ("median", 1), ("expected", 0)]
    assert [error for *_, error in found.taken] == pytest.approx([1, 0, 0.5])
    answers.rows[0]["level"] = 0.5
    assert groups.reliability(answers).interval is None


def depth_answers(true_m, answers, scenes=None, spreads=None) -> Answers:
    """Of one point an image."""
    rows = []
    for number, (true, answer) in enumerate(zip(true_m, answers, strict=True)):
        target = {"kind": "depth", "depth_m": float(true), "coords": [1, 2], "coord_range": 9}
        row = {"record": f"r{number}", "target": target, "value": None if answer is None else float(answer)}
        row |= {} if scenes is None else {"scene": scenes[number]}
        rows.append(row | ({} if spreads is None else {"spread": spreads[number]}))
    return Answers.of(TASKS["depth"], rows)


def test_errors_are_grouped_by_true_depth():
    answers = depth_answers([0.3, 1.5, 1.9, 2.0, 200.0], [0.3, 3.0, None, 2.0, 220.0])
    near, middle, third, far = groups.by_depth(answers)
    assert [one.points for one in (near, middle, third, far)] == [1, 2, 1, 1]
    assert (near.delta1, middle.delta1, third.delta1, far.delta1) == (1, 0, 1, 1)
    assert (middle.unread, middle.abs_rel, middle.ratios) == (1, 1.0, (2.0,) * 5)
    assert (near.name, far.name) == ("0 to 0.5 m", "above 150 m")
    assert far.abs_rel == pytest.approx(0.1)


def test_scenes_stand_from_worst_to_best_and_only_where_they_tell_something():
    answers = depth_answers([1, 1, 1, 1], [1, 1, 9, 1], scenes=["a", "a", "b", "b"])
    worst, best = groups.by_scene(answers, higher_is_better=True)
    assert (worst.name, worst.value, worst.records, best.value) == ("b", 0.5, 2, 1)
    assert [one.name for one in groups.by_scene(answers, higher_is_better=False)] == ["a", "b"]
    assert groups.by_scene(depth_answers([1, 1], [1, 1], scenes=["a", "b"]), True) == []
    assert groups.by_scene(depth_answers([1, 1], [1, 1], scenes=["a", "a"]), True) == []
    answers.rows[0] |= {"record": "house/1", "scene": ""}
    assert "house" in [one.name for one in groups.by_scene(answers, True)]


def test_a_true_spread_is_found_reliable_and_a_false_one_not(rng):
    true = np.full(4000, 5.0)
    spread = rng.uniform(0.05, 0.5, 4000)
    answer = true + rng.normal(size=4000) * spread
    found = groups.reliability(depth_answers(true, answer, spreads=spread.tolist()))
    assert found.error_m / found.spread_m == pytest.approx(1, abs=0.1)
    assert found.within == pytest.approx((0.683, 0.954), abs=0.02)
    errors = [error for _, error in found.sure]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1] / 2
    false = groups.reliability(depth_answers(true, answer, spreads=(spread / 3).tolist()))
    assert (false.error_m / false.spread_m > 2.5).all()
    assert groups.reliability(depth_answers(true, answer)) is None
    assert groups.reliability(depth_answers([1] * 30, [1] * 30, spreads=[None, "x", 0, -1, float("inf")] * 6)) is None


def test_the_worst_records_have_the_largest_errors_and_their_pictures(tmp_path):
    asked = make_questions("depth", 6)
    wrong = Truthful(asked)
    for (image, question), answer in list(wrong.answers.items()):
        place = [id(one.images[0].ref) for one in asked].index(image)
        if place < 3:
            wrong.answers[image, question] = ("9999 m", "nothing", answer)[place]
    evaluate(wrong, asked, tmp_path, variants=("model",), progress=False)
    (cell,) = read_cells(tmp_path)
    assert sorted(worst_records(cell)) == ["scene/0", "scene/1"]
    shown = panels.worst(tmp_path, [cell])
    assert sorted(one.title for one in shown) == ["toy-depth/scene/0", "toy-depth/scene/1"]
    assert all(one.picture for one in shown)
    assert any("nothing readable, true" in line for one in shown for line in one.lines)
    assert len(panels.examples(tmp_path, [cell])) == 6


def test_frusta_stand_where_the_cameras_do():
    """Moved to the right and turned to the left: on the page to the right, and its image plane to the left of that."""
    right, up = frusta._project(np.array([[1.0, 0, 0], [0, -1, 0]]))
    assert right[0] > 0.5
    assert abs(up[0]) < 1e-9
    assert up[1] > 0.5
    ahead = frusta._project(np.array([0.0, 0, 1]))
    assert ahead[1] > 0
    left = frusta._project(matrix_from_euler(-40, 0, 0) @ np.array([0.0, 0, 1]))
    assert left[0] < ahead[0]
