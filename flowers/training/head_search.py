"""``--tune-head``: a search for the settings of a head on cached features, where a trial takes seconds.

Coordinate search: for one setting after the other, the values beside the best so far are tried and the best is kept.
Every trial is a whole training with the run's own steps, judged on the validation split at its end; so that split
favours the winner a little, and only a test split judges it fairly.
"""

import dataclasses
import itertools
import json
from dataclasses import asdict, dataclass

from flowers import console
from flowers.config.train import TrainConfig
from flowers.errors import StoppedError
from flowers.files import write_atomically
from flowers.training.batches import Batches
from flowers.training.flags import TUNED
from flowers.training.model import new_head
from flowers.training.stage import Stage
from flowers.training.trainer import AGREE_EVERY, Trainer


@dataclass(frozen=True)
class Trial:
    """The settings of a trial, and their result on the validation split."""

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


def tune_head(stage: Stage, batches: Batches) -> Stage:
    """Search from the stage's own settings, print the trials and write them to tuning.json.

    Returns:
        The stage with the settings that were best, by top1, then by loss, and a head that starts anew.

    Raises:
        StoppedError: on request; the same command begins the search anew.
    """
    in_features = stage.model.head.in_features
    trials: list[Trial] = []

    def attempt(candidate: Stage) -> tuple[float, float]:
        trials.append(_try(candidate, batches))
        return trials[-1].top1, -trials[-1].loss

    best = attempt(with_head(stage))
    for name in TUNED:
        for value in neighbours(name, stage.config, in_features):
            candidate = with_head(stage, **{name: value})
            score = attempt(candidate)
            if score > best:
                best, stage = score, candidate
    rows = [(*(getattr(trial, name) for name in TUNED), f"{trial.top1:.4f}", f"{trial.loss:.4f}") for trial in trials]
    console.table("tried for the head", (*TUNED, "valid top1", "valid loss"), rows)
    if stage.accelerator.is_main_process:
        with write_atomically(stage.run_dir / "tuning.json") as file:
            json.dump([asdict(trial) for trial in trials], file, indent=1)
    return with_head(stage)


def with_head(stage: Stage, **settings: float | int | None) -> Stage:
    """The stage with some other settings and a new head in its classifier."""
    stage, model = stage.with_settings(**settings), stage.model
    spec, model.classifier.head = new_head(stage.config, model.head.num_classes, model.head.in_features)
    return dataclasses.replace(stage, model=dataclasses.replace(model, head=spec))


def _try(stage: Stage, batches: Batches) -> Trial:
    """Train a head from start to end and measure it; nothing is written."""
    trainer = Trainer(stage, batches)
    for micro_batches, real_images in itertools.islice(trainer.trial_steps(), stage.total_steps):
        trainer.step(micro_batches, real_images)
        trainer.unread.clear()
        trainer.progress.step += 1
        if trainer.progress.step % AGREE_EVERY == 0 and trainer.vote()[0]:
            raise StoppedError("stopped while tuning the head; run the same command to search again")
    with trainer.averaged():
        metrics = trainer.evaluate("valid")
    stage.accelerator.free_memory()
    settings = {name: getattr(stage.config, name) for name in TUNED}
    return Trial(**settings, top1=metrics.top1, loss=metrics.loss)
