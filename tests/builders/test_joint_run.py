"""One training run over many data sets, built by `vlm3 data build` from their original layouts, and conversations."""

import json

import pytest

from tests import own_data
from tests.builders import (
    streets,
    test_ase,
    test_blended_mvs,
    test_dl3dv,
    test_dynamic_replica,
    test_gta_sfm,
    test_mpsd,
    test_mvs_synth,
    test_paralleldomain4d,
    test_realestate10k,
    test_sail_vos3d,
    test_spring,
    test_tartanair,
    test_unreal_stereo4k,
)
from tests.support import rows_of_metrics
from vlm3_jax import cli

# Their raw folders, as their own tests write them.
ase, blended_mvs, dl3dv, gta_sfm = test_ase.raw, test_blended_mvs.raw, test_dl3dv.raw, test_gta_sfm.raw
dynamic_replica, mpsd, mvs_synth = test_dynamic_replica.raw, test_mpsd.raw, test_mvs_synth.raw
paralleldomain4d, sail_vos3d, spring = test_paralleldomain4d.raw, test_sail_vos3d.raw, test_spring.raw
tartanair, unreal_stereo4k = test_tartanair.raw, test_unreal_stereo4k.raw


@pytest.fixture(scope="module")
def street_scenes(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("streets"), 3)


@pytest.fixture(scope="module")
def realestate10k(tmp_path_factory):
    folder = tmp_path_factory.mktemp("realestate10k")
    test_realestate10k.write(folder)
    return folder


# Which tasks each is asked for.
SETS = {
    "ase": ("correspondence", "pose"),
    "blended_mvs": ("correspondence", "pose"),
    "dl3dv": ("pose",),
    "dynamic_replica": ("correspondence", "depth"),
    "gta_sfm": ("depth",),
    "mpsd": ("pose",),
    "mvs_synth": ("correspondence",),
    "paralleldomain4d": ("depth",),
    "realestate10k": ("pose",),
    "sail_vos3d": ("pose",),
    "spring": ("correspondence",),
    "street_scenes": ("depth",),
    "tartanair": ("depth", "pose"),
    "unreal_stereo4k": ("correspondence",),
}
CONFIG = """
from vlm3_jax import mixtures, recipes
from vlm3_jax.config import component_config

SETS = {sets!r}


def get_config():
    config = recipes.tiny()
    for name, tasks in SETS.items():
        for task in tasks:
            config.data.components[name + "_" + task] = component_config(
                path="{data}/" + name, task=task, protocol="short", resize="focal:60", questions=3, covisibility_min=0.1
            )
    config.data.components.talk = component_config(
        kind="conversations", path="{talk}/talk.json", images="{talk}/photos", task="conversation", resize="longest:96"
    )
    config.data.row_tokens, config.data.row_patches, config.data.row_targets = 512, 512, 256
    config.data.pair_block = config.data.pairs = config.data.patch_pairs = 0
    config.data.rows, config.data.max_bad_fraction = 4, 0.0
    config.optimizer.learning_rate = 1e-3
    config.train.samples, config.train.log_every, config.train.save_every, config.train.eval_every = 400, 5, 0, 0
    return config
"""


@pytest.mark.slow
def test_a_joint_run_over_fourteen_sets_and_conversations(request, tmp_path):
    for name in SETS:
        raw = request.getfixturevalue(name)
        out = tmp_path / "data" / name
        assert cli.main(["data", "build", name, f"--raw={raw}", f"--out={out}", "--workers=1"]) == 0, name
        counts = json.loads((out / "build.json").read_text())["counts"]
        assert counts["written"] > 0, name
        assert counts["failed"] == 0, name
    own_data.conversations(tmp_path / "talk")
    config = tmp_path / "joint.py"
    config.write_text(CONFIG.format(sets=SETS, data=tmp_path / "data", talk=tmp_path / "talk"))
    workdir = tmp_path / "run"
    assert cli.main(["train", f"--config={config}", f"--workdir={workdir}"]) == 0
    rows = rows_of_metrics(workdir)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not (workdir / "quarantine.jsonl").exists()
    assert (workdir / "export" / "model.safetensors").exists()
