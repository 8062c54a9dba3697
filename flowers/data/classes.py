"""The classes of a network's outputs: class folders in index order, and the names to show for them."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowers import console
from flowers.data.paths import readable, some
from flowers.errors import DataError, system_reason
from flowers.parsing import read_json
from flowers.retries import is_there

_GAPS = re.compile(r"[\s_-]+")
_WHOLE_NUMBER = re.compile(r"0*(\d+)(\.0+)?")  # spreadsheets make 1 or 1.0 of 01

DEFAULT_CLASS_NAMES = "cat_to_name.json"


@dataclass(frozen=True)
class ClassIndex:
    """The classes of a network's outputs.

    Attributes:
        folders: class folder names, in index order.
        labels: names to show, in the same order.
    """

    folders: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.folders)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Folder name to index."""
        return {folder: index for index, folder in enumerate(self.folders)}


def alike(name: str) -> str:
    """A key under which spellings of one class name are equal: two names with one key are hardly two classes.

    Case, blanks, underscores, hyphens, leading zeros of a number and how letters with marks are composed do not count.
    """
    text = _GAPS.sub(" ", unicodedata.normalize("NFKC", name).casefold()).strip()
    number = _WHOLE_NUMBER.fullmatch(text)
    return number[1] if number else text


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


def is_folder_name(name: str) -> bool:
    """False for what no class folder can be called: predictions may be sorted into folders of these names."""
    return name not in ("", ".", "..") and not any(char in name for char in ("/", "\0", os.sep, os.altsep or "/"))


def warn_of_one_class(where: str, folders: Iterable[str]) -> None:
    """Name class folders that are hardly several classes."""
    groups = groups_of_one_class(folders)
    if groups:
        said = some([told_apart(group) for group in groups])
        console.warn(f"{where}: these classes are separate, but their names differ only in spelling: {said}")


def names_digest(names: Sequence[str]) -> str:
    """SHA-256 (hex) of names in their order."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def renamed(classes: ClassIndex, class_names: Path | None) -> ClassIndex:
    """A model's classes with the names of a file, as ``display_names`` reads it; None: as they are.

    Raises:
        DataError: the file cannot be read, is no such JSON, or names none of the classes.
    """
    if class_names is None:
        return classes
    return ClassIndex(classes.folders, display_names(classes.folders, Path(), class_names))


def display_names(folders: tuple[str, ...], root: Path, class_names: Path | None) -> tuple[str, ...]:
    """Find the name to show for each class; one without a name keeps its folder's, with a warning.

    Args:
        folders: class folders in index order.
        root: where cat_to_name.json is looked for.
        class_names: a JSON file of folder name to display name, instead; names of no class of ours are ignored.

    Returns:
        Display names in index order.

    Raises:
        DataError: the file cannot be read, is no such JSON, or, if it was asked for, names none of the classes.
    """
    file = class_names or root / DEFAULT_CLASS_NAMES
    try:
        if class_names is None and not is_there(file):
            return folders
        names = read_json(file)
    except OSError as error:
        raise DataError(f"{readable(file)}: cannot be read: {system_reason(error)}") from None
    except ValueError as error:
        raise DataError(f"{readable(file)}: not JSON: {error}") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        raise DataError(f'{readable(file)}: expected {{"class folder": "display name", ...}}')
    missing = [readable(folder) for folder in folders if folder not in names]
    if class_names is not None and len(missing) == len(folders):
        raise DataError(f"{readable(file)}: names none of the classes ({some(missing)})")
    if missing:
        console.warn(f"{readable(file)}: no name for {some(missing)}; the folder's name is shown")
    return tuple(names.get(folder, folder) for folder in folders)
