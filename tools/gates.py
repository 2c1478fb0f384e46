"""The end of a benchmark that has gates: each with what was measured and whether it holds, and the exit code."""

import json
import operator
import signal
import sys
from collections.abc import Callable

HOLDS = {">=": operator.ge, "<=": operator.le}


def run(gates: dict[str, tuple[str, float]], measure: Callable[[dict[str, float]], None]) -> None:
    """Runs `measure`, which fills in values by the names of the gates; ends the program with 0 if all of them hold.

    Ctrl-C and SIGTERM end it earlier, with what was measured until then and 130; a gate without a value does not hold.
    """
    values, stopped = {}, False
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measure(values)
    except KeyboardInterrupt:
        stopped = True

    def held(name, sign, bound):
        return name in values and HOLDS[sign](values[name], bound)

    rows = [
        {"gate": f"{name} {sign} {bound:g}", "measured": values.get(name), "held": held(name, sign, bound)}
        for name, (sign, bound) in gates.items()
    ]
    for row in rows:
        print(json.dumps(row), flush=True)
    if stopped:
        print("interrupted: the gates are those of what was measured until then", file=sys.stderr)
    sys.exit(130 if stopped else 0 if all(row["held"] for row in rows) else 1)
