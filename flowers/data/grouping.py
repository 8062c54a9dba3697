"""Groups of images that belong together, such as the photos of one plant or burst: a drawn split never cuts one."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from flowers import console
from flowers.data.paths import decode_path, readable, some
from flowers.data.tables import table_rows
from flowers.errors import DataError, UsageError
from flowers.parsing import read_json

HINT = (
    "expected a table (.csv with the columns path,group), the findings of prepare.py check --output (.json), or a "
    "regular expression"
)


def group_images(paths: Sequence[str], sources: Sequence[str], *, warns: bool = False) -> np.ndarray:
    """Join images that any source puts into one group; an image that none knows is a group of its own.

    Args:
        paths: N paths relative to the data folder.
        sources: what ``--group`` was given, each a table, the findings of the data check, or a regular expression
            whose first group, or else whole match, in a path is the name of the image's group.
        warns: say how many images a source does not know; one caller of a job does.

    Returns:
        [N] int64, the index of the first image of each image's group.

    Raises:
        DataError: a table that cannot be read, or that names none of the images.
        UsageError: an expression that is none, or that matches no path.
    """
    return leaders(len(paths), _links(paths, sources, warns))


def _links(paths: Sequence[str], sources: Sequence[str], warns: bool) -> Iterator[tuple[int, int]]:
    """Each image that a source knows, and the first one of its group there."""
    for source in sources:
        group_of, known = _reader(source), 0
        first: dict[object, int] = {}
        for index, path in enumerate(paths):
            name = group_of(path)
            if name is not None:
                known += 1
                yield index, first.setdefault(name, index)
        if not known:
            raise UsageError(
                f"--group {console.plain(source)}: fits none of {len(paths)} images, such as {readable(paths[0])}; "
                f"{HINT}"
            )
        if warns and known < len(paths):
            console.warn(
                f"--group {console.plain(source)}: {len(paths) - known} of {len(paths)} images are in no group"
            )


def leaders(count: int, links: Iterable[tuple[int, int]]) -> np.ndarray:
    """Join indices through any number of links.

    Returns:
        [count] int64, for each index the smallest one of its group.
    """
    parent = list(range(count))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for one, other in links:
        low, high = sorted((root(int(one)), root(int(other))))
        parent[high] = low
    return np.array([root(index) for index in range(count)], np.int64)


def groups(count: int, links: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The groups of two or more of the indices 0 to ``count`` - 1, each sorted, in order of their first members."""
    members: dict[int, list[int]] = {}
    for index, leader in enumerate(leaders(count, links).tolist()):
        members.setdefault(leader, []).append(index)
    return [group for group in members.values() if len(group) > 1]


def warn_of_groups(splits: dict[str, Sequence[str]], sources: Sequence[str]) -> None:
    """Name the images that are in no group, and the groups that stand in several splits."""
    paths = [path for of_split in splits.values() for path in of_split]
    names = np.repeat(list(splits), [len(of_split) for of_split in splits.values()])
    groups = group_images(paths, sources, warns=True)
    of_train = set(groups[names == "train"].tolist())
    cut = [readable(paths[index]) for index in np.flatnonzero(names != "train") if groups[index] in of_train]
    if cut:
        console.warn(
            f"--group: {console.counted(len(cut), 'image outside train belongs', 'images outside train belong')} to "
            f"groups that are in train, too, so that figures are too good: {some(cut)}"
        )


def _reader(source: str) -> Callable[[str], object | None]:
    """A function from an image's path to the name of its group, or None."""
    if Path(source).suffix.lower() in (".csv", ".json"):
        groups = dict(_of_check(source) if source.lower().endswith(".json") else _of_table(source))
        return lambda path: groups.get(os.path.normpath(path))
    try:
        pattern = re.compile(source)
    except re.error as error:
        raise UsageError(f"--group {console.plain(source)}: no regular expression ({error}); {HINT}") from None

    def name(path: str) -> str | None:
        match = pattern.search(path)
        return match and match[1 if pattern.groups else 0]

    return name


def _of_table(source: str) -> Iterator[tuple[str, str]]:
    seen: dict[str, str] = {}
    for line, row in table_rows(Path(source), "path,group"):
        if "group" not in row:
            raise DataError(f"--group {readable(source)}: got the columns {','.join(row)}, expected path,group")
        path, group = os.path.normpath(row["path"]), row["group"]
        if group and seen.setdefault(path, group) != group:
            raise DataError(
                f"--group {readable(source)}, line {line}: {readable(path)} stands in another group, too; keep one row"
            )
    yield from seen.items()


def _of_check(source: str) -> Iterator[tuple[str, int]]:
    try:
        found = read_json(source)
        # Near-duplicates list the exact duplicates of each picture with it, and come last.
        for number, paths in enumerate([*found["duplicates"], *found["near_duplicates"]]):
            for path in paths:
                yield os.path.normpath(decode_path(path)), number
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"--group {readable(source)}: cannot be read as the findings of prepare.py check: {error}"
        ) from None
