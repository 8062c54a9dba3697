"""Photos that an export is compared and calibrated on."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowers.data.choice import Choice
from flowers.data.folders import ClassIndex, load_split
from flowers.data.images import read_image
from flowers.data.paths import readable
from flowers.data.preprocessing import Preprocessing
from flowers.data.scan import scan_images
from flowers.data.threads import in_order
from flowers.errors import DataError, FlowersError, ImageError, UsageError
from flowers.machine import cpus_per_process
from flowers.models.bundle import Bundle
from flowers.parsing import read_yaml

BATCH_SIZE = 32


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos on disk.

    Attributes:
        said: where they are from, for the user.
        paths: N files.
        targets: [N] int64 class indices, -1 where a photo lies in no folder of a class.
    """

    said: str
    paths: Sequence[str]
    targets: np.ndarray

    def take(self, count: int) -> "Photos":
        """At most so many, evenly from all."""
        if len(self.paths) <= count:
            return self
        chosen = np.linspace(0, len(self.paths) - 1, count).round().astype(int)
        said = f"{self.said} ({count} of {len(self.paths)})"
        return Photos(said, [self.paths[index] for index in chosen], self.targets[chosen])

    def labelled(self) -> "Photos":
        """Those that lie in the folder of a class."""
        chosen = np.flatnonzero(self.targets >= 0)
        return Photos(self.said, [self.paths[index] for index in chosen], self.targets[chosen])

    def views(self, preprocessing: Preprocessing) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the network's views, uint8 [B, S, S, 3], and targets [B]; unreadable files are left out.

        Raises:
            DataError: there is no readable one.
        """

        def view(path: str) -> np.ndarray | None:
            try:
                how = {"min_short_side": preprocessing.min_short_side, "to_srgb": preprocessing.to_srgb}
                return preprocessing.view(read_image(path, **how))
            except ImageError:
                return None

        found = in_order(view, self.paths, cpus_per_process())
        pictures = ((image, target) for image, target in zip(found, self.targets, strict=True) if image is not None)
        count = 0
        while batch := list(itertools.islice(pictures, BATCH_SIZE)):
            images, targets = zip(*batch, strict=True)
            yield np.stack(images), np.array(targets)
            count += len(batch)
        if not count:
            raise DataError(f"{self.said}: none of {len(self.paths)} files is a readable image")


def photos_for(bundle: Bundle, folder: Path | None, split: str, flag: str) -> Photos:
    """The photos in the folder that a flag names, or by default those of a split of the model's run."""
    return photos_of_run(bundle, split, flag) if folder is None else photos_in(folder, bundle.classes, flag)


def photos_in(folder: Path, classes: ClassIndex, flag: str) -> Photos:
    """List all photos below a folder; those in class folders directly below it have targets.

    Raises:
        DataError: no such folder, or no photos in it.
    """
    if not folder.is_dir():
        raise DataError(f"{flag} {readable(folder)}: no such folder")
    paths = list(scan_images(folder))
    if not paths:
        raise DataError(f"{flag} {readable(folder)}: no photos in it")
    class_to_idx = classes.class_to_idx
    targets = [class_to_idx.get(path.partition("/")[0], -1) if "/" in path else -1 for path in paths]
    return Photos(readable(folder), [os.path.join(folder, path) for path in paths], np.array(targets, np.int64))


def photos_of_run(bundle: Bundle, split: str, flag: str) -> Photos:
    """A split of the data that the model was trained on, where its run folder and the data are still there.

    Raises:
        UsageError: they are not: the flag has to name photos.
    """
    folder = bundle.folder.resolve()
    run = next((run for run in (folder.parent, *folder.parents[1:2]) if (run / "config.yaml").is_file()), None)
    if run is None:
        raise UsageError(f"{flag} is missing: no config.yaml beside {readable(folder)} says what it was trained on")
    try:
        config = read_yaml(run / "config.yaml")
        data_dir, choice = config["data_dir"], Choice(exclude=tuple(config.get("exclude") or ()))
        samples = load_split(data_dir, split, bundle.classes, run / "split.json", choice=choice)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FlowersError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{flag} is missing, and the run's own {split} photos cannot be loaded: {reason}") from None
    paths = [samples.full_path(index) for index in range(len(samples))]
    return Photos(f"{split} of {readable(data_dir)}", paths, samples.targets)
