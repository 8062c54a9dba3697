"""The folder of a data set that was made: it appears only when it is whole, with a marker that says how it was made."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flowers.data.classes import DEFAULT_CLASS_NAMES
from flowers.errors import DataError
from flowers.files import replace_folder, restore_folder
from flowers.parsing import read_mapping

SPLITS = ("train", "valid", "test")


def read_marker(folder: Path, marker: str, settings: Mapping[str, object]) -> dict | None:
    """What the marker says if this very set is there already; None if nothing is there.

    Args:
        marker: name of its file.
        settings: those that the set is made with, all in the marker. It also has the images of each split, itself or
            under "counts".

    Raises:
        DataError: the folder holds something else, such as a part of the set.
    """
    restore_folder(folder)
    with contextlib.suppress(OSError):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
    found = read_mapping(folder / marker)
    counts = found.get("counts", found)
    if not counts or not isinstance(counts, dict):
        held = "other files"
    elif other := [f"{name} {found.get(name)}" for name, value in settings.items() if found.get(name) != value]:
        held = f"a set made with other settings ({', '.join(other)})"
    elif gone := [split for split in SPLITS if counts.get(split) and not (folder / split).is_dir()]:
        held = f"only a part of the set (no {gone[0]}/)"
    else:
        return found
    raise DataError(f"{folder} holds {held}: choose another --output-dir, or remove that folder first")


@contextlib.contextmanager
def new_set(folder: Path, marker: str, facts: Mapping[str, object], names: Sequence[str]) -> Iterator[Path]:
    """A folder to fill, which takes its place when the block ends.

    Args:
        marker: name of the file that says ``facts``.
        names: display names of the classes, whose folders are called 1, 2, 3, ...
    """
    with replace_folder(folder) as filled:
        yield filled
        labels = {str(number): name for number, name in enumerate(names, start=1)}
        (filled / DEFAULT_CLASS_NAMES).write_text(json.dumps(labels, indent=2) + "\n")
        (filled / marker).write_text(json.dumps(facts, indent=2) + "\n")
