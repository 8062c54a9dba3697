"""How long a user waits before anything happens: `--help` of every job, and the imports of training and prediction.

    python tests/bench/bench_startup.py

Every figure is of whole processes, after one that warmed the disk's cache. "Plain" are the imports that a training
script of this kind has at its top, and that its `--help` waits for.
"""

import argparse
import subprocess
import sys

from measuring import ROOT, Row, duration, run_alone, take_turns, times_faster

PLAIN = "import argparse, torch, torchvision, timm, accelerate"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--jobs", nargs="+", help="whose --help is waited for; default: all")
    parser.add_argument("--rounds", type=int, default=5)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    jobs = options.jobs or sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py"))
    commands = {"plain": ["-c", PLAIN], "training": ["-c", "import flowers.training.train"]}
    commands |= {"prediction": ["-c", "import flowers.prediction.predict"]}
    commands |= {job: [str(ROOT / "jobs" / f"{job}.py"), "--help"] for job in jobs}
    seconds = take_turns(
        {name: lambda command=command: run(command) for name, command in commands.items()}, options.rounds
    )
    slowest = max(jobs, key=lambda job: min(seconds[job]))
    plain = f"the plain imports, {duration(seconds['plain'])}"

    def row(what: str, name: str) -> Row:
        return Row(what, duration(seconds[name]), f"{times_faster(seconds['plain'], seconds[name])} as fast as {plain}")

    return [
        row(f"--help of the slowest of {len(jobs)} jobs, {slowest}.py", slowest),
        row("importing all that prediction needs", "prediction"),
        row("importing all that training needs", "training"),
    ]


def run(command: list[str]) -> None:
    """One process, to its end."""
    subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
