"""``--tune-head``: settings of a head on cached features, found by trying, as a try takes seconds.

Coordinate search: one setting after the other, the values beside the best so far are tried and the best is kept. Every
try is a whole training with the run's own steps, judged on the validation split at its end; so the figures of that
split flatter the winner a little, and a test split is the judge.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flowers import console
from flowers.config.train import TrainConfig
from flowers.errors import StoppedError
from flowers.files import write_atomically
from flowers.training.loop import AGREE_EVERY, evaluate, steps_of, train_step, vote
from flowers.training.state import Run

TUNED = ("lr", "label_smoothing", "weight_decay", "hidden")


@dataclass(frozen=True)
class Trial:
    """One try: the settings, and what they reached on the validation split."""

    lr: float
    label_smoothing: float
    weight_decay: float
    hidden: int | None
    top1: float
    loss: float


def neighbours(name: str, config: TrainConfig, in_features: int) -> list[float | int | None]:
    """The values of one setting to try beside the present one."""
    present = getattr(config, name)
    values = {
        "lr": [float(f"{present / 3:.2g}"), float(f"{present * 3:.2g}")] if name == "lr" else [],
        "label_smoothing": [0.0, 0.1, 0.2],
        "weight_decay": [0.01, 0.1, 0.3],
        "hidden": [None, min(1024, in_features)],
    }[name]
    return [value for value in values if value != present]


def tune_head(
    config: TrainConfig, in_features: int, build_run: Callable[[TrainConfig], Run], output: Path
) -> TrainConfig:
    """Search, tell what was tried and write it down.

    Args:
        config: with its defaults resolved; the search begins there.
        in_features: width of the features.
        build_run: a fresh run of a head by a config.
        output: JSON file for the trials, in the order in which they were made.

    Returns:
        The config with the settings that were best, by top1, then by loss.

    Raises:
        StoppedError: on request; the same command begins the search anew.
    """
    trials: list[Trial] = []

    def attempt(candidate: TrainConfig) -> tuple[float, float]:
        trial = _try(candidate, build_run(candidate))
        trials.append(trial)
        return trial.top1, -trial.loss

    best = attempt(config)
    for name in TUNED:
        for value in neighbours(name, config, in_features):
            candidate = dataclasses.replace(config, **{name: value})
            score = attempt(candidate)
            if score > best:
                best, config = score, candidate
    rows = [(*(getattr(trial, name) for name in TUNED), f"{trial.top1:.4f}", f"{trial.loss:.4f}") for trial in trials]
    console.table("tried for the head", (*TUNED, "valid top1", "valid loss"), rows)
    if console.is_main_process():
        with write_atomically(output) as file:
            json.dump([asdict(trial) for trial in trials], file, indent=1)
    return config


def _try(config: TrainConfig, run: Run) -> Trial:
    """Train a head from the start to the end and measure it; nothing is written."""
    for micro_batches, real_images in itertools.islice(steps_of(run), run.plan.total_steps):
        train_step(run, micro_batches, real_images)
        run.unread.clear()
        run.progress.step += 1
        if run.progress.step % AGREE_EVERY == 0 and vote(run)[0]:
            raise StoppedError("stopped while tuning the head: the same command starts the search again")
    with run.averaged():
        metrics = evaluate(run.accelerator, run.network, run.inputs, run.valid, run.valid_images)
    run.accelerator.free_memory()
    settings = {name: getattr(config, name) for name in TUNED}
    return Trial(**settings, top1=metrics.top1, loss=metrics.loss)
