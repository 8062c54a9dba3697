"""The head of a stage on cached features: fitted at once; with ``--tune-head`` searched for by cross-validation.

The search is for the weight decay, and with ``wide`` for the features that the head sees. Each value is judged on
images that its heads were not fitted to, all of the training split; so the validation split stays unseen and remains a
fair judge. Of the values that are as good as the best within its standard error, the largest is taken: the simplest
model that the data does not speak against.

Source: Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3 (the one-standard-error rule).
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from flowers import console
from flowers.config.train import TrainConfig
from flowers.data.grouping import group_images
from flowers.data.order import class_balance
from flowers.distributed import from_main
from flowers.errors import DataError, ModelError, StoppedError
from flowers.files import remove, write_json
from flowers.models.stages import split_name
from flowers.reports.calibration import fit_temperature
from flowers.training.features import FeatureBatches
from flowers.training.flags import FIT_DEFAULTS, FOUND_WIDE
from flowers.training.linear_head import HeadProblem, LinearHead, fit_linear_head, fit_sharpened, folds, out_of_fold
from flowers.training.stage import Stage

WEIGHT_DECAYS = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
FOLDS = 5
FOLDER = "tuning"
"""Inside the run folder, while features are compared: one folder for each set."""
LARGER = 9 / 7
MANY_VIEWS = 4
STAGES = 2

Compute = Callable[[TrainConfig], tuple[Stage, FeatureBatches]]
"""Gives the stage of some flags, and the features of its training images."""


def fit_head(stage: Stage, batches: FeatureBatches) -> LinearHead:
    """Fit the linear head of a stage to all features and put it into the stage's model.

    Rank 0 computes it, the others take it over, so that any number of processes has the same head.

    Raises:
        StoppedError: on request; the same command fits again.
    """

    def find() -> LinearHead:
        problem, fit = batches.problem(), fitter(stage, "fitting", stage.config.weight_decay)
        return fit_sharpened(problem, folds_of(stage), fit) if stage.config.label_smoothing else fit(problem)

    found = from_main(find)
    output = stage.model.classifier.head.output
    with torch.no_grad():
        output.weight.copy_(found.weight)
        output.bias.copy_(found.bias)
    return found


def fitter(stage: Stage, doing: str, weight_decay: float) -> Callable[[HeadProblem], LinearHead]:
    """``fit_linear_head`` as a stage has it fitted.

    Args:
        doing: for the message of the StoppedError in which a request to stop ends the fit.
    """

    def check_stop() -> None:
        if reason := stage.stop.reason():
            raise StoppedError(f"stopped while {doing} the head ({reason}); run the same command to begin that again")

    return functools.partial(
        fit_linear_head,
        weight_decay=weight_decay,
        label_smoothing=stage.config.label_smoothing,
        device=stage.accelerator.device,
        check_stop=check_stop,
    )


def folds_of(stage: Stage) -> np.ndarray:
    """The fold of each training image: int64 [N]; a class of few images is in fewer folds, a group in one alone.

    All are 0 if no class has two images.
    """
    train, config = stage.data.train, stage.config
    leaders = group_images(train.paths, config.group) if config.group else None
    return folds(train.targets, min(FOLDS, int(np.bincount(train.targets).max())), config.seed, leaders)


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
    trials = from_main(lambda: cross_validate(stage, batches.problem()))
    chosen = choose(trials)
    rows = [(f"{t.weight_decay:g}", f"{t.top1:.4f}", f"{t.loss:.4f} ± {t.loss_error:.4f}") for t in trials]
    console.table("tried for the head", ("weight decay", "top1 out of fold", "loss out of fold"), rows)
    console.say(f"weight decay {chosen.weight_decay:g}: the largest within one standard error of the lowest loss")
    if stage.accelerator.is_main_process:
        write_json(stage.run_dir / "tuning.json", [asdict(trial) for trial in trials])
    return stage.with_settings(weight_decay=chosen.weight_decay)


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

    def attempt(weight_decay: float) -> Trial:
        loss, hits = np.zeros(len(targets)), np.zeros(len(targets))
        for left, logits in out_of_fold(problem, parts, fitter(stage, "tuning", weight_decay)):
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


def choose_features(asked: TrainConfig, config: TrainConfig, compute: Compute) -> TrainConfig:
    """Compare sets of features, print the trials and write them to feature_tuning.json.

    One setting after another is changed: the stages of the network, the size of the images, the views of each. A
    change is kept if it lowers the loss on images held back by more than that loss's standard error; flags that are
    given stay as they are. Each set of features takes a pass of the backbone over the training images. The weight decay
    is that of the default while sets are compared, and is searched for on the one that is taken.

    Args:
        asked: the flags as they were given, whose values stay.
        config: the same with the default model, the set that the others are compared with.
        compute: of one set.

    Returns:
        The flags with the best set.

    Raises:
        DataError: no class has two training images, so that nothing can be judged.
        StoppedError: on request; the same command searches again, and finds the features that are there by then.
    """
    run_dir = asked.output_dir
    trials: list[tuple[TrainConfig, Trial]] = []

    def attempt(config: TrainConfig) -> None:
        folder = run_dir / FOLDER / str(len(trials))
        stage, batches = compute(dataclasses.replace(config, output_dir=folder))
        (trial,) = from_main(lambda: cross_validate(stage, batches.problem(), (FIT_DEFAULTS["weight_decay"],)))
        trials.append((dataclasses.replace(config, image_size=stage.model.preprocessing.crop), trial))

    begun_s, best = time.monotonic(), 0
    attempt(config)
    changes = [change for change in (other_stages, larger_images, more_views) if change(asked, trials[best][0])]
    seconds = time.monotonic() - begun_s
    console.say(
        f"--tune-head wide: {len(changes)} more sets of features are tried; each takes about as long as this one, "
        f"{seconds:.0f} s, larger images up to twice and more views up to {MANY_VIEWS} times as long"
    )
    for change in changes:
        so_far, least = trials[best]
        try:
            attempt(dataclasses.replace(so_far, **change(asked, so_far)))
        except ModelError as error:  # a network without such stages, or of one size
            console.say(f"left out: {error}")
            continue
        _, trial = trials[-1]
        if trial.loss < least.loss - trial.loss_error:
            best = len(trials) - 1
    rows = [
        (of.model, of.image_size, of.views, f"{trial.top1:.4f}", f"{trial.loss:.4f} ± {trial.loss_error:.4f}")
        for of, trial in trials
    ]
    console.table("tried for the features", ("model", "pixels", "views", "top1 out of fold", "loss out of fold"), rows)
    written = [{**{name: getattr(of, name) for name in FOUND_WIDE}, **asdict(trial)} for of, trial in trials]
    from_main(lambda: _keep(run_dir, best, written))
    chosen, _ = trials[best]
    console.say(f"taken: {chosen.model}, {chosen.image_size} px, views: {chosen.views}")
    return chosen


def _keep(run_dir: Path, number: int, trials: list[dict]) -> None:
    """Make the features of one set those of the run, and write down what all sets gave."""
    write_json(run_dir / "feature_tuning.json", trials)
    remove(run_dir / "features")
    os.replace(run_dir / FOLDER / str(number) / "features", run_dir / "features")
    remove(run_dir / FOLDER)


def other_stages(asked: TrainConfig, config: TrainConfig) -> dict[str, object]:
    """The last stages of the network beside its own features, or these alone; nothing if the flags say which."""
    base, stages = split_name(config.model)
    if asked.model is not None and split_name(asked.model)[1]:
        return {}
    return {"model": base if stages else f"{base}+{STAGES}"}


def larger_images(asked: TrainConfig, config: TrainConfig) -> dict[str, object]:
    """Images of about 9/7 the side, as 288 is to 224; nothing if the flags say how large."""
    return {} if asked.image_size is not None else {"image_size": 32 * round(config.image_size * LARGER / 32)}


def more_views(asked: TrainConfig, config: TrainConfig) -> dict[str, object]:
    """Augmented views beside the plain one; nothing if the flags say how many."""
    return {} if asked.views > 1 else {"views": MANY_VIEWS}
