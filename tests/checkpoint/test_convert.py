"""`vlm3 convert`: what goes there and back is the same, Orbax and transformers read it, a kill costs little."""

import copy
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
import torch

from tests.checkpoint_files import stored
from tests.model import reference as ref
from vlm3_jax import cli, pretrained
from vlm3_jax.checkpoint import hf, layouts, tiny
from vlm3_jax.checkpoint.copying import copy_into
from vlm3_jax.data.schedule import Schedule
from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps
from vlm3_jax.train.checkpoints import Checkpoints
from vlm3_jax.train.trainable import Trainable

ROOT = pathlib.Path(__file__).resolve().parents[2]


def convert(*arguments) -> None:
    assert cli.main(["convert", *map(str, arguments)]) == 0


def flat(folder, dtype=None) -> dict:
    return parameters.flatten(hf.load(folder, dtype)[1])


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(
        one[k].dtype == two[k].dtype and one[k].tobytes() == two[k].tobytes() for k in one
    )


@pytest.fixture(scope="module", params=["plain", "odd", "moe"], ids=["untied", "tied", "experts"])
def pair(request):
    return ref.pair(request.param)


@pytest.fixture(scope="module")
def converted(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "ours"
    convert(tiny_model, folder)
    return folder


def test_experts_go_back_in_the_order_they_came_in(tmp_path):
    """[E, in, out] as released, where what transformers has saved is [E, out, in] (the test below)."""
    source = tiny.make(tmp_path / "source", "moe")
    shape = [6, 48, 80]
    convert(source, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back")
    assert stored(tmp_path / "back") == stored(source)
    with safetensors.safe_open(tmp_path / "back" / "model.safetensors", "numpy") as file:
        assert file.get_slice("model.language_model.layers.0.mlp.experts.gate_up_proj").get_shape() == shape
    attributes = tmp_path / "ours" / "params" / "text.layers.experts_in" / ".zattrs"
    assert not attributes.exists()
    attributes.write_text('{"hf_shape": [1, 2, 3]}')
    assert cli.main(["convert", str(tmp_path / "ours"), str(tmp_path / "again")]) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk", [64 * 2**20, 10_000])
def test_bytes_survive_the_way_there_and_back(pair, dtype, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(layouts, "_SMALL_BYTES", min(chunk, 2**20))
    source = tmp_path / "source"
    copy.deepcopy(pair.theirs).to(getattr(torch, dtype)).save_pretrained(source)
    convert(source, tmp_path / "ours")
    largest = max(path.stat().st_size for path in (tmp_path / "ours" / "params").glob("text.layers*/*.*.*"))
    assert largest <= chunk
    convert(tmp_path / "ours", tmp_path / "back", "--max-shard-gb=0.0001")
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 3
    assert stored(tmp_path / "back") == stored(source)
    assert ("lm_head.weight" in stored(source)) == (not pair.cfg.text.tie_word_embeddings)
    for path in source.glob("*.json"):
        assert (tmp_path / "back" / path.name).read_text().strip() == path.read_text().strip()
    assert {path.name for path in tmp_path.iterdir()} == {"source", "ours", "back"}


def test_transformers_loads_what_comes_back(pair, tmp_path, rng):
    convert(pair.folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back")
    ref.check_loads(pair, tmp_path / "back", rng)


def test_dtypes_are_those_of_torch(pair, tmp_path):
    convert(pair.folder, tmp_path / "ours", "--dtype=bfloat16")
    convert(tmp_path / "ours", tmp_path / "back")
    copy.deepcopy(pair.theirs).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    assert stored(tmp_path / "back") == stored(tmp_path / "theirs")
    for folder in ("ours", "back"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["dtype"] == "bfloat16"
    convert(tmp_path / "ours", tmp_path / "wide", "--dtype=float32")
    wide = {k: torch.tensor(v) for k, v in flat(tmp_path / "wide").items()}
    assert all(v.dtype == torch.float32 and torch.equal(v, v.to(torch.bfloat16).float()) for v in wide.values())


def test_a_checkpoint_is_loaded_as_its_source(tiny_model, converted):
    assert pretrained.open(str(converted), ".").folder == converted
    assert hf.load(converted)[0] == hf.load(tiny_model)[0]
    assert same(flat(converted), flat(tiny_model))
    names = {path.name for path in converted.iterdir()}
    assert names == {path.name for path in tiny_model.iterdir()} - {hf.SINGLE} | {"params"}


def test_orbax_restores_it_by_itself(tiny_model, converted):
    """Under the parameters' names and in the shardings asked for: Orbax's own classes, none of ours."""
    expected, device = hf.load(tiny_model)[1], jax.devices()[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, ml_dtypes.bfloat16, sharding=sharding), expected)
    with ocp.StandardCheckpointer() as checkpointer:
        standard = checkpointer.restore(converted / "params", abstract)
    arguments = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=sharding), expected)
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(converted / "params", args=ocp.args.PyTreeRestore(restore_args=arguments))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        composite = checkpointer.restore(converted, ocp.args.Composite(params=ocp.args.StandardRestore(abstract)))
    for restored, dtype in (
        (standard, ml_dtypes.bfloat16),
        (tree, np.float32),
        (composite["params"], ml_dtypes.bfloat16),
    ):
        assert jax.tree.structure(restored) == jax.tree.structure(expected)
        for ours, value in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
            assert (ours.dtype, ours.sharding) == (dtype, sharding)
            np.testing.assert_array_equal(ours, value.astype(dtype))


def test_dry_run_touches_nothing(pair, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in pair.folder.rglob("*")}
    convert(pair.folder, tmp_path / "ours", "--dry-run", "--dtype=bfloat16")
    text = capsys.readouterr().out
    total = pair.theirs.num_parameters()
    assert f"{pair.folder}: HF directory -> Orbax checkpoint" in text
    assert f"{len(stored(pair.folder))} tensors, {2 * total:,} bytes as bfloat16" in text
    counts = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in text.splitlines()[2:]}
    visual = pair.theirs.model.visual
    mergers = sum(p.numel() for m in (visual.merger, visual.deepstack_merger_list) for p in m.parameters())
    tower = sum(p.numel() for p in visual.parameters())
    tables = pair.theirs.get_input_embeddings().weight.numel() * (1 if pair.cfg.text.tie_word_embeddings else 2)
    expected = {"vision": tower - mergers, "merger": mergers, "embeddings": tables, "total": total}
    assert counts == expected | {"decoder": total - tower - tables}
    assert not any(tmp_path.iterdir())
    assert {path: path.stat().st_mtime_ns for path in pair.folder.rglob("*")} == before


# Kills the process that converts when it comes to a tensor, the last but some, after others are done.
KILL = """
import os, signal, sys
from vlm3_jax import cli
from vlm3_jax.checkpoint import writing
write, count = writing._write_pieces, iter(range(1000))
def counting(*arguments):
    if next(count) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)
writing._write_pieces = counting
sys.exit(cli.main(sys.argv[2:]))
"""


def python(*arguments, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_killed_conversion_goes_on(way, tiny_model, converted, tmp_path, monkeypatch):
    source, whole = (tiny_model, converted) if way == "there" else (converted, tiny_model)
    arguments = [source, tmp_path / "out", *([] if way == "there" else ["--max-shard-gb=0.0002"])]
    killed = python("-c", KILL, 60, "convert", *arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    aside = tmp_path / "out.converting"
    assert [path.name for path in tmp_path.iterdir()] == [aside.name]
    journal = (aside / ".progress").read_text().splitlines()
    # Those that were just being written, at most one a worker, are done again.
    assert 58 <= len(journal) - 1 <= 60
    from vlm3_jax.checkpoint import writing

    write, again = writing._write_pieces, []
    monkeypatch.setattr(writing, "_write_pieces", lambda *a: (again.append(a[1].name), write(*a))[1])
    convert(*arguments)
    assert len(again) == len(set(again)) == 104 - (len(journal) - 1)
    assert same(flat(tmp_path / "out"), flat(whole))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / ".progress").exists()


@pytest.mark.parametrize("change", ["source", *(pytest.param(c, marks=pytest.mark.slow) for c in ("dtype", "boot"))])
def test_what_an_other_source_left_is_not_taken(change, tmp_path, monkeypatch):
    source = tiny.make(tmp_path / "source", "test", seed=1)
    assert python("-c", KILL, 60, "convert", source, tmp_path / "out").returncode == -signal.SIGKILL
    more = []
    if change == "source":
        tiny.make(source, "test", seed=2)
    elif change == "dtype":
        more = ["--dtype=bfloat16"]
    else:
        from vlm3_jax.checkpoint import writing

        monkeypatch.setattr(writing, "_boot", lambda: "another boot")
        # What a crash of the machine does to files that were not synced.
        for path in (tmp_path / "out.converting" / "params").glob("*/[0-9]*"):
            path.write_bytes(bytes(path.stat().st_size))
    convert(source, tmp_path / "out", *more)
    assert same(flat(tmp_path / "out"), flat(source, "bfloat16" if more else None))


def test_one_at_a_time(tiny_model, tmp_path, capsys):
    import fcntl

    aside = tmp_path / "out.converting"
    aside.mkdir()
    with open(aside / ".progress", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cli.main(["convert", str(tiny_model), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"vlm3 convert: {aside}: another process is writing it\n"


@pytest.fixture(scope="module")
def workdir(tiny_model, tmp_path_factory):
    """Two steps of a run as training saves them, and the parameters of each."""
    folder, (cfg, params) = tmp_path_factory.mktemp("workdir"), hf.load(tiny_model)
    mesh, tx = meshes.make_mesh(devices=jax.devices()[:1]), optimizers.optax.scale_by_adam()
    checkpoints, states = Checkpoints(folder), {}
    for step in (3, 12):
        states[step] = jax.tree.map(lambda x, step=step: x * np.float32(step), params)
        state = steps.create_state(cfg, states[step], tx, mesh)
        checkpoints.save(step, state, Schedule(np.arange(8), ()), {"seed": 0})
    checkpoints.close()
    hf.copy_files(tiny_model, folder / "model")
    return folder, states


def test_a_workdir_becomes_an_hf_directory(workdir, tiny_model, tmp_path):
    folder, states = workdir
    for options, step in (((), 12), (("--step=3",), 3)):
        convert(folder, tmp_path / str(step), *options)
        assert same(flat(tmp_path / str(step)), parameters.flatten(states[step]))
        assert {p.name for p in (tmp_path / str(step)).iterdir()} == {p.name for p in tiny_model.iterdir()}


def test_a_workdir_is_a_model(workdir, tmp_path):
    """Of a run that has not exported yet: its newest step; its folder `model` stands for the same."""
    folder, states = workdir
    found = pretrained.open(str(folder), tmp_path).folder
    assert found == folder / "model"
    assert same(flat(found), parameters.flatten(states[12]))
    assert same(flat(folder), parameters.flatten(states[12]))


def test_parameters_are_saved_under_their_names(workdir):
    folder, states = workdir
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder / "checkpoints" / "12" / "params")
    jax.tree.map(np.testing.assert_array_equal, restored, states[12])


def test_adapters_are_merged(tiny_model, tmp_path):
    from vlm3_jax import config as configs

    config = configs.base()
    config.train.lora.rank, config.train.lora.targets = 3, ("q_proj", "qkv")
    (cfg, params), mesh = hf.load(tiny_model), meshes.make_mesh(devices=jax.devices()[:1])
    trainable = Trainable.from_config(cfg, config)
    params = parameters.flatten(trainable.start(params, 0))
    rng = np.random.default_rng(0)
    params = {k: v + rng.standard_normal(v.shape).astype(v.dtype) if "lora" in k[-1] else v for k, v in params.items()}
    tx = optimizers.make(cfg, config.optimizer, trainable.trained_rows)
    state = steps.create_state(cfg, parameters.nest(params), tx, mesh, trainable)
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, state, Schedule(np.arange(8), ()), trainable.facts())
    checkpoints.close()
    hf.copy_files(tiny_model, tmp_path / "run" / "model")
    convert(tmp_path / "run", tmp_path / "out")
    before = flat(tiny_model)
    merged = before | {
        target.path: np.stack([trainable.lora.merge(*layer) for layer in zip(*(params[row.path] for row in rows))])
        for target, pair in trainable.lora.pairs().items()
        for rows in [(target, *pair)]
    }
    assert same(flat(tmp_path / "out"), merged)
    assert {k[-1] for k in before if before[k].tobytes() != merged[k].tobytes()} == {"q_proj", "qkv"}
    abstract = trainable.split(steps.abstract_state(cfg, tx, mesh, trainable).params)[1]
    loaded = parameters.flatten(hf.load_sharded(tmp_path / "run", abstract))
    assert same({k: np.asarray(v) for k, v in loaded.items()}, merged)


@pytest.mark.parametrize("shape", [(600, 130), (3, 130, 70), (2, 5, 66, 300), (7,), (1, 9, 1)])
def test_copies_of_any_layout(shape, rng):
    array = rng.standard_normal(shape).astype(np.float32)
    for order in (range(len(shape)), reversed(range(len(shape))), [*range(1, len(shape)), 0]):
        view = array.transpose(*order)
        for source, dtype in ((view, np.float32), (view.astype(ml_dtypes.bfloat16), np.float32), (view, np.float16)):
            target = np.full(source.shape, 9, dtype)
            copy_into(target, source)
            np.testing.assert_array_equal(target, source.astype(dtype))
    part = array[..., ::2]
    target = np.empty(part.shape, np.float32)
    copy_into(target, part)
    np.testing.assert_array_equal(target, part)


@pytest.mark.slow
def test_memory_stays_far_below_the_model(tmp_path):
    """RssAnon of both ways of 116 MB, sampled, above that of a process that only looks at the files."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import bench_convert
    finally:
        sys.path.pop(0)
    bench_convert.make(tmp_path / "hf", "cpu")
    command = [sys.executable, "-m", "vlm3_jax.cli", "convert"]
    ways = (("hf", "none", "--dry-run"), ("hf", "ours"), ("ours", "back"))
    peaks = [
        bench_convert.measure([*command, str(tmp_path / source), str(tmp_path / target), *more])[1]
        for source, target, *more in ways
    ]
    assert max(peaks) - peaks[0] < 60e6, peaks
    assert stored(tmp_path / "back") == stored(tmp_path / "hf")


def test_a_value_too_large_is_named(tiny_model, tmp_path):
    cfg, params = hf.load(tiny_model)
    params["text"]["norm"][3] = 1e6
    hf.save(tmp_path / "source", cfg, params, tiny_model)
    with pytest.raises(UserError, match=r"language_model\.norm\.weight: holds values too large for float16"):
        hf.save(tmp_path / "out", cfg, params, tiny_model, "float16")
