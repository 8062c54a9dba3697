"""``--tune-head``: the weight decay of a head on cached features, by cross-validation on the training images.

Each value is judged on images that its heads were not fitted to, all of the training split; so the validation split
stays unseen and remains a fair judge. Of the values that are as good as the best within its standard error, the
largest is taken: the simplest model that the data does not speak against.

Source: Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3 (the one-standard-error rule).
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F

from flowers import console
from flowers.data.grouping import group_images
from flowers.data.order import class_balance
from flowers.distributed import from_main
from flowers.errors import DataError, StoppedError
from flowers.files import write_atomically
from flowers.reports.calibration import fit_temperature
from flowers.training.features import FeatureBatches
from flowers.training.linear_head import HeadProblem, fit_linear_head, folds, out_of_fold
from flowers.training.stage import Stage

WEIGHT_DECAYS = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
FOLDS = 5


@dataclass(frozen=True)
class Trial:
    """A weight decay, and its figures over all training images, each by a head that did not see it.

    Attributes:
        loss_error: standard error of the loss over the folds.
    """

    weight_decay: float
    top1: float
    loss: float
    loss_error: float


def tune_head(stage: Stage, batches: FeatureBatches) -> Stage:
    """Try all values, print the trials and write them to tuning.json.

    Returns:
        The stage with the weight decay that was chosen.

    Raises:
        DataError: a class has a single training image, so that nothing can be judged.
        StoppedError: on request; the same command begins the search anew.
    """
    trials = from_main(lambda: cross_validate(stage, batches.problem(stage)))
    chosen = choose(trials)
    rows = [(f"{t.weight_decay:g}", f"{t.top1:.4f}", f"{t.loss:.4f} ± {t.loss_error:.4f}") for t in trials]
    console.table("tried for the head", ("weight decay", "top1 out of fold", "loss out of fold"), rows)
    console.say(f"weight decay {chosen.weight_decay:g}: the largest within one standard error of the lowest loss")
    if stage.accelerator.is_main_process:
        with write_atomically(stage.run_dir / "tuning.json") as file:
            json.dump([asdict(trial) for trial in trials], file, indent=1)
    return stage.with_settings(weight_decay=chosen.weight_decay)


def folds_of(stage: Stage) -> np.ndarray:
    """The fold of each training image: int64 [N]; a class of few images is in fewer folds, a group in one alone.

    All are 0 if no class has two images.
    """
    train, config = stage.data.train, stage.config
    leaders = group_images(train.paths, config.group) if config.group else None
    return folds(train.targets, min(FOLDS, int(np.bincount(train.targets).max())), config.seed, leaders)


def choose(trials: list[Trial]) -> Trial:
    """The largest weight decay whose loss is within one standard error of the lowest."""
    best = min(trials, key=lambda trial: trial.loss)
    near = [trial for trial in trials if trial.loss <= best.loss + best.loss_error]
    return max(near, key=lambda trial: trial.weight_decay)


def cross_validate(stage: Stage, problem: HeadProblem, weight_decays: Sequence[float] = WEIGHT_DECAYS) -> list[Trial]:
    """Fit heads without one fold each, for every weight decay, and measure them on the plain views of that fold.

    Raises:
        DataError: no class has two images.
        StoppedError: on request.
    """
    targets, parts = np.asarray(stage.data.train.targets), folds_of(stage)
    count = len(np.unique(parts))
    if count < 2:
        raise DataError("--tune-head holds training images back, but no class has two of them: leave it out")
    judged = class_balance(targets, problem.num_classes) if problem.weights is not None else np.ones(len(targets))

    def check_stop() -> None:
        if reason := stage.stop.reason():
            raise StoppedError(f"stopped while tuning the head ({reason}); run the same command to search again")

    def attempt(weight_decay: float) -> Trial:
        loss, hits = np.zeros(len(targets)), np.zeros(len(targets))
        fit = functools.partial(
            fit_linear_head,
            weight_decay=weight_decay,
            label_smoothing=stage.config.label_smoothing,
            device=stage.accelerator.device,
            check_stop=check_stop,
        )
        for left, logits in out_of_fold(problem, parts, fit):
            right = torch.from_numpy(targets[left])
            logits = torch.from_numpy(logits / (fit_temperature(logits, targets[left]) or 1.0))
            loss[left] = F.cross_entropy(logits, right, reduction="none").numpy()
            hits[left] = (logits.argmax(1) == right).numpy()
            meter.advance(1)
        means = [np.average(loss[parts == part], weights=judged[parts == part]) for part in np.unique(parts)]
        return Trial(
            weight_decay,
            float(np.average(hits, weights=judged)),
            float(np.average(loss, weights=judged)),
            float(np.std(means, ddof=1) / count**0.5),
        )

    with console.progress("tuning the head", len(weight_decays) * count, "fits") as meter:
        return [attempt(weight_decay) for weight_decay in weight_decays]
