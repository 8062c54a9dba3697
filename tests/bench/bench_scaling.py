"""Prediction and training on one CPU and on two, as one process or as two: how near to twice as fast.

    python tests/bench/bench_scaling.py                     # the real photos and EfficientNet-Lite0
    python tests/bench/bench_scaling.py --files 1000 --rounds 1
    python tests/bench/bench_scaling.py --checkpoint RUN    # another model

True runs of jobs/predict.py and jobs/train.py. On one CPU the whole run is held there, as a cluster would. Training
continues from the model that predicts: the whole network at 128 pixels, with the same global batch however many
processes share it; its rate is that of the second of two epochs, loading included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_features import link
from bench_predict import repeat, run_job
from measuring import FLOWERS102, ROOT, Row, rate, run_alone, take_turns, times_faster
from models import quick_bundle

WAYS = {"one CPU": (1, 1), "one process on two CPUs": (1, 2), "two processes on two CPUs": (2, 2)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--checkpoint", type=Path, help="a bundle; default: Lite0 with a quick head")
    parser.add_argument("--data-dir", type=Path, default=FLOWERS102, help="with train/, valid/ and photos/")
    parser.add_argument("--files", type=int, default=1500)
    parser.add_argument("--per-class", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two CPUs are needed to measure scaling")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = options.checkpoint or quick_bundle(folder / "bundle", options.data_dir / "train")
        photos = repeat(options.data_dir / "photos", folder / "photos", options.files)
        data_dir = link(options.data_dir, folder / "data", options.per_class)
        numbers = iter(range(10**6))

        def predict(processes: int, cpus: int) -> float:
            output = folder / f"{next(numbers)}.csv"
            with held(cpus):
                return 1 / run_job(checkpoint, photos, output, launcher=launch(processes))["per_s"]

        def train(processes: int, cpus: int) -> float:
            run_dir = folder / f"run-{next(numbers)}"
            flags = ["--data-dir", data_dir, "--output-dir", run_dir, "--continue-from", checkpoint,
                     "--finetune", "full", "--train-size", 128, "--epochs", 2, "-b", 32 // processes]  # fmt: skip
            command = [*launch(processes), ROOT / "jobs" / "train.py", *flags]
            with held(cpus):
                done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return 1 / json.loads((run_dir / "timing.jsonl").read_text().splitlines()[-1])["images_per_s"]

        rows = []
        for what, work in (("photos to rows", predict), ("training of the whole network at 128 px", train)):
            ways = {name: lambda work=work, how=how: work(*how) for name, how in WAYS.items()}
            seconds = take_turns(ways, options.rounds, warm_up=False)
            for name in list(ways)[1:]:
                against = f"{times_faster(seconds['one CPU'], seconds[name])} one CPU, {rate(1, seconds['one CPU'])}"
                rows.append(Row(f"{what}, {name}", rate(1, seconds[name]), against))
    return rows


def launch(processes: int) -> list[object]:
    """How a job is started as so many processes."""
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "flowers.launch", "--num-processes", processes]


class held:
    """Inside the block new processes stay on the first so many CPUs."""

    def __init__(self, cpus: int):
        self._cpus = cpus

    def __enter__(self) -> None:
        self._all = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(self._all)[: self._cpus])

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._all)


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
