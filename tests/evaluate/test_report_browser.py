"""The report in a real browser: every table and picture is there at two widths, and nothing is complained of."""

import dataclasses
import json
import math

import pytest
from evaluate_toys import Constant, Truthful, mixed_questions

from tests import browser
from vlm3_jax.evaluate import tables
from vlm3_jax.evaluate.benchmarks import BENCHMARKS
from vlm3_jax.evaluate.compare import Compared
from vlm3_jax.evaluate.report.page import write_report
from vlm3_jax.evaluate.run import evaluate

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="no chromium (Debian: apt-get install chromium)")

SHOWN = """[...document.querySelectorAll('table')].map(table => {
    const box = table.getBoundingClientRect(), scroller = table.closest('.scroll');
    const own = scroller && getComputedStyle(scroller).overflowX === 'auto';
    if (own) scroller.scrollLeft = 1e6;
    const heads = table.querySelectorAll('tr:first-child > *'), last = heads[heads.length - 1];
    const right = last.getBoundingClientRect().right;
    if (own) scroller.scrollLeft = 0;
    return {width: box.width, height: box.height, scrolls: own, right: right, kind: table.className,
        unscrolled: last.getBoundingClientRect().right};
})"""
PICTURES = "[...document.images].map(image => [image.naturalWidth, image.getBoundingClientRect().right, image.alt])"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    asked = mixed_questions()
    evaluate(Constant("2 m"), asked, folder / "before", variants=("model",), progress=False)
    evaluate(Truthful(asked), asked, folder / "after", progress=False)
    _with_spreads(folder / "after" / "predictions.jsonl")
    runs = {"before training": folder / "before", "a model with quite a long name": folder / "after"}
    compared = Compared.read(runs)
    own = {
        (one.name, "metres"): ({one.metric: 0.5, "count": 9, "parse_failures": 0}, (0.4, math.nan), "")
        for one in BENCHMARKS.values()
        if one.task == "depth"
    }
    shown = tables.of([tables.Own("a model with quite a long name", own)])
    metrics = folder / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": k, "loss": 3 / (1 + k)}) + "\n" for k in range(9)))
    return write_report(
        folder / "report.html", runs, metrics=metrics, compared=dataclasses.replace(compared, tables=shown)
    )


def _with_spreads(path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        if row["task"] == "depth" and row["variant"] == "model":
            row["spread"] = 0.1 + 0.01 * (number % 7)
            true = row["target"]["depth_m"]
            row |= {"expected_m": 1.3 * true, "median_m": 1.01 * true, "low_m": 0.9 * true, "high_m": 1.2 * true}
            row["level"] = 0.9
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("width", [1200, 400])
def test_every_table_and_picture_is_shown(report, tmp_path, width):
    text = report.read_text()
    with browser.opened(report, tmp_path / "profile", width) as page:
        page.run("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.problems == []
        assert page.run("document.documentElement.scrollWidth") <= width
        found = page.run(SHOWN)
        assert len(found) == text.count("<table") > 15
        for table in found:
            assert min(table["width"], table["height"]) > 20
            assert table["scrolls"] or table["right"] <= width
            assert table["right"] <= width, "its last column cannot be reached"
        pictures = page.run(PICTURES)
        assert len(pictures) == text.count("<img") > 30
        for natural, right, alt in pictures:
            assert natural > 80, alt
            assert right <= width, alt
        heads = page.run("[...document.querySelectorAll('h3')].map(head => head.textContent)")
        assert "Intervals of 90 % hold 100.0 % of the truths" in page.run("document.body.innerText")
        for head in ("Error against depth", "Reliability of the spread", "Worst cases", "Examples"):
            assert head in heads
        if width == 1200:
            widest = next(table for table in found if table["kind"] == "published")
            assert widest["unscrolled"] <= width, "the mean column is cut off"


def test_a_page_with_faults_is_found_out(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><img src='none.png'><script>console.error('x'); nothing()</script>")
    with browser.opened(page, tmp_path / "profile", 800) as opened:
        told = " ".join(opened.problems)
    assert "console.error" in told
    assert "Uncaught" in told
    assert "ERR_FILE_NOT_FOUND" in told
