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
from flowers.errors import DataError


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


def warn_of_unused(data_dir: Path, choice: Choice) -> None:
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
