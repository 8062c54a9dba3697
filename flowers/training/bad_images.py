"""Images that cannot be read: all found before the first step, then refused or left out. Damaged ones are counted."""

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Mapping

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from flowers import console
from flowers.config.train import TrainConfig
from flowers.data.choice import Choice
from flowers.data.folders import ImageFolders, Samples
from flowers.data.image_cache import ImageCache
from flowers.data.layout import find_splits
from flowers.data.loader_processes import default_workers
from flowers.data.loaders import find_bad_images
from flowers.data.paths import PathList, readable, some
from flowers.environment import staged
from flowers.errors import DataError

SHOWN = 20
MANY = 10_000
"""In a data set that is refused anyway, more images than this are not decoded: that would take minutes."""
BadImages = dict[str, list[tuple[str, str]]]
"""By split: paths and reasons."""


def handle_bad_images(
    config: TrainConfig, accelerator: Accelerator, data: ImageFolders, cache: ImageCache | None
) -> ImageFolders:
    """Decode every image before the first step, each rank its share; refuse those that fail, or leave them out.

    With cached features every image is read before the first step anyway, so only leaving out needs this pass; with an
    image cache the training images have been decoded already.

    Raises:
        DataError: some cannot be read, and ``--on-bad-image`` is fail; or a class or a split has no others.
    """
    if config.on_bad_image == "fail" and config.uses_features:
        return data
    splits = data.splits
    found = {
        name: (cache.bad, cache.num_damaged)
        if cache is not None and name == "train"
        else find_bad(accelerator, split, config.workers)
        for name, split in splits.items()
    }
    warn_of_damaged(sum(damaged for _, damaged in found.values()))
    bad = {name: of_split for name, (of_split, _) in found.items()}
    if not any(bad.values()):
        return data
    if config.on_bad_image == "fail":
        raise _refusal(bad)
    kept = leave_out(splits, bad)
    gone = [f"{name}/" for name, split in kept.items() if not len(split) and name != "train"]
    counts = np.bincount(kept["train"].targets, minlength=len(data.classes))
    gone += [f"train/ of class {readable(data.classes.folders[index])}" for index in np.flatnonzero(counts == 0)]
    if gone:
        raise DataError(f"no image that can be read is left in {some(gone)}; mend some, or remove the class or split")
    return dataclasses.replace(data, left_out=bad, **kept)


def leave_out(splits: Mapping[str, Samples], bad: BadImages) -> dict[str, Samples]:
    """The splits without their bad images, which are named."""
    if any(bad.values()):
        console.warn(
            f"leaving out {console.counted(sum(map(len, bad.values())), 'image')} that cannot be read: {_listed(bad)}"
        )
    return {name: _without(samples, bad[name]) for name, samples in splits.items()}


@contextlib.contextmanager
def listing_bad_images(splits: Mapping[str, Samples], workers: int | None) -> Iterator[None]:
    """If the block fails on an unreadable image, check the remaining images and report every bad one.

    Raises:
        DataError: all of them.
    """
    try:
        yield
    except DataError:
        bad = _bad_of(splits, workers)
        if any(bad.values()):
            raise _refusal(bad) from None
        raise


@contextlib.contextmanager
def listing_all_faults(config: TrainConfig) -> Iterator[None]:
    """If the block refuses a data set, name its unreadable images as well: one start tells all there is to mend.

    Raises:
        DataError: all faults. The main process looks for the images, unless they are many.
    """
    try:
        yield
    except DataError as error:
        try:
            root, splits = find_splits(staged(config.data_dir), Choice(exclude=config.exclude))
        except DataError:
            raise error from None
        faults = [str(error)]
        if config.on_bad_image == "fail" and console.is_main_process():
            paths = {name: PathList(path for path, _ in split.images) for name, split in splits.items()}
            if sum(map(len, paths.values())) <= MANY:
                unlabelled = {name: Samples(root, found, np.zeros(len(found), int)) for name, found in paths.items()}
                bad = _bad_of(unlabelled, config.workers)
                faults += [str(_refusal(bad))] if any(bad.values()) else []
        words = shlex.join(console.job_command("prepare", "check", "--data-dir", readable(config.data_dir)))
        raise DataError(f"{'; '.join(faults)}; all about the data: {words}") from None


def warn_of_damaged(count: int) -> None:
    """Say how many images are used although part of them is missing or wrong."""
    if count:
        console.warn(
            console.counted(
                count,
                "image is damaged, but decodes at least in part, and is used as it is",
                "images are damaged, but decode at least in part, and are used as they are",
            )
            + "; jobs/prepare.py check names them"
        )


def find_bad(accelerator: Accelerator, samples: Samples, workers: int | None) -> tuple[list[tuple[str, str]], int]:
    """Decode the images of a split, each rank its share.

    Returns:
        Paths and reasons of those that cannot be read; how many others are damaged.
    """
    share = samples.take(range(accelerator.process_index, len(samples), accelerator.num_processes))
    bad, damaged = find_bad_images(share, default_workers(workers))
    return sorted(gather_object(bad)), sum(gather_object([damaged]))


def _bad_of(splits: Mapping[str, Samples], workers: int | None) -> BadImages:
    return {name: find_bad_images(samples, default_workers(workers))[0] for name, samples in splits.items()}


def _without(samples: Samples, bad: list[tuple[str, str]]) -> Samples:
    paths = {path for path, _ in bad}
    return samples.take(index for index, path in enumerate(samples.paths) if path not in paths)


def _refusal(bad: BadImages) -> DataError:
    count = sum(map(len, bad.values()))
    images = console.counted(count, "image")
    return DataError(f"{images} cannot be read: {_listed(bad)}; mend or remove them, or --on-bad-image skip")


def _listed(bad: BadImages) -> str:
    lines = [f"{split}: {readable(path)}: {reason}" for split, found in bad.items() for path, reason in found]
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more
