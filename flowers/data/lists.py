"""List files: the images of a job named one by one, instead of found in folders.

Two kinds, both UTF-8 (bytes of a name that are not are kept), both with paths relative to the folder the list is in:

- ``NAME.csv``: a header, then a row an image. The column ``path`` must be there. ``class`` (or ``label``) is the
  class; ``split`` is train, valid (or val) or test, and train where it is empty. Other columns are ignored, so a
  predictions file is a list, too. As there, a backslash in a path or class is written ``\\\\`` and a byte that is not
  UTF-8 ``\\xNN``.
- ``NAME.csv.gz``: the same, compressed; ``NAME.xlsx``: the same, the first sheet of an Excel file; ``NAME.jsonl`` and
  ``NAME.parquet`` with these columns.
- any other name: plain text, one path a line. If the file holds NUL bytes these end the paths, not line ends: what
  ``find -print0`` writes. Where a class is needed it is the folder that the image lies in.

Where no column says it, the split is the folder of the path that is called like one: the first folder below the
list's own (``valid/rose/1.jpg``, ``./valid/rose/1.jpg``, or the same as an absolute path), else the last one above the
class (``photos/valid/rose/1.jpg``). Without such folders all is train; a list with some is refused where a path has
none, since images that were held out could become training images. Paths stay as they are written, and are compared
by the file that they mean.
"""

import codecs
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from flowers.data.paths import decode_path, readable
from flowers.data.tables import IS_UTF16, TABLES, table_rows
from flowers.errors import DataError, system_reason

SPLITS = {"train": "train", "": "train", "valid": "valid", "val": "valid", "test": "test"}
"""Values of the column ``split``, and the splits that they mean."""
SPLIT_NAMES = SPLITS | {"validation": "valid", "eval": "valid", "dev": "valid", "testing": "test"}
"""Names of folders and lists in a data set, and the splits that they mean."""

STDIN = "-"
"""The name of the standard input as a list."""
_BLOCK_BYTES = 1 << 20
_SHOWN = 100
"""Characters of a path that a message shows; a file that is no list may have lines of megabytes."""
_CONTROL = bytes({*range(1, 9), *range(14, 32), 127})
"""Control characters, which file names hardly ever hold and binary files are full of."""


class ListedImage(NamedTuple):
    """One row of a labelled list."""

    path: str
    folder: str
    """The class, by the name that class folders have."""
    split: str | None
    """train, valid or test; None where neither a column nor a folder says it."""


def read_labelled(list_file: Path) -> list[ListedImage]:
    """Read a list for training or evaluation, sorted by path.

    Raises:
        DataError: the file cannot be read, is no such CSV, has a row without path or class, or names a path twice.
    """
    if list_file.name.lower().endswith(TABLES):
        images = list(_labelled_rows(list_file))
    else:
        images = [_by_folder(path, list_file) for path in read_paths(list_file)]
    images.sort(key=lambda image: os.fsencode(image.path))
    seen: dict[str, str] = {}
    for image in images:
        other = seen.setdefault(meant(image.path, list_file.parent), image.path)
        if other is not image.path:
            also = "" if other == image.path else f" (also as {readable(other)})"
            raise DataError(
                f"{readable(list_file)}: {readable(image.path)} is listed twice{also}; list every image once"
            )
    return images


def with_splits(list_file: Path, images: list[ListedImage]) -> list[ListedImage]:
    """Give every image of a list a split: train where none has one.

    Raises:
        DataError: some images have one and others do not, so that which of these are held out is not known.
    """
    unknown = [image.path for image in images if image.split is None]
    if 0 < len(unknown) < len(images):
        raise DataError(
            f"{readable(list_file)}: no split can be told of {len(unknown)} of {len(images)} images (such as "
            f"{readable(unknown[0])}), others lie in train/, valid/ or test/; add a column split to a .csv, or list "
            "only images below such folders"
        )
    return [image._replace(split=image.split or "train") for image in images]


def meant(path: str, base: str | os.PathLike) -> str:
    """The absolute path of the file that a path in a list means, to compare it with others.

    Args:
        path: as it is written there; relative ones start from ``base``.
        base: the folder of the list.
    """
    return os.path.normpath(os.path.join(os.path.abspath(base), path))


def _labelled_rows(list_file: Path) -> Iterator[ListedImage]:
    for line, row in table_rows(list_file):
        folder = row["class"] if "class" in row else row.get("label")
        if folder is None:
            raise DataError(f"{readable(list_file)}: columns are {','.join(row)}, expected path,class or path,label")
        folder = decode_path(folder)
        if not folder or "/" in folder:
            raise DataError(f"{readable(list_file)}, line {line}: got class {folder!r}, expected a name without /")
        split = row.get("split")
        if split is None:
            split = _split_by_folder(_folders(row["path"], list_file))
        elif (split := split.strip().lower()) not in SPLITS:
            raise DataError(f"{readable(list_file)}, line {line}: got split {split!r}, expected train, valid or test")
        else:
            split = SPLITS[split]
        yield ListedImage(row["path"], folder, split)


def _by_folder(path: str, list_file: Path) -> ListedImage:
    folders = _folders(path, list_file)
    if not folders or (len(folders) == 1 and folders[0] in SPLITS):
        raise DataError(
            f"{readable(list_file)}: {readable(path)} lies in no class folder; expected CLASS/IMAGE in each line, or a "
            ".csv with the columns path,class"
        )
    return ListedImage(path, folders[-1], _split_by_folder(folders[:-1]))


def _folders(path: str, list_file: Path) -> list[str]:
    """The folders that an image lies in, from the list's own on; of a path that leads elsewhere, all that it names."""
    path = os.path.normpath(path)
    if os.path.isabs(path):
        for base in (os.path.abspath(list_file.parent), os.path.realpath(list_file.parent)):
            path = path.removeprefix(os.path.join(base, ""))
    return [name for name in path.split("/")[:-1] if name not in ("", "..")]


def _split_by_folder(folders: list[str]) -> str | None:
    """The split that one of these folders is called like."""
    for name in (*folders[:1], *reversed(folders)):
        if name in SPLIT_NAMES:
            return SPLIT_NAMES[name]
    return None


def read_paths(list_file: Path) -> Iterator[str]:
    """Yield the paths of any list for prediction, as they stand there, in bounded memory.

    Predictions files of any kind are lists, too.

    Args:
        list_file: ``STDIN`` for the standard input.

    Raises:
        DataError: the file cannot be read, or is a broken table.
    """
    if list_file.name.lower().endswith(TABLES):
        yield from (row["path"] for _, row in table_rows(list_file, columns=["path"]))
        return
    try:
        if str(list_file) != STDIN:
            with open(list_file, "rb") as file:
                yield from _lines(file, list_file)
        elif sys.stdin is None:
            raise DataError("--input -: the standard input is closed; expected a list with a path on each line")
        else:
            yield from _lines(sys.stdin.buffer, Path("standard input"))
    except OSError as error:
        raise DataError(f"{readable(list_file)}: cannot be read: {system_reason(error)}") from None


def _lines(file: BinaryIO, list_file: Path) -> Iterator[str]:
    """The lines of a text, or what stands between NUL bytes."""
    head = file.read(_BLOCK_BYTES)
    _check_text(head, list_file)
    end = b"\0" if b"\0" in head else b"\n"
    rest = head.removeprefix(b"\xef\xbb\xbf")
    while block := file.read(_BLOCK_BYTES):
        *lines, rest = (rest + block).split(end)
        yield from map(os.fsdecode, _without_line_ends(lines, end))
    yield from map(os.fsdecode, _without_line_ends(rest.split(end), end))


def why_missing(path: str, base: str | os.PathLike) -> str:
    """The likely reason why no path of a list is there, and what to do.

    Args:
        path: the first of them.
        base: the folder that paths start from.
    """
    such = f"such as {readable(path if len(path) <= _SHOWN else f'{path[:_SHOWN]} ...')}"
    if re.match(r"[a-z][a-z0-9+]+://", path):
        return f"they are addresses ({such}), expected paths of files"
    if path.strip() != path or path.strip("'\"") != path:
        return f"there are quotes or blanks around them ({such}); leave these out"
    if "\t" in path:
        return f"there are tabs in them ({such}), expected one path a line and nothing else, or a .csv with a header"
    if "\\" in path:
        return f"there are backslashes in them ({such}); write them with /"
    for separator in ",;":
        if separator in path and os.path.lexists(os.path.join(base, path.partition(separator)[0])):
            return f"there are columns in it ({such}); name it .csv, with the header path,class"
    *folders, _ = steps = path.split("/")
    for other in (os.getcwd(), os.path.dirname(os.path.abspath(base))):
        if os.path.lexists(os.path.join(other, path)):
            return (
                f"paths start from {readable(base)}, and these ({such}) are there from {readable(other)}; move the list"
            )
    for cut in range(1, len(folders) + 1):
        if os.path.lexists(os.path.join(base, *steps[cut:])):
            return f"take {readable('/'.join(steps[:cut]))}/ off their start ({such}): the rest is there"
    return f"relative paths start from {readable(os.path.abspath(base))} ({such})"


def _check_text(head: bytes, list_file: Path) -> None:
    """Refuse a binary file: each few bytes of a picture would be taken for a path."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{readable(list_file)}: {IS_UTF16}")
    if len(head.translate(None, _CONTROL)) < 0.95 * len(head):
        raise DataError(f"{readable(list_file)}: is no text; expected a list with a path on each line")


def _without_line_ends(lines: list[bytes], end: bytes) -> Iterator[bytes]:
    for line in lines:
        path = line.removesuffix(b"\r") if end == b"\n" else line
        if path:
            yield path
