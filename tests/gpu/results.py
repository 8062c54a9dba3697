"""The table that a run on a GPU leaves: a line for each test and each measurement, written as soon as it is known."""

import json
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "bench"), str(Path(__file__).parents[1])]

from measuring import Row, machine  # noqa: E402

DEVICE = os.environ.get("FLOWERS_DEVICE")
"""Where run.sh wants tests and measurements to run: "cuda" or "cpu"; None outside it."""
FOLDER = Path(os.environ.get("FLOWERS_RESULTS", "gpu-results"))
DEADLINE_S = float(os.environ.get("FLOWERS_DEADLINE", "inf"))


def seconds_left() -> float:
    """Until run.sh wants the results."""
    return DEADLINE_S - time.time()


def add_test(name: str, outcome: str, seconds: float, reason: str = "") -> None:
    """Record a test: "passed", "failed" or "skipped"."""
    _add("tests", {"test": name, "outcome": outcome, "seconds": round(seconds, 1), "reason": reason})


def add_measurement(row: Row) -> None:
    """Record a measurement."""
    _add("measurements", row._asdict())


def _add(kind: str, value: dict) -> None:
    path = FOLDER / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {"machine": machine(), "tests": [], "measurements": []}
    found[kind].append(value)
    path.write_text(json.dumps(found, indent=1))
    path.with_suffix(".md").write_text(_markdown(found))


def _markdown(found: dict) -> str:
    outcomes = [test["outcome"] for test in found["tests"]]
    counts = ", ".join(f"{outcomes.count(name)} {name}" for name in ("passed", "failed", "skipped"))
    lines = [f"Measured on {found['machine']}.", "", "| what | figure | against, in the same run |", "|-|-|-|"]
    lines += [f"| {' | '.join(row.values())} |" for row in found["measurements"]]
    lines += ["", f"{counts}.", "", "| test | outcome | seconds | reason |", "|-|-|-|-|"]
    lines += [f"| {' | '.join(map(str, test.values()))} |" for test in found["tests"]]
    return "\n".join(lines) + "\n"
