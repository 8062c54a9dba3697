"""The layout of a data set: which splits it has, and the path and class of each of their images.

Layouts that are understood:

- ``D/train/CLASS/...``, ``D/valid/CLASS/...`` (or ``val``, ``validation``, ``eval``, ``dev``), ``D/test/CLASS/...`` (or
  ``testing``); only train/ must be there. Any of them may instead be a list, ``D/train.csv`` and so on;
- ``D/CLASS/IMAGE``: one tree without splits, taken as train/;
- tar shards: a tar, a folder of tars, or ``D/train/*.tar`` and so on (see ``flowers.data.shards``);
- ``D.csv``: a list with the columns path,class and perhaps split, or ``D.txt``, one path a line (see
  ``flowers.data.lists``).
"""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from flowers import console
from flowers.data.archives import COMPRESSED
from flowers.data.choice import Choice
from flowers.data.corrections import Corrections
from flowers.data.formats.names import IMAGE_EXTENSIONS
from flowers.data.lists import SPLIT_NAMES, SPLITS, ListedImage, read_labelled, with_splits
from flowers.data.paths import readable, some
from flowers.data.scan import scan_images
from flowers.data.shards import is_shard, list_shards, shards_in
from flowers.errors import DataError, system_reason
from flowers.retries import mode_of


class Split(NamedTuple):
    """One split, found but not read yet."""

    where: str
    """For messages: the folder or the list."""
    folders: list[str]
    """Class names."""
    images: Iterable[tuple[str, str]]
    """Path and class name; read once, sorted by path."""


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
    mode = _mode(data_dir)
    if stat.S_ISREG(mode):
        root, splits = data_dir.parent, _in_file(data_dir, choice)
    elif stat.S_ISDIR(mode):
        root, splits = data_dir, _in_split_folders(data_dir, choice) or _in_one_tree(data_dir, choice)
    else:
        raise DataError(f"{readable(data_dir)}: no such folder or list file")
    if corrections is not None:
        corrections.found.clear()
        splits = {name: split._replace(images=corrections.corrected(split.images)) for name, split in splits.items()}
    return root, splits


def _in_file(file: Path, choice: Choice) -> dict[str, Split]:
    if is_shard(file):
        return _by_split(file, list_shards(file.parent, [file.name], choice))
    if file.name.lower().endswith((".zip", *COMPRESSED)):
        raise DataError(f"{readable(file)}: cannot be read by offset; make a plain .tar of it")
    return _by_split(file, _read_list(file, choice))


def _in_split_folders(data_dir: Path, choice: Choice) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for name, split in SPLIT_NAMES.items():
        folder, list_file = data_dir / name, data_dir / f"{name}.csv"
        kinds = ((folder, stat.S_ISDIR), (list_file, stat.S_ISREG))
        there = [path for path, is_kind in kinds if is_kind(_mode(path))]
        # In one tree of class folders, a class may have the name "dev".
        if not (name and there) or (name not in SPLITS and "train" not in splits and _has_images(folder)):
            continue
        if len(there) > 1 or split in splits:
            other = list_file if len(there) > 1 else splits[split].where
            raise DataError(f"{readable(there[0])}: there is {readable(other)}, too; keep one of them")
        if there == [list_file]:
            splits[split] = _listed(list_file, _read_list(list_file, choice))
        elif (folders := _subfolders(folder, choice, f"{name}/")) or not (shards := shards_in(folder)):
            splits[split] = Split(readable(folder), folders, _in_folders(folder, choice, f"{name}/"))
        else:
            splits[split] = _listed(folder, list_shards(data_dir, [f"{name}/{shard}" for shard in shards], choice))
    return splits


def _in_one_tree(data_dir: Path, choice: Choice) -> dict[str, Split]:
    # Class folders hold images themselves: the parent of some data sets is no data set.
    folders = _subfolders(data_dir, choice)
    if any(_has_images(data_dir / folder) for folder in folders):
        return {"train": Split(readable(data_dir), folders, _in_folders(data_dir, choice, ""))}
    shards = shards_in(data_dir)
    return _by_split(data_dir, list_shards(data_dir, shards, choice)) if shards else {}


def _by_split(where: Path, images: list[ListedImage]) -> dict[str, Split]:
    images = with_splits(where, images)
    names = sorted({image.split for image in images})
    return {name: _listed(where, [image for image in images if image.split == name]) for name in names}


def _read_list(list_file: Path, choice: Choice) -> list[ListedImage]:
    """The images of a list that are not excluded; a list names each of them, whatever its ending or folder."""
    return [image for image in read_labelled(list_file) if not choice.excludes_listed(image.path)]


def _listed(where: Path, images: list[ListedImage]) -> Split:
    pairs = [(image.path, image.folder) for image in images]
    return Split(readable(where), sorted({folder for _, folder in pairs}), pairs)


def warn_of_unused(data_dir: Path, choice: Choice) -> None:
    """Name the folders of class folders beside train/ that are taken for no split."""
    if not stat.S_ISDIR(_mode(data_dir / "train")):
        return
    unused = [
        readable(name)
        for name in _subfolders(data_dir, choice)
        if name not in SPLIT_NAMES
        and any(_has_images(data_dir / name / folder) for folder in _subfolders(data_dir / name, choice, f"{name}/"))
    ]
    if unused:
        console.warn(f"{readable(data_dir)}: not used, no name of a split: {some(unused)}")


def holds_classes(folder: Path, data_dir: Path) -> bool:
    """True of a folder of a data set whose own folders are its classes, as any other that is made there would be."""
    trees = [data_dir, *(data_dir / name for name in SPLIT_NAMES)]
    if stat.S_ISDIR(_mode(data_dir / "train")):
        trees.remove(data_dir)
    if not any(tree.is_dir() and os.path.samefile(tree, folder) for tree in trees if os.path.exists(folder)):
        return False
    return any(_has_images(folder / name) for name in _subfolders(folder, Choice()))


def _mode(path: Path) -> int:
    """Type and permissions of a file or folder, 0 if there is none; no answer of a disk is taken for a no.

    Raises:
        DataError: the disk does not tell, after some tries.
    """
    try:
        return mode_of(path)
    except OSError as error:
        raise DataError(f"{readable(path)}: cannot be read: {system_reason(error)}") from None


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
        console.warn(
            f"{readable(folder)}: {console.counted(stray, 'image lies', 'images lie')} in no class folder, left out"
        )


def _subfolders(folder: Path, choice: Choice, prefix: str = "") -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
            return [name for name in names if choice.skips(os.fsencode(prefix + name)) is None]
    except OSError as error:
        raise DataError(f"{readable(folder)}: cannot be listed: {system_reason(error)}") from None


def _has_images(folder: Path) -> bool:
    """True if there are images in the folder itself; deeper ones are not looked for, it may be a whole disk."""
    endings = tuple(IMAGE_EXTENSIONS)
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(endings) and not entry.is_dir() for entry in entries)
    except OSError:
        return False
