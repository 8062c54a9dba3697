"""Draw a validation split once, store it, and use the stored one from then on."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from flowers import console
from flowers.data.paths import readable
from flowers.errors import DataError
from flowers.files import write_atomically

FORMAT_VERSION = 1


def split_train(
    paths: Sequence[str],
    targets: Sequence[int],
    *,
    val_fraction: float,
    seed: int,
    split_file: Path | None,
    anew: bool = False,
) -> list[bool]:
    """Choose the training images that are held out for validation.

    Stratified: of each class the share ``val_fraction``, rounded; but every class keeps an image for training, and
    has one for validation if it has at least two. Which ones depends on the seed and each image's own path
    only: not on the order of the files, nor on a library's random numbers.

    Args:
        paths: N paths relative to the data folder, each once.
        targets: their N class indices.
        val_fraction: above 0, below 1.
        split_file: the split is read from here if this file exists, else the main process writes it here.
        anew: draw and write it even so: nobody has trained on the one that is there.

    Returns:
        N flags, True for validation.

    Raises:
        DataError: ``split_file`` is broken, was drawn with another fraction or seed, or of other images.
    """
    if split_file is not None and not anew and os.path.exists(split_file):
        return _read(split_file, paths, val_fraction, seed)
    drawn = _draw(paths, targets, val_fraction, seed)
    if split_file is not None and console.is_main_process():
        with write_atomically(split_file) as file:
            split = {
                "format_version": FORMAT_VERSION,
                "seed": seed,
                "val_fraction": val_fraction,
                "train": [path for path, held_out in zip(paths, drawn, strict=True) if not held_out],
                "valid": [path for path, held_out in zip(paths, drawn, strict=True) if held_out],
            }
            json.dump(split, file, indent=0)  # ASCII: an undecodable byte of a name survives as its surrogate
    return drawn


def _draw(paths: Sequence[str], targets: Sequence[int], val_fraction: float, seed: int) -> list[bool]:
    members: dict[int, list[int]] = {}
    for index, target in enumerate(targets):
        members.setdefault(int(target), []).append(index)
    drawn = [False] * len(paths)
    for indices in members.values():
        count = math.floor(len(indices) * val_fraction + 0.5)
        count = min(max(count, 1), len(indices) - 1)
        lots = sorted((_lot(paths[index], seed), index) for index in indices)
        for _, index in lots[:count]:
            drawn[index] = True
    return drawn


def _lot(path: str, seed: int) -> bytes:
    return hashlib.blake2b(b"%d/%s" % (seed, os.fsencode(path)), digest_size=16).digest()


def read_split(split_file: Path) -> dict[str, bool]:
    """Read a split: each image's path, and True if it is held out for validation.

    Raises:
        DataError: not a split file, or one of another format version.
    """
    return _parse(split_file)[0]


def _read(split_file: Path, paths: Sequence[str], val_fraction: float, seed: int) -> list[bool]:
    where = readable(split_file)
    remedy = "resume with the same data and flags, or start in another --output-dir"
    held_out, drawn_with = _parse(split_file)
    if drawn_with != (val_fraction, seed):
        raise DataError(
            f"{where}: drawn with --val-fraction {drawn_with[0]} --seed {drawn_with[1]}, "
            f"got {val_fraction} and {seed}: {remedy}"
        )
    new = [path for path in paths if path not in held_out]
    gone = held_out.keys() - set(paths) if len(held_out) + len(new) != len(paths) else set()
    if new or gone:
        example = readable(new[0] if new else min(gone))
        raise DataError(
            f"{where}: the images changed since this split was drawn, {len(new)} new and {len(gone)} gone "
            f"(such as {example}): {remedy}"
        )
    return [held_out[path] for path in paths]


def _parse(split_file: Path) -> tuple[dict[str, bool], tuple[float, int]]:
    where = readable(split_file)
    try:
        split = json.loads(split_file.read_text(encoding="utf-8"))
        if split["format_version"] != FORMAT_VERSION:
            raise DataError(f"{where}: format {split['format_version']}, this version reads {FORMAT_VERSION}")
        held_out = dict.fromkeys(split["train"], False) | dict.fromkeys(split["valid"], True)
        return held_out, (split["val_fraction"], split["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a split file ({type(error).__name__}: {error})") from None
