"""Checkpoints of a run: which are kept, what damage is noticed, what is refused. Meshes: tests/train/mesh_worker.py."""

import asyncio
import contextlib
import errno
import gc
import json
import os
import pathlib
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import files_of_at_most
from vlm3_jax.data.schedule import Schedule
from vlm3_jax.errors import Again, UserError
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.train import checkpoints, settings
from vlm3_jax.train.checkpoints import Checkpoints
from vlm3_jax.train.checksums import checksums
from vlm3_jax.train.step import TrainState

FACTS = {"seed": 0}
# Reads and writes that fail behind the first one of their checkpoint, which is raised, end in threads of Orbax.
others_fail = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(step: int, shape=(96, 64)) -> TrainState:
    """Two parameters with two moments each; all values follow from `step`."""
    rng, whole = np.random.default_rng(step), meshes.replicated(meshes.make_mesh(devices=jax.devices()[:1]))

    def tree():
        numbers = {"embed": rng.standard_normal(shape), "norm": rng.standard_normal(3)}
        return {"text": {k: jax.device_put(np.float32(v), whole) for k, v in numbers.items()}}

    count = [jax.device_put(np.int32(n), whole) for n in (step, step, 10 * step)]
    return TrainState(tree(), (count[0], tree(), tree()), *count[1:])


def schedule_at(step: int) -> Schedule:
    return Schedule(np.arange(4) + 1000 * step, ())


def save(folder, steps=(), losses=None, **options) -> list[int]:
    """Saves states, one after the other; the steps that are there then."""
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(step, make_state(step), schedule_at(step), FACTS, losses=(losses or {}).get(step))
    checkpoints.wait()
    found = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdecimal())
    checkpoints.close()
    return found


def restore(folder, like=None, facts=FACTS, config=None):
    """(state, schedule, what the user is told)."""
    checkpoints = Checkpoints(folder)
    try:
        state, schedule = checkpoints.restore(jax.eval_shape(lambda: like) if like else abstract(), facts, config)
        return state, schedule, checkpoints.notes
    finally:
        checkpoints.close()


def abstract(state=None) -> TrainState:
    state = state or make_state(0)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_is(state: TrainState, schedule: Schedule, step: int) -> None:
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(step)), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    np.testing.assert_array_equal(schedule.cursors, schedule_at(step).cursors)


def test_which_are_kept(tmp_path):
    losses = {step: {"eval_loss/a": abs(step - 3.2), "eval_loss/b": -step} for step in range(1, 9) if step != 4}
    assert save(tmp_path / "newest", range(1, 9)) == [7, 8]
    assert save(tmp_path / "every", range(1, 9), keep=1, keep_every=3) == [3, 6, 8]
    assert save(tmp_path / "best", range(1, 7), losses, keep=1, keep_best="eval_loss/a") == [3, 6]
    # After a restart the best one is known; another loss, or none, chooses anew.
    assert save(tmp_path / "best", (7, 8), losses, keep=1, keep_best="eval_loss/a") == [3, 8]
    assert save(tmp_path / "best", (9,), {9: {"eval_loss/b": np.nan}}, keep=1, keep_best="eval_loss/b") == [8, 9]
    assert save(tmp_path / "best", (10,), {}, keep=1) == [10]


def test_a_damaged_loss_is_no_obstacle(tmp_path):
    losses = {step: {"eval_loss/a": float(step)} for step in range(1, 5)}
    assert save(tmp_path, (1, 2, 3), losses, keep=1, keep_best="eval_loss/a") == [1, 3]
    (tmp_path / "checkpoints/1/meta/metadata").write_text("{")
    assert save(tmp_path, (4,), losses, keep=1, keep_best="eval_loss/a") == [3, 4]


def data_file(step: pathlib.Path, item: str) -> pathlib.Path:
    """The largest file of an item, which holds most of its values."""
    return max((p for p in (step / item).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: pathlib.Path, place: float, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)


def rewrite_meta(step: pathlib.Path, change) -> None:
    path = step / "meta" / "metadata"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGE = {
    "a bit of a parameter": lambda step: flip(data_file(step, "params"), 0.5),
    "a bit of a moment": lambda step: flip(data_file(step, "optimizer"), 0.5),
    "parameters cut off": lambda step: os.truncate(data_file(step, "params"), 1000),
    "moments missing": lambda step: data_file(step, "optimizer").unlink(),
    "no manifest": lambda step: (step / "params/manifest.ocdbt").unlink(),
    "a bit of the manifest": lambda step: flip(step / "params/manifest.ocdbt", 0.5),
    "_METADATA cut off": lambda step: os.truncate(step / "params/_METADATA", 40),
    "array_metadatas cut off": lambda step: os.truncate(step / "params/array_metadatas/process_0", 40),
    "no meta": lambda step: shutil.rmtree(step / "meta"),
    "meta cut off": lambda step: os.truncate(step / "meta/metadata", 40),
    "meta is a list": lambda step: (step / "meta/metadata").write_text("[1]"),
    "another cursor": lambda step: rewrite_meta(step, lambda meta: meta["cursors"].reverse()),
    "no checksum of meta": lambda step: rewrite_meta(step, lambda meta: meta.pop("crc32")),
    "no parameters": lambda step: shutil.rmtree(step / "params"),
    "nothing": empty,
}


# One of each kind; the others by make test-slow.
QUICK = {"a bit of a parameter", "moments missing", "no manifest", "another cursor", "nothing"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    assert save(folder, (2, 5)) == [2, 5]
    return folder


@others_fail
@pytest.mark.parametrize("damage", [pytest.param(d, marks=[pytest.mark.slow] * (d not in QUICK)) for d in DAMAGE])
def test_a_damaged_checkpoint_falls_back(damage, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints"
    DAMAGE[damage](folder / "5")
    state, schedule, (note,) = restore(tmp_path / "run")
    assert_is(state, schedule, 2)
    assert note.startswith(f"{folder}: step 5 is damaged (")
    assert note.endswith("), kept aside as 5.damaged; going on from step 2")
    assert "\n" not in note
    assert sorted(path.name for path in folder.iterdir()) == ["2", "5.damaged"]
    assert save(tmp_path / "run", (5,)) == [2, 5]
    assert_is(*restore(tmp_path / "run")[:2], 5)


def test_damaged_twice(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints"
    shutil.copytree(folder / "5", folder / "5.damaged")
    empty(folder / "5")
    assert "kept aside as 5.damaged-again" in restore(tmp_path / "run")[2][0]


def test_none_can_be_read(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints"
    flip(data_file(folder / "5", "params"), 0.5)
    empty(folder / "2")
    with pytest.raises(UserError) as caught:
        restore(tmp_path / "run")
    reasons = "step 5: params.text.embed not what was saved, step 2: meta is missing or no JSON object"
    line = f"{folder}: no checkpoint can be read ({reasons}); put back a copy, or use another --workdir"
    assert str(caught.value) == line
    assert sorted(path.name for path in folder.iterdir()) == ["2", "5"]


@contextlib.contextmanager
def few_open_files():
    """Three more than there are now: as many as Orbax takes before it opens the first file of an item."""
    # What earlier tests have left to the collector would give its files back in the middle.
    gc.collect()
    gc.disable()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, limits[1]))
    opened = []
    with contextlib.suppress(OSError):
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    for number in opened[-3:]:
        os.close(number)
    try:
        yield
    finally:
        gc.enable()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number in opened[:-3]:
            os.close(number)


class Several:
    """jax as a process among others sees it."""

    process_count = staticmethod(lambda: 2)

    def __getattr__(self, name):
        return getattr(jax, name)


@others_fail
def test_a_process_among_others_ends_to_try_again(saved, tmp_path, monkeypatch):
    """It cannot go on by itself with an older checkpoint; without one, the next start would begin anew."""
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints"
    for step in ("2", "5"):
        (folder / step / "params/manifest.ocdbt").unlink()
    monkeypatch.setattr(checkpoints, "jax", Several())
    with pytest.raises(Again, match=r"step 5 is damaged \(.*kept aside as 5\.damaged; the same command goes on from"):
        restore(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no checkpoint can be read \(step 2: ") as caught:
            restore(tmp_path / "run")
        assert not isinstance(caught.value, Again)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "5.damaged"]


# An event loop of Orbax that cannot be made is thrown away half made, and says so when it is.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_too_many_open_files_are_no_damage(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints"
    line = rf"{folder}: step 5 cannot be read \(Too many open files\); once that is mended, the same command goes on"
    checkpoints, errors = Checkpoints(tmp_path / "run"), []
    # Threads that earlier tests have left may give files back in the middle, so that there is room: then again.
    for _ in range(10):
        with few_open_files():
            try:
                checkpoints.restore(abstract(), FACTS)
            except UserError as error:
                errors.append(str(error))
                break
    checkpoints.close()
    assert re.match(line, errors[0])
    assert_is(*restore(tmp_path / "run")[:2], 5)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "5"]


def wrapped(error: BaseException) -> Exception:
    """As Orbax raises what happens while an array is read."""
    outer = Exception("Encountered error while reading array index: (slice(0, 96, 1),). See full TensorStore details:")
    outer.__cause__ = error
    return outer


def stored(number: int) -> Exception:
    return wrapped(
        ValueError(
            'PERMISSION_DENIED: Error reading "text.embed/0.0" in OCDBT database at local file "/run/5/params/": '
            f"Failed to open: \"/run/5/params/d/53\": Permission denied [os_error_code='{number}']"
        )
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (wrapped(asyncio.CancelledError()), KeyboardInterrupt),
        (wrapped(MemoryError()), MemoryError),
        (stored(errno.EACCES), UserError),
        (PermissionError(errno.EACCES, "Permission denied"), UserError),
        (OSError(errno.ESTALE, "Stale file handle"), Again),
        (stored(errno.ETIMEDOUT), Again),
        (stored(errno.ENOMEM), Again),
        (stored(errno.EIO), checkpoints.Damaged),
        (OSError(errno.EIO, "Input/output error"), checkpoints.Damaged),
        (stored(errno.ENOENT), checkpoints.Damaged),
        (ValueError("no number"), checkpoints.Damaged),
    ],
)
def test_what_an_error_says_of_a_checkpoint(saved, monkeypatch, error, kind):
    def fail(*_, **__):
        raise error

    checkpoints = Checkpoints(saved)
    meta = checkpoints._meta(5)
    monkeypatch.setattr(checkpoints._manager, "restore", fail)
    with pytest.raises(kind) as caught:
        checkpoints._state(5, meta, abstract())
    assert type(caught.value) is kind
    if isinstance(error, OSError):
        monkeypatch.setattr(pathlib.Path, "read_bytes", fail)
        with pytest.raises(kind):
            checkpoints._meta(5)


def test_intact_checkpoints_are_told_nothing_about(saved):
    state, schedule, notes = restore(saved)
    assert_is(state, schedule, 5)
    assert notes == []


def test_another_model_is_refused(saved):
    other = make_state(0, (96, 32))
    message = (
        r"params\.text\.embed is float32 \[96, 64\] in step 5 and float32 \[96, 32\] here: .* use another --workdir"
    )
    with pytest.raises(UserError, match=message) as caught:
        Checkpoints(saved).restore(abstract(other), FACTS)
    assert "opt_state" not in str(caught.value)
    with pytest.raises(UserError, match=r"the saved run has seed = 0, the configuration 1; use another --workdir"):
        Checkpoints(saved).restore(abstract(), {"seed": 1})
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["2", "5"]


def test_changed_settings_are_told(tmp_path):
    config = {"workdir": "a", "optimizer": {"clip": 1.0, "rates": {"vision": 1.0}}, "train": {"keep": 2}, "old": 1}
    config["data"] = {"components": {"depth": {"weight": 1.0}}, "workers": 4}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, make_state(3), schedule_at(3), FACTS, config)
    checkpoints.close()
    assert restore(tmp_path, config=config)[2] == []
    harmless = json.loads(json.dumps(config)) | {"workdir": "b", "train": {"keep": 5}, "new": 2}
    harmless["data"]["workers"] = 0
    assert restore(tmp_path, config=harmless)[2] == []
    changed = json.loads(json.dumps(config))
    changed["optimizer"] = {"clip": 0.5, "rates": {"vision": 0.1}}
    changed["data"]["components"]["pose"] = {"weight": 2.0}
    assert restore(tmp_path, config=changed)[2] == [
        "settings changed since step 3, and are used as they are now: data.components depth -> depth, pose, "
        "optimizer.clip 1.0 -> 0.5, optimizer.rates.vision 1.0 -> 0.1"
    ]
    many = settings.changes({f"a{n}": n for n in range(9)}, {f"a{n}": 0 for n in range(9)})
    assert many == "a1 1 -> 0, a2 2 -> 0, a3 3 -> 0, a4 4 -> 0, and 4 more"


def check_until_it_fails(checkpoints):
    while True:
        checkpoints.check()


@others_fail
def test_a_save_that_fails(tmp_path, capfd):
    """Told once, in one line; what was saved before stays, and the same step can be saved once there is room."""
    save(tmp_path, (1, 2))
    checkpoints = Checkpoints(tmp_path)
    line = (
        rf"{tmp_path}/checkpoints: step 3 cannot be saved \(File too large\); .* the same command goes on from step 2"
    )
    with files_of_at_most(10_000):
        checkpoints.save(3, make_state(3), schedule_at(3), FACTS)
        with pytest.raises(UserError, match=line) as caught:
            checkpoints.wait()
        assert "\n" not in str(caught.value)
        checkpoints.save(4, make_state(4), schedule_at(4), FACTS)
        with pytest.raises(UserError, match="step 4 cannot be saved"):
            check_until_it_fails(checkpoints)
        checkpoints.close()
    assert capfd.readouterr() == ("", "")
    assert_is(*restore(tmp_path)[:2], 2)
    assert save(tmp_path, (3,)) == [2, 3]
    assert_is(*restore(tmp_path)[:2], 3)
    # What the failed saves had left is gone.
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def on_mesh(array) -> jax.Array:
    return jax.device_put(array, meshes.replicated(meshes.make_mesh(devices=jax.devices()[:1])))


def checksum(array) -> int:
    (value,) = checksums({"a": on_mesh(np.asarray(array))}).values()
    return value


def test_known_checksums():
    """MurmurHash3 of an empty key is its finalizer on the seed; the two published values."""
    assert checksum(np.array([1], np.uint32)) == 0x514E28B7
    assert checksum(np.array([0xFFFFFFFF], np.uint32)) == 0x81F16F39
    assert checksum(np.zeros(1, np.float32)) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8"])
def test_damage_changes_a_checksum(dtype, rng):
    values = np.asarray(jnp.asarray(rng.integers(-100, 100, (5, 3, 8)), dtype))
    seen, size = {checksum(values)}, values.itemsize
    for number in rng.choice(values.nbytes * 8, 24, replace=False):
        data = bytearray(values.tobytes())
        data[number // 8] ^= 1 << number % 8
        seen.add(checksum(np.frombuffer(data, values.dtype).reshape(values.shape)))
    flat = values.reshape(-1)
    swapped = flat.copy()
    swapped[[3, 40]] = flat[[40, 3]] + np.ones((), values.dtype)
    seen |= {checksum(swapped.reshape(values.shape)), checksum(np.zeros_like(values)), checksum(values.swapaxes(1, 2))}
    # The highest bits of two elements, which a sum of products would not see.
    signs = flat.view(f"u{size}").copy()
    signs[[7, 90]] ^= np.array(1 << (8 * size - 1), signs.dtype)
    seen.add(checksum(signs.view(values.dtype).reshape(values.shape)))
    assert len(seen) == 29
