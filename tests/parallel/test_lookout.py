"""The line that stands for the runtime's report of a lost process; the reports are those of jaxlib 0.10.2."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from vlm3_jax.parallel import lookout

STACK = b"*** Check failure stack trace: ***\n    @     0x7f90  absl::log_internal::LogMessage::SendToLog()\n"
UNHEALTHY = (
    b"UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n"
    b"The tasks have crashed. Check the task logs for an earlier error, or scheduler events to debug further.\n"
)
TOLD = (
    b"E1122 19:09:09.563802   15260 coordination_service.cc:1549] [154] Use error polling to propagate the following "
    b"error to all tasks: " + UNHEALTHY
)
POLLED = (
    b"E1122 19:09:09.564316   15272 coordination_service_agent.cc:289] Polled an error from coordination service.\n"
)
FATAL = (
    b"F1122 19:09:09.679009   15272 client.h:80] Terminating process because the JAX distributed service detected "
    b"fatal errors. This most likely indicates that another task died. absl::Status: "
)
LEADER = (
    b"UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted/died/restarted "
    b'unexpectedly.\n:UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"Socket closed"}\n'
)
REST = "its own output says why; the same command goes on from the newest checkpoint"


def seen(pieces, pause=0.0) -> str:
    """What the lookout makes of the pieces, written one after the other."""
    command = [sys.executable, "-I", "-S", lookout.__file__, "vlm3 train: process 0 of 2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for piece in pieces:
            process.stdin.write(piece)
            process.stdin.flush()
            time.sleep(pause)
        return process.communicate()[1].decode()


@pytest.mark.parametrize(
    ("report", "line"),
    [
        ([TOLD, POLLED, FATAL + UNHEALTHY, STACK], f"process 1 is lost; {REST}"),
        ([POLLED + FATAL + UNHEALTHY.replace(b"1\n", b"1,\n12\n", 1) + STACK], f"processes 1, 12 are lost; {REST}"),
        ([POLLED, FATAL + LEADER + STACK], f"process 0 is lost; {REST}"),
        (
            [
                FATAL
                + b"DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/RegisterTask\n"
            ],
            "not all processes are there; start each with the same --coordinator, one that all of them can reach",
        ),
        ([FATAL + b"INTERNAL: nobody\nknows\n"], f"another process is lost; {REST} (INTERNAL: nobody knows)"),
    ],
)
def test_a_report_becomes_a_line(report, line):
    assert seen([b"step 1\n", *report]) == f"step 1\nvlm3 train: process 0 of 2: {line}\n"


def test_everything_else_passes_as_it_is():
    text = [b"step 1\nstep", b" 2", b"\n", b"E1122 19:09:09.563802   15260 other.cc:1] it happens\n", POLLED, b"step 3"]
    assert seen(text, pause=0.01) == b"".join(text).decode()


def test_a_prompt_is_not_held_back():
    read, write = os.pipe()
    command = [sys.executable, "-I", "-S", lookout.__file__, "name"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=write) as process:
        process.stdin.write(b"continue? ")
        process.stdin.flush()
        assert os.read(read, 100) == b"continue? "
    os.close(read)
    os.close(write)


ENDING = """
import os, subprocess, sys
from vlm3_jax.train import lookout
lookout.start("name")
# Holds the pipe for longer than anybody waits.
subprocess.Popen(["sleep", "3"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print("last words", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("end", ["sys.exit(3)", "lookout.finish(); os._exit(3)"])
def test_a_process_ends_after_its_lookout(end):
    """Where a container or a job's task ends with its process, so does the lookout: what it has not written is lost."""
    root = pathlib.Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", ENDING + end], stderr=subprocess.PIPE, cwd=root) as process:
        assert process.wait() == 3
        os.set_blocking(process.stderr.fileno(), False)
        assert os.read(process.stderr.fileno(), 100) == b"last words\n"
        # The end of the file: nobody is there who might write.
        assert os.read(process.stderr.fileno(), 100) == b""


def test_the_last_words_of_a_report_are_not_held_back():
    """What may begin a report waits for more; the end of the process does not, though others hold the pipe."""
    command = [sys.executable, "-I", "-S", lookout.__file__, "name"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(POLLED + b"last words\n" + lookout.END)
        process.stdin.flush()
        assert process.wait(lookout.HOLD_S / 2) == 0
        assert process.stderr.read() == POLLED + b"last words\n"
