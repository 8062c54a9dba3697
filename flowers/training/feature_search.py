"""``--tune-head wide``: which features a head is fitted to, by cross-validation on the training images.

One setting after another is changed: the stages of the network, the size of the images, the views of each. A change is
kept if it lowers the loss on images held back by more than that loss's standard error; flags that are given stay as
they are. Each set of features takes a pass of the backbone over the training images. The weight decay is that of the
default while sets are compared, and is searched for on the one that is taken.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from flowers import console
from flowers.config.train import TrainConfig
from flowers.distributed import from_main
from flowers.errors import ModelError
from flowers.files import remove, write_atomically
from flowers.models.stages import split_name
from flowers.training.features import FeatureBatches
from flowers.training.flags import FIT_DEFAULTS, FOUND_WIDE
from flowers.training.head_search import Trial, cross_validate
from flowers.training.stage import Stage

FOLDER = "tuning"
"""Inside the run folder, during the search: one folder of features for each set."""
LARGER = 9 / 7
MANY_VIEWS = 4
STAGES = 2


Compute = Callable[[TrainConfig], tuple[Stage, FeatureBatches]]
"""Gives the stage of some flags, and the features of its training images."""


def choose_features(asked: TrainConfig, config: TrainConfig, compute: Compute) -> TrainConfig:
    """Compare sets of features, print the trials and write them to feature_tuning.json.

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
        (trial,) = from_main(lambda: cross_validate(stage, batches.problem(stage), (FIT_DEFAULTS["weight_decay"],)))
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
    with write_atomically(run_dir / "feature_tuning.json") as file:
        json.dump(trials, file, indent=1)
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
