"""Find the images of a data set and their classes: split folders with class folders, one tree, tar shards, lists.

The class index is that of train/: its folder names sorted as strings ("1", "10", "100", "101", "11", ...), and every
other split is mapped through it by name. Layouts that are understood:

- ``D/train/CLASS/...``, ``D/valid/CLASS/...`` (or ``val``, ``validation``, ``eval``, ``dev``), ``D/test/CLASS/...`` (or
  ``testing``); only train/ must be there. Any of them may instead be a list, ``D/train.csv`` and so on;
- ``D/CLASS/IMAGE``: one tree without splits, taken as train/;
- tar shards: a tar, a folder of tars, or ``D/train/*.tar`` and so on (see ``flowers.data.shards``);
- ``D.csv``: a list with the columns path,class and perhaps split, or ``D.txt``, one path a line (see
  ``flowers.data.lists``).
"""

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowers import console
from flowers.data.archives import COMPRESSED
from flowers.data.choice import Choice, said_left_out
from flowers.data.classes import ClassIndex, alike, display_names
from flowers.data.corrections import Corrections
from flowers.data.formats.names import IMAGE_EXTENSIONS
from flowers.data.grouping import warn_of_leaks
from flowers.data.lists import SPLIT_NAMES, SPLITS, ListedImage, read_labelled, with_splits
from flowers.data.paths import PathList, readable, some
from flowers.data.scan import scan_images
from flowers.data.shards import is_shard, list_shards, shards_in
from flowers.data.splits import ValidationDraw, choose_some, read_split, split_train
from flowers.errors import DataError, NoSplitError, UsageError

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


class Split(NamedTuple):
    """One split, found but not read yet."""

    where: str
    """For messages: the folder or the list."""
    folders: list[str]
    """Class names."""
    images: Iterable[tuple[str, str]]
    """Path and class name; read once, sorted by path."""


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
        data_dir: a folder or a list, see above.
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
    root, splits = find_splits(Path(data_dir), choice, corrections)
    if "train" not in splits:
        have = ", ".join(sorted(splits)) or "nothing to train on"
        raise DataError(f"{readable(data_dir)}: no train/ folder (found: {have}); expected train/CLASS/IMAGES")
    folders = tuple(sorted(splits["train"].folders))
    where = splits["train"].where
    if not folders:
        raise DataError(f"{where}: no classes; expected one folder a class")
    if len(folders) == 1:
        raise DataError(f"{where}: only one class ({readable(folders[0])}); expected two or more, one folder each")
    classes = ClassIndex(folders, display_names(folders, root, class_names))
    if corrections is not None:
        corrections.check_classes(folders, where)
    faults: list[str] = []

    def read(name: str) -> Samples | None:
        try:
            return _samples(root, splits[name], classes)
        except DataError as error:
            faults.append(str(error))
            return None

    train = read("train")
    counts = np.ones(len(folders)) if train is None else np.bincount(train.targets, minlength=len(folders))
    empty = [readable(folders[index]) for index in np.flatnonzero(counts == 0)]
    if empty:
        faults.append(f"{where}: no images in {some(empty)}; add some, or remove the folder")
    valid, test = (read(name) if name in splits else None for name in ("valid", "test"))
    if corrections is not None and not faults:  # without a split that is refused some would seem to be of no image
        corrections.check_paths(readable(data_dir))
    for name, samples in (("valid", valid), ("test", test)):
        if samples is not None and not len(samples):
            faults.append(f"{splits[name].where}: no images; add some, or remove it")
    if faults:
        raise DataError("; ".join(faults))
    warn_of_one_class(where, folders)
    _warn_of_unused(Path(data_dir), choice)
    if choice.left_out:
        console.say(console.plain(f"{readable(data_dir)}: {said_left_out(choice.left_out)}"))
    if root != Path(data_dir):
        _say_what_is_listed(readable(data_dir), {"train": train, "valid": valid, "test": test}, classes)
    for name, samples in (("valid", valid), ("test", test)):
        if samples is not None:
            warn_of_missing_classes(splits[name].where, samples, classes)
    if valid is None and draw.val_fraction > 0:
        held_out = split_train(train.paths, train.targets, draw)
        if not any(held_out):
            none = "one group of images a class, none to hold out without cutting it; add valid/ or leave --group out"
            raise DataError(f"{where}: {none if draw.group else NONE_TO_HOLD_OUT}")
        valid = train.take(np.flatnonzero(held_out))
        train = train.take(np.flatnonzero(~np.array(held_out)))
        flags = f"--val-fraction {draw.val_fraction}, --seed {draw.seed}"
        console.say(f"validation split: {len(valid)} images drawn from train ({flags})")
    found = ImageFolders(classes, train, valid, test, corrections)
    if draw.group and len(found.splits) > 1:
        warn_of_leaks({name: samples.paths for name, samples in found.splits.items()}, draw.group)
    return found


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
    root, splits = find_splits(Path(data_dir), choice or Choice(), corrections)
    drawn = (
        split_file is not None and os.path.exists(split_file) and "valid" not in splits and name in ("train", "valid")
    )
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
        held_out = read_split(split_file)
        if corrections is not None:
            held_out = {path: held for path, held in held_out.items() if corrections.classes.get(path, "") is not None}
        if name == "valid" or any(path in held_out for path in samples.paths):
            samples = samples.take(i for i, path in enumerate(samples.paths) if held_out.get(path) is (name == "valid"))
            gone = list(held_out.values()).count(name == "valid") - len(samples)
            if gone:
                raise DataError(f"{splits[source].where}: lacks {gone} images of the split in {readable(split_file)}")
    if not len(samples):
        raise DataError(f"{splits[source].where}: no images")
    return samples


def warn_of_missing_classes(where: str, samples: Samples, classes: ClassIndex) -> None:
    """Name the classes that a split has no images of: figures on it say nothing about them."""
    counts = np.bincount(samples.targets, minlength=len(classes))
    missing = [readable(classes.folders[index]) for index in np.flatnonzero(counts == 0)]
    if missing:
        console.warn(f"{where}: no images of {len(missing)} of {len(classes)} classes: {some(missing)}")


def _say_what_is_listed(where: str, splits: dict[str, Samples | None], classes: ClassIndex) -> None:
    """Say how many images of which split and class a list was understood to hold."""
    there = {name: samples for name, samples in splits.items() if samples is not None}
    sizes = ", ".join(f"{name} {len(samples)}" for name, samples in there.items())
    counts = sum(np.bincount(samples.targets, minlength=len(classes)) for samples in there.values())
    of_classes = [f"{readable(folder)} {count}" for folder, count in zip(classes.folders, counts, strict=True)]
    console.say(console.plain(f"{where}: images of {sizes}; of {len(classes)} classes: {some(of_classes)}"))


def groups_of_one_class(folders: Iterable[str]) -> list[list[str]]:
    """Class folders whose names differ only in case, blanks, leading zeros or how letters are composed."""
    groups: dict[str, list[str]] = {}
    for folder in folders:
        groups.setdefault(alike(folder), []).append(folder)
    return [group for group in groups.values() if len(group) > 1]


def told_apart(names: Sequence[str]) -> str:
    """Names that look alike, in quotes, with the code points of what is not plain ASCII."""
    points = ["".join(f" U+{ord(char):04X}" for char in name if not char.isascii()) for name in names]
    return " and ".join(f"{name!r}{f' ({p.strip()})' if p else ''}" for name, p in zip(names, points, strict=True))


def warn_of_one_class(where: str, folders: Iterable[str]) -> None:
    """Name class folders that are hardly several classes."""
    groups = groups_of_one_class(folders)
    if groups:
        said = some([told_apart(group) for group in groups])
        console.warn(f"{where}: these classes are separate, but their names differ only in spelling: {said}")


def _warn_of_unused(data_dir: Path, choice: Choice) -> None:
    """Name the folders of class folders beside train/ that are taken for no split."""
    if not os.path.isdir(data_dir / "train"):
        return
    unused = [
        readable(name)
        for name in _subfolders(data_dir, choice)
        if name not in SPLIT_NAMES
        and any(_has_images(data_dir / name / folder) for folder in _subfolders(data_dir / name, choice, f"{name}/"))
    ]
    if unused:
        console.warn(f"{readable(data_dir)}: not used, no name of a split: {some(unused)}")


def find_splits(
    data_dir: Path, choice: Choice, corrections: Corrections | None = None
) -> tuple[Path, dict[str, Split]]:
    """The folder that paths start from, and train, valid and test as far as they are there.

    Args:
        data_dir: a folder or a list.
        choice: which images are taken; it counts the others as the images are read.
        corrections: of the images' classes; all that lists a data set lists it through here. Their own checks are the
            caller's, once the images are read.

    Raises:
        DataError: no such folder or list, a broken list, or a split that is there twice.
    """
    root, splits = _find_splits(data_dir, choice)
    if corrections is not None:
        corrections.found.clear()
        splits = {name: split._replace(images=corrections.corrected(split.images)) for name, split in splits.items()}
    return root, splits


def _find_splits(data_dir: Path, choice: Choice) -> tuple[Path, dict[str, Split]]:
    if os.path.isfile(data_dir) and is_shard(data_dir):
        return data_dir.parent, _in_shards(data_dir, data_dir.parent, [data_dir.name], choice)
    if os.path.isfile(data_dir):
        if data_dir.name.lower().endswith((".zip", *COMPRESSED)):
            raise DataError(f"{readable(data_dir)}: cannot be read by offset; make a plain .tar of it")
        images = with_splits(data_dir, _chosen(read_labelled(data_dir), choice))
        names = sorted({image.split for image in images})
        return data_dir.parent, {name: _listed(data_dir, images, name) for name in names}
    if not os.path.isdir(data_dir):
        raise DataError(f"{readable(data_dir)}: no such folder or list file")
    splits: dict[str, Split] = {}
    for name, split in SPLIT_NAMES.items():
        if not name:
            continue
        folder, list_file = data_dir / name, data_dir / f"{name}.csv"
        found = [folder] if os.path.isdir(folder) else []
        found += [list_file] if os.path.isfile(list_file) else []
        # In one tree of class folders, a class may have the name "dev".
        if not found or (name not in SPLITS and "train" not in splits and _has_images(folder)):
            continue
        if len(found) > 1 or split in splits:
            other = list_file if len(found) > 1 else splits[split].where
            raise DataError(f"{readable(found[0])}: there is {readable(other)}, too; keep one of them")
        if found == [folder]:
            below = f"{name}/"
            folders = _subfolders(folder, choice, below)
            if not folders and (shards := shards_in(folder)):
                images = list_shards(data_dir, [below + shard for shard in shards], choice)
                splits[split] = _listed(folder, images)
            else:
                splits[split] = Split(readable(folder), folders, _in_folders(folder, choice, below))
        else:
            splits[split] = _listed(list_file, _chosen(read_labelled(list_file), choice))
    if not splits:
        # One tree. Class folders hold images themselves: the parent of some data sets is no data set.
        folders = _subfolders(data_dir, choice)
        if any(_has_images(data_dir / folder) for folder in folders):
            splits["train"] = Split(readable(data_dir), folders, _in_folders(data_dir, choice, ""))
        elif shards := shards_in(data_dir):
            splits = _in_shards(data_dir, data_dir, shards, choice)
    return data_dir, splits


def _in_shards(where: Path, root: Path, shards: list[str], choice: Choice) -> dict[str, Split]:
    """The splits of one tar or a folder of them, by the names of folders inside and of the tars."""
    images = with_splits(where, list_shards(root, shards, choice))
    return {name: _listed(where, images, name) for name in sorted({image.split for image in images})}


def _chosen(images: list[ListedImage], choice: Choice) -> list[ListedImage]:
    """The images of a list that are not excluded; a list names each of them, whatever its ending or folder."""
    return [image for image in images if not choice.excludes_listed(image.path)]


def _listed(list_file: Path, images: list[ListedImage], only: str | None = None) -> Split:
    images = [image for image in images if only is None or image.split == only]
    pairs = [(image.path, image.folder) for image in images]
    return Split(readable(list_file), sorted({folder for _, folder in pairs}), pairs)


def _in_folders(folder: Path, choice: Choice, prefix: str) -> Iterator[tuple[str, str]]:
    stray = 0
    for path in scan_images(folder, choice, below=prefix):
        name, slash, _ = path.partition("/")
        if slash:
            yield prefix + path, name
        else:
            stray += 1
    if stray:
        choice.left_out["in no class folder"] += stray
        console.warn(f"{readable(folder)}: {stray} images lie in no class folder, left out")


def _subfolders(folder: Path, choice: Choice, prefix: str = "") -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
            return [name for name in names if choice.skips(os.fsencode(prefix + name)) is None]
    except OSError as error:
        raise DataError(f"{readable(folder)}: cannot be listed: {(error.strerror or '').lower()}") from None


def _has_images(folder: Path) -> bool:
    """True if there are images in the folder itself; deeper ones are not looked for, it may be a whole disk."""
    endings = tuple(IMAGE_EXTENSIONS)
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(endings) and not entry.is_dir() for entry in entries)
    except OSError:
        return False


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
