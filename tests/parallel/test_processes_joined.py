"""Who a process is by flags or by its launcher, and what its last words are."""

import os
import subprocess
import sys

import numpy as np
import pytest

from vlm3_jax.errors import Again, UserError
from vlm3_jax.parallel import processes

SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_STEP_NODELIST": "node[1-4]"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}


@pytest.fixture
def environment(monkeypatch):
    def put(variables):
        for name in {*SLURM, *OPEN_MPI}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "flags", "place"),
    [
        ({}, (None, None, None), (None, None, None)),
        ({}, ("one:1234", 4, 2), ("one:1234", 4, 2)),
        (SLURM, (None, None, None), (None, 4, 2)),
        (OPEN_MPI, (None, None, None), (None, 4, 2)),
        (OPEN_MPI, ("one:1234", None, None), ("one:1234", 4, 2)),
        # The flags win over the launcher.
        (SLURM, ("one:1234", 8, 5), ("one:1234", 8, 5)),
    ],
)
def test_a_place_among_others(environment, variables, flags, place):
    environment(variables)
    assert processes._place(*flags) == place


@pytest.mark.parametrize(
    ("variables", "flags"),
    [
        (SLURM | {"SLURM_NTASKS": "1"}, (None, None, None)),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, (None, None, None)),
        (SLURM, (None, 1, None)),
        ({}, (None, 1, None)),
    ],
)
def test_a_process_alone(environment, variables, flags):
    environment(variables)
    assert processes._place(*flags) is None


def test_a_batch_script_is_no_task(environment):
    environment({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"})
    assert processes._place(None, None, None) == (None, None, None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("one:1234", None, None), r"--processes, --process: missing, and no launcher \(SLURM, Open MPI\) says it"),
        (("one:1234", 4, None), r"--process: missing, and no launcher"),
        ((None, 4, 0), r"--coordinator: missing; give HOST:PORT of process 0"),
        ((None, None, 1), r"--coordinator: missing; give HOST:PORT of process 0"),
        (("one:1234", 4, 4), r"--process=4 is not one of 0 to 3 \(--processes=4\)"),
        (("one", 4, 0), r"--coordinator=one: not of the form HOST:PORT"),
    ],
)
def test_flags_that_do_not_belong_together(environment, flags, message):
    environment({})
    with pytest.raises(UserError, match=message):
        processes._place(*flags)


@pytest.mark.parametrize("variables", [SLURM, SLURM | {"SLURM_NTASKS": "1"}])
def test_a_number_alone_is_no_place(environment, variables):
    """Also in a launcher's environment: a job of one task each would be two runs in one workdir."""
    environment(variables)
    for flags in ((None, None, 1), (None, 2, 1)):
        with pytest.raises(UserError, match="--coordinator: missing"):
            processes._place(*flags)


@pytest.mark.slow
def test_the_config_of_a_process_alone_says_how_many_devices(environment, tmp_path):
    environment({})
    command = [sys.executable, "-m", "vlm3_jax.cli", "train", "--config=depth", f"--workdir={tmp_path}"]
    command += ["--model=tiny:none", "--config.mesh.cpu_devices=2"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vlm3 train: tiny checkpoint: unknown size 'none'")
    assert done.stderr.count("\n") == 1


def test_a_launcher_that_hides_the_first_process(environment):
    """Open MPI 5 tells every process its number, but not where the first one is; several runs in one workdir would be
    the end of it."""
    code = "from vlm3_jax.parallel import processes\nwith processes.joined('train'): print('alone')"
    environment(OPEN_MPI)
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "vlm3 train: process 2 of 4: the launcher does not say where process 0 is; "
        "add --coordinator=HOST:PORT, the same for all\n"
    )


def test_gather_keeps_every_bit():
    values = {"a": np.array([2**53 + 1, -1]), "b": np.array(True), "c": np.array([[1.5]], np.float32)}
    found = processes.gather(values)
    for key, value in values.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value[None])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("a\n file"), 2, "a file"),
        (Again("a\n file"), 1, "a file"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer"),
            1,
            "another process is lost; its own",
        ),
        (ValueError("a mistake of ours"), 1, "failed\nValueError: a mistake of ours"),
    ],
)
def test_last_words(error, code, text):
    found = processes._verdict(error)
    assert found[0] == code
    assert found[1].startswith(text)
