"""The launch examples, as far as they go without their clusters; tools/launch/slurm/try_locally.sh runs SLURM's."""

import copy
import math
import os
import pathlib
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml

from vlm3_jax import cli
from vlm3_jax import config as configs
from vlm3_jax.commands.arguments import read_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "tools" / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch")])
SCHEMA = yaml.safe_load((ROOT / "tests" / "jobset_schema.yaml").read_text())


@pytest.fixture
def jobset() -> dict:
    return yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())


def accepted(arguments, devices: int) -> None:
    """The arguments are those of `vlm3 train`, its config takes them, and so do as many devices."""
    args = cli.make_parser().parse_args(["train", *(a for a in arguments if not a.startswith("--config."))])
    config = read_config(args, [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")])
    assert args.stopped_code == 75
    assert config.workdir.startswith("gs://")
    assert config.data.rows % (devices // config.mesh.tensor) == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert os.access(script, os.X_OK)


def test_jobset_fits_its_schema(jobset):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(jobset, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "failurePolicy", "restarts"), 3),
        (("spec", "failurePolicy", "rules", 0, "action"), "Fail"),
        (("spec", "replicatedJobs", 0, "replicas"), "2"),
        (("spec", "replicatedJobs", 0, "template", "spec", "completionMode"), "indexed"),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "restartPolicy"), "OnFailure"),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "shareProcessNamespace"), "yes"),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "arguments"), []),
    ],
)
def test_the_schema_refuses(jobset, path, value):
    broken = copy.deepcopy(jobset)
    *way, last = path
    place = broken
    for key in way:
        place = place[key]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_jobset_numbers_belong_together(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert chips * spec["parallelism"] == math.prod(map(int, topology.split("x")))
    assert spec["parallelism"] == spec["completions"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {m["name"] for m in container.get("volumeMounts", [])} == {v["name"] for v in pod.get("volumes", [])}
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    program, _, *command = container["command"]
    assert program == "vlm3"
    filled = [argument.replace("BUCKET", "bucket") for argument in (*command, *container["args"])]
    assert filled != [*command, *container["args"]]  # the reader's own: as it stands it is refused
    accepted(filled, chips * spec["parallelism"] * job["replicas"])
    assert f"--config.mesh.replica={job['replicas']}" in container["args"]


def fake(folder, name, text) -> dict[str, str]:
    """An environment in which `name` is a script of ours."""
    path = folder / name
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_xpk_gets_one_command(tmp_path):
    """The tool itself is not here; its options are those of its parser (AI-Hypercomputer/xpk, workload create)."""
    environment = fake(tmp_path, "xpk", 'printf "%s\\n" "$@"\n') | {
        "CLUSTER": "c",
        "IMAGE": "i",
        "VLM3_DATA": "gs://bucket/d",
    }
    arguments = ["--config=depth", "--workdir=gs://bucket/a b", "--config.mesh.replica=2", "--config.data.rows=128"]
    done = subprocess.run([LAUNCH / "gke" / "xpk.sh", *arguments], env=environment, capture_output=True, check=True)
    words = done.stdout.decode().splitlines()
    options = dict(word.removeprefix("--").split("=", 1) for word in words[2:] if "=" in word)
    assert words[:2] == ["workload", "create"]
    assert {key: options[key] for key in ("cluster", "docker-image", "workload")} == {
        "cluster": "c", "docker-image": "i", "workload": "vlm3",
    }  # fmt: skip
    shown = subprocess.run(
        ["bash", "-c", 'exec() { printf "%s\\n" "$@"; }; ' + options["command"]], capture_output=True
    )
    *program, train, rest = shown.stdout.decode().split("\n", 4)
    assert (program, train) == (["env", "VLM3_DATA=gs://bucket/d", "vlm3"], "train")
    accepted(rest.splitlines(), 128)


SRUN = """
while [[ $1 == --* ]]; do shift; done
for SLURM_PROCID in 0 1; do
  export SLURM_PROCID
  "$@"
  code=$?
  highest=$((code > ${highest:-0} ? code : ${highest:-0}))
done
exit "$highest"
"""
VLM3 = """
echo "$@"
((${SIGNAL:-0})) && kill -TERM $PPID
codes=($CODES)
exit "${codes[SLURM_PROCID]}"
"""


def batch(tmp_path, codes, **environment) -> tuple[int, str, bool]:
    """(exit code, last line, whether the job is requeued) of train.sbatch with two tasks that end with these codes."""
    for name, text in (("srun", SRUN), ("vlm3", VLM3), ("scontrol", 'echo "$@" >requeued')):
        path = fake(tmp_path, name, text)
    requeued = tmp_path / "requeued"
    requeued.unlink(missing_ok=True)
    environment = path | {"SLURM_JOB_ID": "7", "CODES": codes} | environment
    command = [LAUNCH / "slurm" / "train.sbatch", "--config=a b"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, env=environment, cwd=tmp_path, **pipes)
    first, *_, last = done.stdout.splitlines()
    assert first == "train --stopped-code=75 --config=a b"
    assert not requeued.exists() or requeued.read_text() == "requeue 7\n"
    return done.returncode, last, requeued.exists()


@pytest.mark.parametrize(
    ("codes", "ended"),
    [
        ("0 0", (0, "train.sbatch: the run is complete", False)),
        ("75 75", (0, "train.sbatch: exit code 75: back into the queue", True)),
        ("1 134", (0, "train.sbatch: exit code 134: back into the queue", True)),
        ("2 2", (2, "train.sbatch: given up, exit code 2", False)),
        ("2 134", (2, "train.sbatch: given up, exit code 2", False)),
        ("139 2", (2, "train.sbatch: given up, exit code 2", False)),
    ],
)
def test_a_batch_job_goes_by_the_codes_of_its_tasks(tmp_path, codes, ended):
    assert batch(tmp_path, codes) == ended


def test_a_batch_job_gives_up_what_only_fails(tmp_path):
    """Clean stops are not counted, however many there were."""
    assert batch(tmp_path, "75 75", SLURM_RESTART_COUNT="99")[2]
    assert all(batch(tmp_path, "1 1", SLURM_RESTART_COUNT="99")[2] for _ in range(5))
    assert batch(tmp_path, "75 75")[2]
    assert all(batch(tmp_path, "1 1")[2] for _ in range(19))
    assert batch(tmp_path, "134 1") == (134, "train.sbatch: given up, exit code 134", False)
    # Submitted again it starts with nothing.
    assert batch(tmp_path, "1 1")[2]


def test_a_signal_does_not_end_the_shell_of_a_task(tmp_path):
    assert batch(tmp_path, "75 75", SIGNAL="1") == (0, "train.sbatch: exit code 75: back into the queue", True)


SSH = """
while [[ $1 == -* ]]; do shift 2; done
host=$1 exec bash -c "$2"
"""
PROGRAM = """
import os, signal, sys, time
flags = [a for a in sys.argv if a.startswith("--")]
print(os.environ["host"], os.getcwd(), *flags, sep="|", flush=True)
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(0)))
time.sleep(3600 if "--wait" in flags else 0)
codes = next((a[8:].split(",") for a in flags if a.startswith("--codes=")), "00")
sys.exit(int(codes["--process=1" in flags]))
"""


def launched(tmp_path, *flags) -> subprocess.Popen:
    """launch.sh on two hosts, with an `ssh` that runs the command here: a stand-in for the network only."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = fake(tmp_path, "ssh", SSH) | {"PORT": "1234", "DIRECTORY": str(tmp_path)}
    command = [LAUNCH / "ssh" / "launch.sh", "me@one", "two", "--", sys.executable, "program.py", "--a=b c", *flags]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ssh_starts_a_process_on_each_host(tmp_path):
    out, errors = (process := launched(tmp_path)).communicate(timeout=600)
    assert (process.returncode, errors) == (0, "")
    assert sorted(out.splitlines()) == [
        f"{host}: {host}|{tmp_path}|--a=b c|--coordinator=one:1234|--processes=2|--process={number}"
        for number, host in enumerate(("me@one", "two"))
    ]


@pytest.mark.parametrize(("first", "second", "code"), [(0, 3, 3), (2, 134, 2), (134, 2, 2), (134, 1, 134)])
def test_ssh_tells_which_process_failed(tmp_path, first, second, code):
    _, errors = (process := launched(tmp_path, f"--codes={first},{second}")).communicate(timeout=600)
    ended = {"0 on me@one": first, "1 on two": second}
    lines = [f"launch.sh: process {who}: exit code {each}\n" for who, each in ended.items() if each]
    assert (process.returncode, errors) == (code, "".join(lines))


def test_ssh_hands_a_signal_on(tmp_path):
    process = launched(tmp_path, "--wait")
    lines = [process.stdout.readline() for _ in range(2)]
    assert all("--wait" in line for line in lines)
    start = time.monotonic()
    process.terminate()
    out, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (0, "")
    assert sorted(out.splitlines()) == ["me@one: saved", "two: saved"]
    assert time.monotonic() - start < 1800


def test_the_config_of_the_examples_is_shipped():
    for path in (*SCRIPTS, LAUNCH / "gke" / "jobset.yaml"):
        if "--config=depth" in path.read_text():
            assert configs.load("depth").train.samples > 0
