"""The images of a data set and their classes, found in any layout (``flowers.data.layout``).

The class index is that of train/: its folder names sorted as strings ("1", "10", "100", "101", "11", ...), and every
other split is mapped through it by name.
"""

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from flowers import console
from flowers.data.choice import Choice, said_left_out
from flowers.data.classes import ClassIndex, display_names, is_folder_name, warn_of_one_class
from flowers.data.corrections import Corrections
from flowers.data.layout import Split, find_splits, warn_of_unused
from flowers.data.lists import SPLIT_NAMES
from flowers.data.paths import PathList, readable, some
from flowers.data.splits import ValidationDraw, choose_some, read_split, split_train
from flowers.environment import staged
from flowers.errors import DataError, NoSplitError, UsageError
from flowers.retries import is_there

NONE_TO_HOLD_OUT = "one image a class, none to hold out; add more, or valid/"


@dataclass(frozen=True, eq=False)
class Samples:
    """The images of one split, sorted by the bytes of their paths, less the names of tar shards; added ones come last.

    Attributes:
        root: folder that the paths start from.
        paths: N paths (absolute ones only where a list said so); undecodable bytes as surrogates.
        targets: [N] int64 class indices.
    """

    root: Path
    paths: Sequence[str]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def full_path(self, index: int) -> str:
        """The path to open image ``index`` at."""
        return os.path.join(self.root, self.paths[index])

    def take(self, indices: Iterable[int]) -> "Samples":
        """Only these images, in this order."""
        indices = np.fromiter(indices, np.int64)
        return Samples(self.root, PathList(self.paths[index] for index in indices), self.targets[indices])

    def at_most(self, most: int | None, seed: int, split: str, flag: str = "--max-images") -> "Samples":
        """A stratified choice of so many images, see ``splits.choose_some``, and a line that says so; None takes all.

        Raises:
            UsageError: fewer than one of each class.
        """
        if most is None or most >= len(self):
            return self
        classes = len(np.unique(self.targets))
        if most < classes:
            raise UsageError(f"{flag}: got {most}, expected at least {classes}, one image of each class in {split}")
        console.say(f"{split}: {most} of {len(self)} images are used ({flag})")
        return self.take(choose_some(self.paths, self.targets, most, seed))


@dataclass(frozen=True, eq=False)
class ImageFolders:
    """A data set, ready to train on.

    Attributes:
        left_out: by split, paths and reasons of the images that cannot be read and are not among the samples.
    """

    classes: ClassIndex
    train: Samples
    valid: Samples | None
    test: Samples | None
    corrections: Corrections | None = None
    left_out: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Samples]:
        """Those that are there, by name: train, valid, test."""
        named = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: samples for name, samples in named.items() if samples is not None}

    def at_most(self, most: int | None, of_train: int | None, seed: int) -> "ImageFolders":
        """The same data set with at most so many images of each split, and of train.

        Raises:
            UsageError: fewer than one of each class.
        """
        chosen = {name: of.at_most(most, seed, name) for name, of in self.splits.items()}
        chosen["train"] = chosen["train"].at_most(of_train, seed, "train", "--max-train-images")
        return replace(self, **chosen)


def load_image_folders(
    data_dir: str | os.PathLike,
    *,
    class_names: Path | None = None,
    draw: ValidationDraw | None = None,
    choice: Choice | None = None,
    corrections: Corrections | None = None,
) -> ImageFolders:
    """Find a data set's images and classes, and draw the validation split if there is none.

    Args:
        data_dir: a folder or a list, see ``flowers.data.layout``; a copy on the node's disk is read in its place.
        class_names: JSON of folder name to display name; default: cat_to_name.json beside the images, if there.
        draw: of the validation split when there is no valid/; default: none is drawn. See ``splits.split_train``.
        choice: which images are taken; it counts what is left out.
        corrections: of labels, before anything is drawn.

    Raises:
        DataError: no such folder, no train/, no classes, an empty class, a class in valid/ or test/ that train/
            lacks, broken names or lists, a split file that belongs to other data, or corrections that do.
        UsageError: the draw's ``val_fraction`` is not a share.
    """
    draw = draw or ValidationDraw(val_fraction=0, seed=0)
    if not 0 <= draw.val_fraction < 1:
        raise UsageError(f"--val-fraction: got {draw.val_fraction}, expected a share from 0 to below 1, such as 0.2")
    choice = choice or Choice()
    data_dir = staged(Path(data_dir))
    root, splits = find_splits(data_dir, choice, corrections)
    if "train" not in splits:
        have = ", ".join(sorted(splits)) or "nothing to train on"
        raise DataError(f"{readable(data_dir)}: no train/ folder (found: {have}); expected train/CLASS/IMAGES")
    folders = tuple(sorted(splits["train"].folders))
    where = splits["train"].where
    if not folders:
        raise DataError(f"{where}: no classes; expected one folder a class")
    if len(folders) == 1:
        raise DataError(f"{where}: only one class ({readable(folders[0])}); expected two or more, one folder each")
    if odd := [readable(name) for name in folders if not is_folder_name(name)]:  # of a list or shards
        raise DataError(f"{where}: got {some(odd)} for a class, expected the name of one folder")
    classes = ClassIndex(folders, display_names(folders, root, class_names))
    if corrections is not None:
        corrections.check_classes(folders, where)
    found = _read_all(root, splits, classes)
    if corrections is not None:
        corrections.check_paths(readable(data_dir))
    warn_of_one_class(where, folders)
    warn_of_unused(data_dir, choice)
    if choice.left_out:
        console.say(console.plain(f"{readable(data_dir)}: {said_left_out(choice.left_out)}"))
    if root != data_dir:
        _say_what_is_listed(readable(data_dir), found, classes)
    for name, samples in found.items():
        if name != "train":
            warn_of_missing_classes(splits[name].where, samples, classes)
    if "valid" not in found and draw.val_fraction > 0:
        found["train"], found["valid"] = _hold_out(found["train"], draw, where)
    return ImageFolders(classes, found["train"], found.get("valid"), found.get("test"), corrections)


def _read_all(root: Path, splits: Mapping[str, Split], classes: ClassIndex) -> dict[str, Samples]:
    """The samples of all splits.

    Raises:
        DataError: all that is wrong with any of them, since one start should tell all there is to mend.
    """
    found: dict[str, Samples] = {}
    faults: list[str] = []
    for name in ("train", "valid", "test"):
        try:
            if name in splits:
                found[name] = _samples(root, splits[name], classes)
        except DataError as error:
            faults.append(str(error))
    for name, samples in found.items():
        where = splits[name].where
        if name == "train" and (empty := _without_images(samples, classes)):
            faults.append(f"{where}: no images in {some(empty)}; add some, or remove the folder")
        elif not len(samples):
            faults.append(f"{where}: no images; add some, or remove it")
    if faults:
        raise DataError("; ".join(faults))
    return found


def _hold_out(train: Samples, draw: ValidationDraw, where: str) -> tuple[Samples, Samples]:
    """The training and the validation images that are drawn from train/."""
    held_out = np.array(split_train(train.paths, train.targets, draw), bool)
    if not held_out.any():
        none = "one group of images a class, none to hold out without cutting it; add valid/ or leave --group out"
        raise DataError(f"{where}: {none if draw.group else NONE_TO_HOLD_OUT}")
    flags = f"--val-fraction {draw.val_fraction}, --seed {draw.seed}"
    console.say(f"validation split: {console.counted(int(held_out.sum()), 'image')} drawn from train ({flags})")
    return train.take(np.flatnonzero(~held_out)), train.take(np.flatnonzero(held_out))


def load_split(
    data_dir: str | os.PathLike,
    split: str,
    classes: ClassIndex,
    split_file: Path | None = None,
    corrections: Corrections | None = None,
    choice: Choice | None = None,
) -> Samples:
    """Find the images of one split, for a model that is trained already.

    Args:
        data_dir: as for ``load_image_folders``; in a tree without splits all is train.
        split: train, valid (or val) or test.
        classes: the model's; the images' classes are found in it by name.
        split_file: the split that a run drew: where there is no valid/, it says what train and valid mean. Of data
            that has none of its images, all is train still.
        corrections: of labels.
        choice: which images are taken; it counts what is left out.

    Raises:
        NoSplitError: no such split.
        DataError: no such folder, no images in it, a class that the model does not know, or corrections of other data.
    """
    name = SPLIT_NAMES.get(split)
    data_dir = staged(Path(data_dir))
    root, splits = find_splits(data_dir, choice or Choice(), corrections)
    may_be_drawn = name in ("train", "valid") and "valid" not in splits
    drawn = may_be_drawn and split_file is not None and is_there(split_file)
    source = "train" if drawn else name
    if source not in splits:
        have = ", ".join(sorted(splits)) or "no images in class folders"
        raise NoSplitError(f"{readable(data_dir)}: no split {split!r} (found: {have})")
    if corrections is not None:
        corrections.check_classes(classes.folders, "the model")
    samples = _samples(root, splits[source], classes)
    if corrections is not None:
        for other in splits.keys() - {source} if not corrections.of_other_data else ():
            for _ in splits[other].images:
                pass  # seen now, if corrected
        corrections.check_paths(readable(data_dir))
    if drawn:
        samples = _of_drawn_split(samples, name, split_file, corrections, splits[source].where)
    if not len(samples):
        raise DataError(f"{splits[source].where}: no images")
    return samples


def _of_drawn_split(
    samples: Samples, name: str, split_file: Path, corrections: Corrections | None, where: str
) -> Samples:
    """Those of the images of train/ that a run has drawn for training or validation; all, if it knows none of them.

    Raises:
        DataError: some images of the split are gone.
    """
    held_out = read_split(split_file)
    if corrections is not None:
        held_out = {path: held for path, held in held_out.items() if corrections.classes.get(path, "") is not None}
    if name == "train" and not any(path in held_out for path in samples.paths):
        return samples
    wanted = name == "valid"
    chosen = samples.take(index for index, path in enumerate(samples.paths) if held_out.get(path) is wanted)
    if gone := list(held_out.values()).count(wanted) - len(chosen):
        raise DataError(f"{where}: lacks {console.counted(gone, 'image')} of the split in {readable(split_file)}")
    return chosen


def warn_of_missing_classes(where: str, samples: Samples, classes: ClassIndex) -> None:
    """Name the classes that a split has no images of: figures on it say nothing about them."""
    if missing := _without_images(samples, classes):
        console.warn(f"{where}: no images of {len(missing)} of {len(classes)} classes: {some(missing)}")


def _without_images(samples: Samples, classes: ClassIndex) -> list[str]:
    counts = np.bincount(samples.targets, minlength=len(classes))
    return [readable(classes.folders[index]) for index in np.flatnonzero(counts == 0)]


def _say_what_is_listed(where: str, splits: dict[str, Samples], classes: ClassIndex) -> None:
    """Say how many images of which split and class a list was understood to hold."""
    sizes = ", ".join(f"{name} {len(samples)}" for name, samples in splits.items())
    counts = sum(np.bincount(samples.targets, minlength=len(classes)) for samples in splits.values())
    of_classes = [f"{readable(folder)} {count}" for folder, count in zip(classes.folders, counts, strict=True)]
    console.say(console.plain(f"{where}: images of {sizes}; of {len(classes)} classes: {some(of_classes)}"))


def _samples(root: Path, split: Split, classes: ClassIndex) -> Samples:
    """Read a split's images, their classes mapped by name."""
    class_to_idx = classes.class_to_idx
    unknown = [readable(folder) for folder in split.folders if folder not in class_to_idx]
    if unknown:
        known = some([readable(folder) for folder in classes.folders])
        raise DataError(f"{split.where}: {some(unknown)} not among the {len(classes)} classes trained on ({known})")
    targets = array("q")

    def paths() -> Iterator[str]:
        for path, folder in split.images:
            targets.append(class_to_idx[folder])
            yield path

    return Samples(root, PathList(paths()), np.array(targets, np.int64))
