"""Check every image of a data set before training: for what would stop it, and for what would spoil it silently."""

import contextlib
import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image, JpegImagePlugin

from flowers import console
from flowers.data.choice import Choice
from flowers.data.classes import ClassIndex, groups_of_one_class
from flowers.data.corrections import Corrections
from flowers.data.file_bytes import read_bytes
from flowers.data.folders import NONE_TO_HOLD_OUT, Samples, load_image_folders
from flowers.data.grouping import groups
from flowers.data.images import decode_image
from flowers.data.layout import find_splits
from flowers.data.paths import readable
from flowers.data.threads import in_order
from flowers.datasets.near_duplicates import MAX_BITS, Fingerprint, fingerprint, near_pairs
from flowers.datasets.set_folder import SPLITS
from flowers.errors import DataError, ImageError, UsageError
from flowers.machine import cpus_per_process

PLAIN_MODES = ("RGB", "L")
NEAR, TINY, HUGE = 6, 64, 50_000_000
_SHORT_SIDE = 256  # as much as training needs; larger JPEGs decode faster at a reduced scale


class CheckedImage(NamedTuple):
    """One file of the data set."""

    path: str
    """Relative to the data folder."""
    split: str
    folder: str
    """Its class."""
    reason: str | None = None
    """Why it cannot be read, else None; then all that follows is there."""
    damage: str | None = None
    """What is missing or wrong in a file that can be read."""
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels."""
    mode: str = ""
    """Pillow's name for how colours are stored, and "animated" if there is more than one picture in the file."""
    digest: bytes = b""
    """Hash of the file's bytes."""
    likeness: Fingerprint | None = None
    """None also for a picture with next to nothing to see."""


@dataclass(frozen=True)
class Report:
    """Findings. Lists of images are sorted by path, groups by their first image."""

    data_dir: Path
    refusal: str | None
    """Why training would not start, apart from unreadable images."""
    classes: dict[str, str]
    """All class folders of all splits, in index order, with their display names."""
    counts: dict[str, dict[str, int]]
    """Split to class to images."""
    images: list[CheckedImage] = field(repr=False)
    duplicates: list[list[CheckedImage]]
    """Groups of files with the same bytes."""
    near_duplicates: list[list[CheckedImage]]
    """Groups of different files that look the same, with their exact duplicates."""
    tiny: list[CheckedImage]
    huge: list[CheckedImage]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many files in the folder are no images of the data set, by kind."""

    @property
    def alike(self) -> list[list[str]]:
        """Class folders whose names differ only in spelling."""
        return groups_of_one_class(self.classes)

    @property
    def unreadable(self) -> list[CheckedImage]:
        """Images that give no picture."""
        return [image for image in self.images if image.reason is not None]

    @property
    def damaged(self) -> list[CheckedImage]:
        """Images that give a picture although part of it is missing or wrong."""
        return [image for image in self.images if image.damage is not None]

    @property
    def trainable(self) -> bool:
        """True if training with default flags would start."""
        return self.refusal is None and not self.unreadable

    @property
    def odd_modes(self) -> dict[str, list[CheckedImage]]:
        """Images that are not plain 8-bit colour or grey, by mode; they are converted, but are worth a look."""
        odd: dict[str, list[CheckedImage]] = {}
        for image in self.images:
            if image.reason is None and image.mode not in PLAIN_MODES:
                odd.setdefault(image.mode, []).append(image)
        return dict(sorted(odd.items()))

    def leaked(self, split: str) -> list[CheckedImage]:
        """Images of valid or test that are in train, too, exactly or nearly: what makes a score too good."""
        leaked = {
            image
            for group in [*self.duplicates, *self.near_duplicates]
            if "train" in {image.split for image in group}
            for image in group
            if image.split == split
        }
        return sorted(leaked, key=_path_bytes)

    @property
    def contradictions(self) -> list[list[CheckedImage]]:
        """Groups of the same picture, exactly or nearly, in more than one class."""
        same = [*self.duplicates, *self.near_duplicates]
        return [group for group in same if len({image.folder for image in group}) > 1]

    def missing(self, split: str) -> list[str]:
        """Classes without an image in this split."""
        return [name for name in self.classes if not self.counts[split][name]]

    @property
    def imbalance(self) -> float:
        """Images of train's largest class to those of its smallest that has any."""
        counts = [count for count in self.counts.get("train", {}).values() if count]
        return max(counts) / min(counts) if counts else 1.0


class _Found(NamedTuple):
    """A data set before its images are read."""

    root: Path
    """Folder that paths start from."""
    names: dict[str, str]
    """Class folders, with their display names."""
    images: list[CheckedImage]
    """Sorted by path."""
    refusal: str | None = None
    """Why training would refuse it."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """Files that are no images of it, by kind."""


def check_dataset(
    data_dir: Path,
    *,
    corrections: Corrections | None = None,
    near: int = NEAR,
    tiny: int = TINY,
    huge: int = HUGE,
    workers: int | None = None,
    exclude: tuple[str, ...] = (),
) -> Report:
    """Read every image of a data set, as training would, and compare each with all others.

    Args:
        data_dir: what ``--data-dir`` of training takes.
        corrections: of labels.
        near: bits of 64 in which the fingerprints of near-duplicates may differ, 0 to 7.
        tiny: images with a short side under this many pixels are tiny.
        huge: images of more pixels than this are huge.
        workers: threads that read; default: the CPUs that this process may use.
        exclude: patterns of files and folders to leave out, see ``flowers.data.choice``.

    Raises:
        UsageError: ``near`` or ``workers`` out of range.
        DataError: there is nothing to check: no such folder, or no images in class folders.
    """
    if not 0 <= near <= MAX_BITS:
        raise UsageError(f"--near: got {near}, expected 0 to {MAX_BITS} bits")
    if workers is not None and workers < 1:
        raise UsageError(f"--workers: got {workers}, expected 1 or more")
    found = _find(Path(data_dir), Choice(exclude=exclude), corrections)
    return _check(Path(data_dir), found, near=near, tiny=tiny, huge=huge, threads=workers)


def check_splits(classes: ClassIndex, splits: Mapping[str, Samples]) -> Report:
    """Check splits of one data set that are loaded already, at least one, by name.

    Class folders' names are those of ``classes``, so nothing can be refused any more.
    """
    found = _of_samples(classes, splits)
    return _check(found.root, found)


def _check(
    data_dir: Path, found: _Found, *, near: int = NEAR, tiny: int = TINY, huge: int = HUGE, threads: int | None = None
) -> Report:
    there = {image.split for image in found.images}
    counts = {split: dict.fromkeys(found.names, 0) for split in SPLITS if split in there}
    for image in found.images:
        counts[image.split][image.folder] += 1
    images: list[CheckedImage] = []
    with console.progress("checking", len(found.images)) as meter:
        for image in in_order(lambda image: _look(found.root, image), found.images, threads or cpus_per_process()):
            images.append(image)
            meter.advance(1)
    good = [image for image in images if image.reason is None]
    contents = _by_content(good)
    return Report(
        data_dir=data_dir,
        refusal=found.refusal,
        classes=found.names,
        counts=counts,
        images=images,
        duplicates=[files for files in contents if len(files) > 1],
        near_duplicates=_near_duplicates(contents, near),
        tiny=[image for image in good if min(image.size) < tiny],
        huge=[image for image in good if image.size[0] * image.size[1] > huge],
        left_out=found.left_out,
    )


def _find(data_dir: Path, choice: Choice, corrections: Corrections | None) -> _Found:
    """List all images, also where training would refuse them."""
    try:
        # Without a drawn split: what has no valid/ is all train here.
        data = load_image_folders(data_dir, choice=choice, corrections=corrections)
    except DataError as error:
        return _find_refused(data_dir, choice, corrections, error)
    has_lone_images = data.valid is None and np.bincount(data.train.targets).max() == 1
    refusal = f"{readable(data_dir)}: {NONE_TO_HOLD_OUT}" if has_lone_images else None
    return _of_samples(data.classes, data.splits)._replace(refusal=refusal, left_out=choice.left_out)


def _of_samples(classes: ClassIndex, splits: Mapping[str, Samples]) -> _Found:
    images = [
        CheckedImage(path, split, classes.folders[target])
        for split, samples in splits.items()
        for path, target in zip(samples.paths, samples.targets, strict=True)
    ]
    names = dict(zip(classes.folders, classes.labels, strict=True))
    return _Found(next(iter(splits.values())).root, names, sorted(images, key=_path_bytes))


def _find_refused(data_dir: Path, choice: Choice, corrections: Corrections | None, refusal: DataError) -> _Found:
    """List the images of a data set that training refuses; if it has none, the refusal is raised."""
    choice.left_out.clear()
    root, splits = find_splits(data_dir, choice, corrections)
    folders = sorted({name for split in splits.values() for name in split.folders})
    images = [CheckedImage(path, split, name) for split in splits for path, name in splits[split].images]
    if not images:
        raise refusal
    if corrections is not None:  # what is listed would not be what was meant
        corrections.check_classes(folders, readable(data_dir))
        corrections.check_paths(readable(data_dir))
    names = dict(zip(folders, folders, strict=True))
    return _Found(root, names, sorted(images, key=_path_bytes), str(refusal), choice.left_out)


def _look(root: Path, image: CheckedImage) -> CheckedImage:
    """Read one image."""
    try:
        data = read_bytes(os.path.join(root, image.path))
        pixels, damage = decode_image(data, min_short_side=_SHORT_SIDE)
    except ImageError as error:
        return image._replace(reason=str(error))
    with _header(data, pixels) as header:
        size, mode = header.size, header.mode
        with contextlib.suppress(Exception):  # only some formats know; and only the first picture must be whole
            mode += " animated" if header.is_animated else ""
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return image._replace(damage=damage, size=size, mode=mode, digest=digest, likeness=fingerprint(pixels))


def _header(data: bytes, pixels: np.ndarray) -> Image.Image:
    """Open a file that gives a picture, to ask for its size and mode.

    Pillow gives up where only a JPEG's list of further pictures is broken; and on damaged files that decode all the
    same, mended or by another decoder: of these it is the picture itself.
    """
    for read in (Image.open, JpegImagePlugin.JpegImageFile):
        with contextlib.suppress(Exception):
            return read(io.BytesIO(data))
    return Image.fromarray(pixels)


def _by_content(images: list[CheckedImage]) -> list[list[CheckedImage]]:
    """Files with the same bytes together, by their first one."""
    same: dict[bytes, list[CheckedImage]] = {}
    for image in images:
        same.setdefault(image.digest, []).append(image)
    return list(same.values())


def _near_duplicates(contents: list[list[CheckedImage]], near: int) -> list[list[CheckedImage]]:
    seen = [files for files in contents if files[0].likeness is not None]
    pairs = near_pairs([files[0].likeness for files in seen], near)
    joined = [[image for index in group for image in seen[index]] for group in groups(len(seen), pairs)]
    return [sorted(group, key=_path_bytes) for group in joined]


def _path_bytes(image: CheckedImage) -> bytes:
    return os.fsencode(image.path)
