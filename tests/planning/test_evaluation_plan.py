"""`vlm3 plan --eval`: figures that follow from shapes, and what the command prints."""

import json
import math

import pytest

from vlm3_jax import cli
from vlm3_jax import config as configs
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import benchmarks
from vlm3_jax.model import flops, sizes
from vlm3_jax.model import params as parameters
from vlm3_jax.planning import evaluation, topology

MODEL = "Qwen/Qwen3-VL-{}-Instruct"


@pytest.fixture(autouse=True)
def nothing_built(monkeypatch, tmp_path):
    monkeypatch.setenv("VLM3_DATA", str(tmp_path))


def plan(names, where="h100:8", size="4B", reached=0.6, **fields):
    config = configs.base()
    config.model, config.eval.dtype = MODEL.format(size), "bfloat16"
    for name, value in fields.items():
        config.eval[name] = value
    return evaluation.make_plan(config, benchmarks.find(names), topology.parse(where), reached)


def test_memory_is_that_of_the_weights_and_more():
    found = plan(["ibims1"])
    by_tensor = {option.tensor: option for option in found.options}
    count = parameters.count(sizes.released("4b"))
    assert by_tensor[1].weights == 2 * count
    # Few parameters have an axis that eight do not divide.
    assert 2 * count / 8 <= by_tensor[8].weights < 1.1 * 2 * count / 8
    assert all(option.caches > 0 and option.working > 0 for option in found.options)
    assert found.options[0].fits
    assert not any(option.fits for option in plan(["ibims1"], "v5e:2x2", "32B").options if option.tensor < 4)
    larger = plan(["ibims1"], image_sets=64)
    assert larger.options[0].caches > 7 * found.options[0].caches


def test_hours_are_bound_by_what_has_to_be_computed():
    found = plan(["ibims1"], reached=1.0)
    (work,) = found.works
    # 640 x 480 at focal length 1,000 instead of 560: 1,142 x 857 pixels, in tokens of 32.
    assert (work.records, work.questions, work.built) == (100, 100, False)
    assert 0.9 < work.visual / (1142 * 857 / 32**2) < 1.1
    n = work.visual
    cfg = sizes.released("4b")
    once = flops.Lengths(n, work.patches, 0, n * n / 2, work.patches**2)
    asked = work.asked + work.answered
    each = flops.Lengths(asked, 0, work.answered, asked * n, 0)
    total = 100 * (sum(flops.forward(cfg, once).values()) + 100 * sum(flops.forward(cfg, each).values()))
    least = total / flops.PEAK_BF16["NVIDIA H100"] / 8 / 3600
    assert least < found.options[0].hours["ibims1"] < 30 * least
    assert plan(["ibims1"], "h100:8x4", reached=1.0).options[0].hours["ibims1"] == pytest.approx(
        found.options[0].hours["ibims1"] / 4
    )
    assert plan(["ibims1"], reached=0.5).options[0].hours["ibims1"] == pytest.approx(
        2 * found.options[0].hours["ibims1"]
    )


def test_pairs_have_two_images_and_poses_are_asked_both_ways():
    found = {work.key: work for work in plan(["all"]).works}
    assert len(found) == 15
    pose, matches = found["eth3d_pose"], found["tawb_matches"]
    assert (pose.images, pose.questions, pose.records) == (2, 4, 2 * benchmarks.BENCHMARKS["eth3d_pose"].records)
    assert matches.records * matches.questions == pytest.approx(8192)
    # Longest side 1,024 px.
    assert matches.visual == 2 * 32 * 32


def test_the_command(capsys):
    args = ["plan", "--eval", f"--model={MODEL.format('4B')}", "--bench=depth", "--topology=h100:8"]
    assert cli.main([*args, "--price=3"]) == 0
    shown = capsys.readouterr().out
    assert "about 23,700" in shown
    assert "Suggested" in shown
    assert "cost = hours x 8 devices x 3" in shown
    assert cli.main([*args, "--json", "--config.eval.dtype=float32"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["dtype"] == "float32"
    assert math.isfinite(tree["options"][0]["hours_in_all"])
    assert cli.main(["plan", "--eval", "--topology=h100:8"]) == 2
    assert "--model: missing" in capsys.readouterr().err
    assert cli.main(["plan", "--topology=h100:8"]) == 2
    assert "--config: missing; name a recipe, or give --eval" in capsys.readouterr().err
    with pytest.raises(UserError, match="--bench=cooking"):
        plan(["cooking"])
