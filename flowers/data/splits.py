"""Draw a validation split once, store it, and use the stored one from then on."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowers import console
from flowers.data.grouping import group_images
from flowers.data.paths import readable
from flowers.data.shards import without_shards
from flowers.errors import DataError
from flowers.files import write_atomically
from flowers.parsing import read_json
from flowers.retries import is_there

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ValidationDraw:
    """How a validation split is drawn from the training images.

    Attributes:
        val_fraction: share of train/ to hold out, from 0 (none) to below 1.
        seed: of the draw.
        split_file: where the split is kept; if it exists, it is used.
        anew: draw and write it even so: nobody has trained on the one that is there.
        group: what ``--group`` was given, see ``flowers.data.grouping``; the draw cuts no group.
    """

    val_fraction: float
    seed: int
    split_file: Path | None = None
    anew: bool = False
    group: Sequence[str] = ()

    def flags(self) -> dict[str, object]:
        """The values that decide which images are drawn, by the names of the flags."""
        return {"val_fraction": self.val_fraction, "seed": self.seed, "group": list(self.group)}


def split_train(paths: Sequence[str], targets: Sequence[int], draw: ValidationDraw) -> list[bool]:
    """Choose the training images that are held out for validation.

    Stratified: of each class the share to hold out, rounded; but every class keeps an image for training, and
    has one for validation if it has at least two. Which ones depends on the seed and each image's own path
    only: not on the order of the files, nor on a library's random numbers. A group of images is held out whole or not
    at all, so that with groups the shares are as near as these allow.

    Args:
        paths: N paths relative to the data folder, each once.
        targets: their N class indices.
        draw: with a share above 0; the main process writes its file.

    Returns:
        N flags, True for validation.

    Raises:
        DataError: the split file is broken, was drawn with another fraction, seed or groups, or of other images.
        UsageError: groups that fit none of the images.
    """
    if draw.split_file is not None and not draw.anew and is_there(draw.split_file):
        return _read(draw.split_file, paths, draw.flags())
    drawn = _draw(paths, targets, draw.val_fraction, draw.seed, group_images(paths, draw.group))
    if draw.split_file is not None and console.is_main_process():
        with write_atomically(draw.split_file) as file:
            split = {
                "format_version": FORMAT_VERSION,
                **draw.flags(),
                "train": [path for path, held_out in zip(paths, drawn, strict=True) if not held_out],
                "valid": [path for path, held_out in zip(paths, drawn, strict=True) if held_out],
            }
            json.dump(split, file, indent=0)  # ASCII: an undecodable byte of a name survives as its surrogate
    return drawn


def _draw(
    paths: Sequence[str], targets: Sequence[int], val_fraction: float, seed: int, groups: np.ndarray
) -> list[bool]:
    """Take groups by lot, each if that brings its classes nearer to their share; a lone image is a group of one.

    A class whose groups are all too large for that gets its smallest one, if it keeps another for training.
    """
    sizes = np.bincount(targets).tolist()
    wanted = [min(max(math.floor(size * val_fraction + 0.5), 1), max(size - 1, 0)) for size in sizes]
    taken = [0] * len(sizes)
    held_out = [False] * len(paths)
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    lots = sorted((_lot(paths[group], seed), indices) for group, indices in members.items())
    offers = [(indices, False) for _, indices in lots]
    offers += sorted(((indices, True) for indices, _ in offers), key=lambda offer: len(offer[0]))
    for indices, for_want in offers:
        if held_out[indices[0]]:
            continue
        counts = Counter(int(targets[index]) for index in indices)
        missing = sum(abs(wanted[label] - taken[label]) for label in counts)
        then = sum(abs(wanted[label] - taken[label] - count) for label, count in counts.items())
        nearer = then < missing or (for_want and any(not taken[label] for label in counts))
        if nearer and all(taken[label] + count < sizes[label] for label, count in counts.items()):
            for label, count in counts.items():
                taken[label] += count
            for index in indices:
                held_out[index] = True
    return held_out


def choose_some(paths: Sequence[str], targets: np.ndarray, most: int, seed: int) -> list[int]:
    """Choose images for a trial run: of each class its share, and at least one of each class that is there.

    Which ones depends on the seed and each image's own path only; a larger choice holds all of a smaller one.

    Args:
        most: images in all, at least as many as there are classes among ``targets``.

    Returns:
        Their indices, ascending.
    """
    sizes = np.bincount(targets)
    taken = np.zeros_like(sizes)
    ranks = []
    for lot, index in sorted((_lot(path, seed), index) for index, path in enumerate(paths)):
        label = targets[index]
        ranks.append((taken[label] / sizes[label], lot, index))  # 0 for the first of each class
        taken[label] += 1
    return sorted(index for _, _, index in sorted(ranks)[:most])


def _lot(path: str, seed: int) -> bytes:
    return hashlib.blake2b(b"%d/%s" % (seed, os.fsencode(without_shards(path))), digest_size=16).digest()


def read_split(split_file: Path) -> dict[str, bool]:
    """Read a split: each image's path, and True if it is held out for validation.

    Raises:
        DataError: not a split file, or one of another format version.
    """
    return _parse(split_file)[0]


def _read(split_file: Path, paths: Sequence[str], flags: dict[str, object]) -> list[bool]:
    where = readable(split_file)
    remedy = "resume with the same data and flags, or start in another --output-dir"
    held_out, drawn_with = _parse(split_file)
    if drawn_with != flags:
        before, now = (
            " ".join(f"--{name.replace('_', '-')} {value}" for name, value in of.items() if value != [])
            for of in (drawn_with, flags)
        )
        raise DataError(f"{where}: drawn with {before}, got {now}: {remedy}")
    new = [path for path in paths if path not in held_out]
    gone = held_out.keys() - set(paths) if len(held_out) + len(new) != len(paths) else set()
    if new or gone:
        example = readable(new[0] if new else min(gone))
        raise DataError(
            f"{where}: the images changed since this split was drawn, {len(new)} new and {len(gone)} gone "
            f"(such as {example}): {remedy}"
        )
    return [held_out[path] for path in paths]


def _parse(split_file: Path) -> tuple[dict[str, bool], dict[str, object]]:
    where = readable(split_file)
    try:
        split = read_json(split_file)
        if split["format_version"] != FORMAT_VERSION:
            raise DataError(f"{where}: format {split['format_version']}, this version reads {FORMAT_VERSION}")
        if not all(isinstance(path, str) for path in (*split["train"], *split["valid"])):
            raise TypeError("paths are text")
        held_out = dict.fromkeys(split["train"], False) | dict.fromkeys(split["valid"], True)
        flags = {"val_fraction": split["val_fraction"], "seed": split["seed"], "group": split.get("group", [])}
        return held_out, flags
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a split file ({type(error).__name__}: {error})") from None
