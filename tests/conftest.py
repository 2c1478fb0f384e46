"""Shared fixtures: sample data, the tiny model, one seed."""

import gc
import os
import pathlib
import tempfile

import hypothesis
import numpy as np
import pytest
from jaxtyping import install_import_hook

# Before anything imports jax. Compiling is most of what the tests do: without optimisation and the newer fusion
# emitters it takes an eighth of the time, and equal programs compile once (child processes included).
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
_compiled = tempfile.TemporaryDirectory(prefix="vlm3-compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compiled.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# torch's threads spin while they wait for each other, and its models are tiny here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Adds to XLA_FLAGS what makes sums on CPUs right (xla.py), before a test can start jax.
import tests.typecheck  # noqa: E402
import vlm3_jax  # noqa: E402, F401

# Shapes and types of these modules' signatures are checked while tests run (vlm3_jax/shapes.py).
CHECKED = ("camera", "pose", "processor", "model", "infer.decode")
install_import_hook([f"vlm3_jax.{name}" for name in CHECKED], f"{tests.typecheck.__name__}.check")

# The same examples in every run, however long a busy machine takes for one.
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def samples() -> pathlib.Path:
    """The folder of real images with labels; a test that asks for it is skipped where the folder is missing."""
    folder = pathlib.Path(os.environ.get("VLM3_SAMPLES", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder} (set VLM3_SAMPLES)")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> pathlib.Path:
    """The HF directory of the random model "test"; shared, so no test may change it."""
    from vlm3_jax.checkpoint import tiny

    return tiny.make(tmp_path_factory.mktemp("tiny") / "model", "test")


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory):
    """Qwen's real vocabulary as an HF directory."""
    from tests.qwen_reference import write_qwen

    folder = tmp_path_factory.mktemp("qwen")
    write_qwen(folder)
    return folder


@pytest.fixture(scope="session")
def lively(tiny_model, tmp_path_factory):
    """The tiny model with quiet embeddings and loud, sharp layers: as it is, it repeats its last token for ever."""
    from vlm3_jax.checkpoint import hf
    from vlm3_jax.model import params as parameters

    cfg, params = hf.load(tiny_model)
    flat = parameters.flatten(params)
    flat["text", "embed"] *= 0.05
    flat["text", "norm"] *= 20.0
    for path, value in flat.items():
        value *= {"o_proj": 10.0, "down_proj": 4.0, "q_norm": 3.0}.get(path[-1], 1.0)
    return hf.save(tmp_path_factory.mktemp("lively") / "model", cfg, parameters.nest(flat), tiny_model)


@pytest.fixture(scope="session")
def counting(lively, tmp_path_factory):
    """The lively model with louder digits: many of its answers hold numbers, behind none, some or many words."""
    from vlm3_jax.checkpoint import hf
    from vlm3_jax.infer.tree import alphabet_of
    from vlm3_jax.processor.chat import ChatFormat

    cfg, params = hf.load(lively)
    params["text"]["embed"] = np.array(params["text"]["embed"])
    params["text"]["embed"][alphabet_of(ChatFormat.from_dir(lively))] *= 1.6
    return hf.save(tmp_path_factory.mktemp("counting") / "model", cfg, params, lively)


@pytest.fixture(scope="session")
def made(tiny_model, tmp_path_factory) -> pathlib.Path:
    """A folder with records, a DepthLM jsonl, and configs of the small run on either; no test may change it."""
    from tests import support

    root = tmp_path_factory.mktemp("made")
    support.write_records(root / "records")
    support.write_depthlm(root / "depthlm")
    for name in ("records", "depthlm"):
        (root / f"{name}.py").write_text(
            "from tests.support import run_on\n\n"
            f"def get_config(argument=''):\n    return run_on({str(root)!r}, {name!r}, {str(tiny_model)!r})\n"
        )
    return root


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail as a user's mistake; its one line. Only `train` may have said more before."""
    from vlm3_jax import cli

    def run(*words) -> str:
        words = [str(word) for word in words]
        assert cli.main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        lines = err.splitlines()
        assert len(lines) == 1 or words[0] == "train"
        assert lines[-1].startswith(f"vlm3 {words[0]}: ")
        return lines[-1].removeprefix(f"vlm3 {words[0]}: ")

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)


# Files whose tests wait for other processes, or take longest: first, so that no worker is left with one at the end.
LONG = ("test_processes.py", "test_faults.py", "test_demo.py", "test_training_run.py", "test_train_step.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; otherwise the order stays."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """What is imported by now stays: it is searched for garbage no more."""
    gc.collect()
    gc.freeze()
