import dataclasses
import io
import json
import os
import tracemalloc

import numpy as np
import pytest
import rich.console
from small_data import QWEN_VISION, Opened, blank_depthlm, depth_mixture, load, scheduler_of, small_record, write_shard

from tests.support import write_records
from vlm3_jax import cli, records
from vlm3_jax import config as configs
from vlm3_jax.data import survey
from vlm3_jax.data.component import SampleSettings
from vlm3_jax.data.packing import RowBudget, batch_stats, fits, lengths, pack
from vlm3_jax.data.samples import unsupervised
from vlm3_jax.errors import UserError
from vlm3_jax.processor.chat import ChatFormat

# The recipe's step, and its run, on an eighth of the rows.
PART = 8


def printed(report) -> str:
    console = rich.console.Console(file=io.StringIO(), width=120)
    console.print(report)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def recipe():
    return configs.load("depth")


@pytest.fixture(scope="module")
def depth(recipe, qwen_dir, tmp_path_factory):
    """(mixture table, settings) of the depth recipe on grey images, with Qwen's vocabulary."""
    data = recipe.data
    budget = RowBudget(
        *(data.row_tokens, data.row_patches, data.row_targets),
        **{name: data[name] for name in ("pair_block", "pairs", "patch_pairs")},
    )
    assert (budget.tokens, budget.patches) == (7168, 16_384)
    settings = SampleSettings(ChatFormat.from_dir(qwen_dir), QWEN_VISION, budget)
    return depth_mixture(tmp_path_factory.mktemp("depth")), settings


@pytest.fixture(scope="module")
def scheduled(recipe, depth):
    """Three steps of the depth recipe, an eighth of its rows, scheduled as the loader does."""
    table, settings = depth
    streams = recipe.data.rows * recipe.train.accumulation // PART
    opened, batches = Opened(table, settings, streams), []
    scheduler = scheduler_of(opened, settings)
    cursors = opened.state.cursors
    for _ in range(3):
        batches.append(scheduler.batch(cursors))
        cursors = batches[-1].cursors
    return batches


def test_rows_of_the_depth_recipe_are_full(depth, scheduled):
    """The sizes of the paper's depth mixture: nine tenths of the tokens at least, attention at most 1.3 times."""
    budget = depth[1].budget
    visual = {layout.n_visual for batch in scheduled for row in batch.rows for s in row for layout in s.images}
    # All but one set lie between 858 and 1,300 visual tokens.
    assert sorted(visual)[:2] == [551, 858]
    assert max(visual) == 1296
    for batch in scheduled:
        stats = batch_stats(batch.rows, lengths(batch.rows), budget)
        assert stats["token_fill"] >= 0.9
        assert stats["patch_fill"] >= 0.7
        assert stats["text_work"] <= 1.3
        assert stats["vision_work"] <= 1.3
    # Attention over whole rows would be far from that.
    rows = scheduled[0].rows
    dense = batch_stats(rows, lengths(rows), dataclasses.replace(budget, pair_block=0))
    assert dense["text_work"] > 5
    assert dense["vision_work"] > 4


def test_the_work_reported_is_that_of_the_lists(depth, scheduled):
    """Pairs of blocks of two packed rows, against pairs that see each other counted one by one."""
    budget, rows = depth[1].budget, scheduled[0].rows[:2]
    batch = pack(rows, [[[None]] * len(row) for row in rows], budget, QWEN_VISION)
    stats = batch_stats(rows, lengths(rows), budget)
    tokens = [len(s.tokens) for row in rows for s in row]
    patches = [len(s.visual_slot) * 4 for row in rows for s in row]
    area = budget.pair_block**2
    text = (batch["pair_keys"] >= 0).sum() * area / sum(n * (n + 1) / 2 for n in tokens)
    vision = (batch["patch_pair_keys"] >= 0).sum() * area / sum(n * n for n in patches)
    assert (stats["text_work"], stats["vision_work"]) == pytest.approx((text, vision))
    assert stats["token_fill"] == pytest.approx((batch["segments"] > 0).mean())


def test_a_step_holds_the_batch_that_is_asked_for(recipe, depth, scheduled):
    """The schedule runs on samples, and the paper's batch is samples a step: with the rows that the report names the
    mean is within 2 %.
    """
    rows = recipe.data.rows * recipe.train.accumulation
    report = survey.mix_report(*depth, seed=1, samples=300, run=survey.Run(32_000_000, rows, 1344))
    a_row = np.mean([batch.n_samples for batch in scheduled]) / len(scheduled[0].rows)
    assert a_row * report.configured.rows_for(1344) == pytest.approx(1344, rel=0.02)
    assert report.samples_per_step == pytest.approx(a_row * rows, rel=0.02)
    text = " ".join(printed(report).split())
    assert f" of 1,344 asked ({report.samples_per_step / 1344 - 1:+.1%})" in text
    assert report.oversize == 0
    few = dataclasses.replace(report, run=survey.Run(32_000_000, rows * 4 // 5, 1344))
    text = " ".join(printed(few).split())
    assert f"; {report.configured.rows_for(1344)} rows a step (data.rows x train.accumulation) come closest;" in text


def test_proposed_rows_of_the_depth_recipe(depth, scheduled):
    """Proposed from one draw, they do for another."""
    drawn = [s for batch in scheduled for row in batch.rows for s in row]
    for fill in survey.propose(drawn[:250], 4):
        again = survey.row_fill(survey.in_rows(drawn[250:], fill.budget), fill.budget)
        assert again.token_fill > 0.9
        assert max(again.text_work, again.vision_work) <= 1.3
        assert again.samples == pytest.approx(fill.samples, rel=0.03)


def test_shares_epochs_and_steps(table, settings):
    run = survey.Run(12_000, rows=4, batch=10)
    report = survey.mix_report(table, settings, samples=240, run=run)
    near, far = report.shares
    assert (near.name, near.records, near.share) == ("near", 60, 0.75)
    assert near.drawn == pytest.approx(0.75, abs=0.1)
    assert near.drawn + far.drawn == 1
    # 12,000 samples of which three quarters come from 60 records.
    assert (near.epochs, far.epochs) == (150, 50)
    assert report.samples_per_step == 4 * report.configured.samples
    text = " ".join(printed(report).split())
    assert "near 60 75.0%" in text
    assert "150.00" in text
    assert f"samples per step: mean {report.samples_per_step:.1f} of 10 asked" in text
    assert f"{-(-12_000 // report.samples_per_step):,.0f} steps for 12,000 samples" in text
    assert survey.mix_report(table, settings, samples=20).shares[0].epochs is None


def test_skipped_records_cost_draws(settings, tmp_path):
    """Half of the lines are broken: the run takes two passes to see as many samples as there are lines."""
    blank_depthlm(tmp_path / "x.jsonl", [(64, 48)], 50.0, 20)
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    (tmp_path / "x.jsonl").write_text("\n".join(["{}", line][i % 2] for i, line in enumerate(lines)))
    table = {"x": {"kind": "depthlm", "path": str(tmp_path / "x.jsonl"), "depth_kind": "z", "resize": "focal:50"}}
    settings = dataclasses.replace(settings, budget=RowBudget(4096, 512, 512))
    report = survey.mix_report(table, settings, samples=100, max_bad_fraction=0.5, run=survey.Run(20))
    assert report.passed_over == pytest.approx(100, abs=10)
    assert report.shares[0].epochs == pytest.approx(2, abs=0.1)


def test_no_sample_at_all_says_why(settings, tmp_path):
    write_shard(tmp_path / "a.array_record", [small_record(k, covisibility=0.1) for k in range(3)])
    entry = {"path": str(tmp_path), "protocol": "short", "resize": "focal:100"}
    line = "none of 1040 draws gave a sample; the last: "
    for unused, why in (
        ({"covisibility_min": 0.25}, r"its covisibility, 0\.1, is below covisibility_min = 0\.25$"),
        ({"task": "objects"}, "it has no labels that task objects can ask about$"),
    ):
        with pytest.raises(UserError, match=line + why):
            survey.mix_report({"x": {**entry, **unused}}, settings, samples=20)


def test_the_largest_sample_is_named_for_the_lists_in_use(table, settings):
    """What it needs is what fits: one block less does not."""
    budget = RowBudget(1024, 512, 512, pair_block=16, pairs=200, patch_pairs=90)
    own = dataclasses.replace(settings, budget=budget, mode="independent")
    report = survey.mix_report(table, own, samples=60)
    assert set(report.longest) == {"pairs", "patch_pairs"} == set(report.to_json()["longest"])
    text = printed(report)
    for name, most in report.longest.items():
        assert f"{getattr(budget, name):,}; the largest sample needs {most:,}" in text
    opened = Opened(table, dataclasses.replace(own, budget=survey.UNBOUNDED), 1)
    drawn = [opened.mixture.sample(index) for index in range(60)]
    for name, most in report.longest.items():
        loose = dataclasses.replace(budget, pairs=10**6, patch_pairs=10**6)
        assert all(fits([s], dataclasses.replace(loose, **{name: most})) for s in drawn)
        assert not all(fits([s], dataclasses.replace(loose, **{name: most - 1})) for s in drawn)
    assert survey.mix_report(table, settings, samples=20).longest == {}


def test_the_images_drawn_are_not_kept(settings, tmp_path):
    """200 samples of 300 kB of noise: all images together would be 60 MB."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 400, 3), dtype=np.uint8)
    record = small_record(0, (400, 256))
    view = dataclasses.replace(record.views[0], image=records.encode_image(pixels, "noise"))
    assert len(view.image.data) > 300_000
    write_shard(tmp_path / "a.array_record", [dataclasses.replace(record, views=(view,))] * 4)
    entry = {"path": str(tmp_path), "protocol": "short", "resize": "focal:50", "questions": 6}
    tracemalloc.start()
    report = survey.mix_report({"x": entry}, settings, samples=200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.samples == 200
    assert peak < 20_000_000


def test_proposed_rows_hold_every_sample(table, settings):
    report = survey.mix_report(table, settings, samples=120)
    sizes = np.concatenate([share.sizes for share in report.shares])
    assert len(sizes) == report.samples == 120
    for fill in report.proposed:
        assert (sizes.max(0) <= [fill.budget.tokens, fill.budget.patches, fill.budget.targets]).all()
        assert fill.token_fill > 0.9
        assert fill.budget.patches % 4 == 0
    # The forecast is what the loader then does.
    best = report.proposed[0]
    sized = SampleSettings(settings.chat, settings.vision, best.budget)
    batches = load(Opened(table, sized, 4), sized, 6, workers=0)
    for name in ("token_fill", "patch_fill", "text_work", "vision_work"):
        mean = np.mean([batch.stats[name] for batch in batches])
        assert mean == pytest.approx(getattr(best, name), rel=0.1), name


def plain(tokens: int):
    """A sample of text alone."""
    return unsupervised(np.zeros(tokens, np.int32), np.zeros((3, tokens), np.int32), np.zeros(0, np.int32), ())


def test_rows_as_measured_by_hand():
    budget = RowBudget(100, 32, 10)
    fill = survey.row_fill(survey.in_rows([plain(40)] * 80, budget), budget)
    assert (fill.samples, fill.token_fill, fill.patch_fill) == (2, 0.8, 0)
    assert fill.text_work == pytest.approx(100**2 / (2 * 40 * 41 / 2))
    # A sample that is too large will be cropped to a full row.
    fill = survey.row_fill(survey.in_rows([plain(150)] * 80, budget), budget)
    assert (fill.samples, fill.token_fill) == (1, 1)


def test_lists_for_long_samples():
    """Two samples of nine blocks each in a row, causal in themselves; a third starts the next row."""
    block, samples = survey.PAIR_BLOCK, [plain(9 * survey.PAIR_BLOCK)] * 24
    rows = survey.in_rows(samples, plain_budget := RowBudget(19 * block, block, 10))
    budget = survey._with_lists(rows, plain_budget)
    assert (budget.pair_block, budget.pairs, budget.patch_pairs) == (block, 128, 0)
    fill = survey.row_fill(rows, budget)
    n = 9 * block
    assert (fill.samples, fill.text_work) == (2, pytest.approx(45 * block**2 / (n * (n + 1) / 2)))


@pytest.fixture
def command(tiny_model, tmp_path, monkeypatch):
    """The arguments of `vlm3 data mix` for the small run of the training tests."""
    monkeypatch.setenv("RUN_MODEL", str(tiny_model))
    monkeypatch.setenv("RUN_DATA", str(write_records(tmp_path / "data")))
    path = os.path.join(os.path.dirname(__file__), "..", "train", "run_config.py")
    return ["data", "mix", f"--config={path}", f"--workdir={tmp_path / 'w'}", "--samples=60"]


def test_command(command, capsys):
    assert cli.main([*command, "--config.train.batch=9"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("component records share drawn epochs questions lost", "match 24", "data.row_tokens 256",
                  "tokens filled", "questions: ", "repeated most: depth, ",
                  "patches filled", "attention work, text", "attention work, vision", "rows for 9 samples",
                  "60 samples drawn; 0 records passed over, 0 bad", "of 9 asked",
                  "steps for 1,000 samples"):  # fmt: skip
        assert words in text, words


def test_command_as_json(command, capsys):
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shares"]["depth"]["share"] == pytest.approx(2 / 3)
    assert found["shares"]["depth"]["epochs"] == pytest.approx(1000 * 2 / 3 / 24)
    assert found["configured"]["budget"]["tokens"] == 256
    assert len(found["proposed"]) == 3
    assert found["step"]["mean_samples"] == pytest.approx(2 * found["configured"]["samples"])
    for fill in [found["configured"], *found["proposed"]]:
        assert min(fill["text_work"], fill["vision_work"]) >= 1
        assert 0 < fill["token_fill"] <= 1
    assert {"mean", "largest"} == set(found["shares"]["match"]["tokens"])
