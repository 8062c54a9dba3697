"""Where the photos come from: folders, lists, archives, pictures, patterns, the standard input. Nothing is extracted.

- A folder: every image file below it (``flowers.data.scan`` says which), and the members of every ``.tar`` and ``.zip``
  in it.
- An archive (``flowers.data.archives``): its members; their path is ``archive.tar/member``.
- A picture, by its ending or by its first bytes: itself.
- Any other file: a list, one path a line, or a predictions file, relative to the folder the list is in
  (``flowers.data.lists``); lines that name an archive stand for its members, ``archive.tar/member`` for one of them.
- ``-``: such a list, read from the standard input, relative to the current folder. A pipe (``<(find photos)``), too.
- An address (``s3://bucket/folder``, ``https://host/list.txt``; ``flowers.data.remote``): a picture, a list, or all
  below it. Lists may name addresses, too. Their rows' paths are the addresses.
- A pattern in quotes (``'photos/*.jpg'``, ``'**/*.png'``): all that fits it.

Of one input, the rows' paths are relative to the folder, or to the folder that the list or archive is in. Of several
inputs, of a pattern and of ``-`` they are relative to the current folder: ``--input a b`` gives ``a/1.jpg`` and
``b/1.jpg``.

An archive that is broken somewhere gives its members up to there, and one more row, under the archive's own path,
that says what is wrong with it.
"""

import dataclasses
import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flowers.data.archives import (
    ARCHIVES,
    COMPRESSED,
    Archive,
    Entry,
    first_bytes,
    members,
    place_of,
    read_member,
    read_range,
)
from flowers.data.choice import HEAD_BYTES, Choice, begins_like_picture, said_left_out
from flowers.data.file_bytes import read_bytes
from flowers.data.formats.names import IMAGE_EXTENSIONS
from flowers.data.lists import STDIN, read_paths, why_missing
from flowers.data.paths import readable
from flowers.data.remote import PLACE, address_of, check_protocol, list_address, read_address
from flowers.data.scan import folders_from, scan_images
from flowers.errors import DataError, ImageError, system_reason
from flowers.retries import retries

_LOOK_BYTES = 1 << 16
_UNKNOWN_ARCHIVES = (".tar.zst", ".tzst", ".7z", ".rar")

Inputs = Path | Sequence[Path]
"""One input, or several."""


def input_root(inputs: Inputs) -> Path:
    """The folder that the paths of all inputs are relative to.

    Raises:
        DataError: there is no such file or folder, it cannot be looked at, or it is an archive of another kind.
    """
    given = _given(inputs)
    folders = [_folder_of(source) for source in given if not _is_pattern(source)]
    return folders[0] if len(given) == len(folders) == 1 else Path()


def list_inputs(inputs: Inputs, choice: Choice) -> Iterator[Entry]:
    """Yield every input file, roughly in order.

    Args:
        inputs: folders, lists, archives, pictures, patterns, see above.
        choice: which files of a folder or archive are taken; it counts the others.

    Raises:
        DataError: a folder or list cannot be read or names no file, or no file fits a pattern.
    """
    root = input_root(inputs)
    for source in _given(inputs):
        found = [source]
        if _is_pattern(source):
            found = sorted(set(_fitting(source)), key=os.fsencode)
            found = [path for path in found if not (path.is_dir() and "**" in source.parts)]  # its files fit, too
            if not found:
                raise DataError(f"--input {readable(source)}: no file or folder fits this pattern")
        for path in found:
            yield from _of_one(root, path, choice)


def lies_in_input(inputs: Inputs, path: Path) -> bool:
    """True if a path lies in a folder that is an input."""
    path = Path(os.path.realpath(path))
    return any(os.path.isdir(source) and path.is_relative_to(os.path.realpath(source)) for source in _given(inputs))


def _given(inputs: Inputs) -> Sequence[Path]:
    return (inputs,) if isinstance(inputs, os.PathLike) else inputs


def _is_pattern(source: Path) -> bool:
    return glob.has_magic(str(source)) and not os.path.lexists(source) and address_of(source) is None


def _fitting(pattern: Path) -> Iterator[Path]:
    """The files and folders that fit a pattern."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.iglob(str(pattern)))
        return
    at = pattern.parts.index("**")
    rest = pattern.parts[at + 1 :] or ("*",)
    for top in _fitting(Path(*pattern.parts[:at])):
        for folder in folders_from(os.fspath(top)):
            yield from _fitting(Path(glob.escape(folder), *rest))


def _folder_of(source: Path) -> Path:
    """The folder that the paths of one input start from."""
    if str(source) == STDIN or address_of(source) is not None:
        return Path()
    try:
        mode = os.stat(source).st_mode
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "no such file or folder" if is_missing else system_reason(error)
        raise DataError(f"--input {readable(source)}: {reason}") from None
    if stat.S_ISDIR(mode):
        return source
    if stat.S_ISFIFO(mode):
        return Path()
    if source.name.lower().endswith(_UNKNOWN_ARCHIVES):
        raise DataError(
            f"--input {readable(source)}: an archive of this kind cannot be read; make a .tar or .zip of it"
        )
    return source.parent


def _of_one(root: Path, source: Path, choice: Choice) -> Iterator[Entry]:
    """The files of one input."""
    address, base = address_of(source), _folder_of(source)
    shown = Path() if base == root else base
    if address is not None:
        entries, expected = list_address(address, choice), ""
    elif base == source:
        paths = scan_images(source, dataclasses.replace(choice, extensions={*choice.extensions, *ARCHIVES}))
        kinds = "like images" if choice.extensions == IMAGE_EXTENSIONS else f"in {' '.join(sorted(choice.extensions))}"
        entries = _of_paths(root, shown, paths, ARCHIVES, choice)
        expected = f"expected files that end {kinds} (see --ext), or in {' '.join(ARCHIVES)}"
    elif source.name.lower().endswith((*ARCHIVES, *COMPRESSED)) or _is_picture(source, choice):
        entries = _of_paths(root, shown, [source.name], (*ARCHIVES, *COMPRESSED), choice)
        expected = "expected members that end like images (see --ext)"
    else:
        entries, expected = _of_list(root, shown, source, choice), "expected a list with a path on each line"
    found = False
    for entry in entries:
        found = True
        yield entry
    if not found:
        why = "; ".join(filter(None, (expected, said_left_out(choice.left_out)))) or "it is empty"
        raise DataError(f"--input {address or readable(source)}: no images there; {why}")


def _of_paths(
    root: Path, shown: Path, paths: Iterable[str], archives: tuple[str, ...], choice: Choice
) -> Iterator[Entry]:
    """Files below a folder, and the members of those that end like archives."""
    for path in paths:
        path = os.path.join(shown, path) if shown.parts else path
        if path.lower().endswith(archives):
            yield from members(root, os.fsencode(path), choice)
        else:
            yield Entry(os.fsencode(path))


def _of_list(root: Path, shown: Path, source: Path, choice: Choice) -> Iterator[Entry]:
    """What a list names: files, archives, members of archives, addresses."""
    found = absent = 0
    example, archive = "", Archive(root)
    for path in read_paths(source):
        if choice.excludes_listed(path):
            continue
        if (address := address_of(path)) is not None:
            if not found:
                check_protocol(address)
            found += 1
            yield Entry(os.fsencode(address), PLACE + b"-1")
            continue
        path = os.path.join(shown, path) if shown.parts else path
        if path.lower().endswith((*ARCHIVES, *COMPRESSED)):
            entries = members(root, os.fsencode(path), choice)
        else:
            entries = [archive.entry(path) or Entry(os.fsencode(path))]
        for entry in entries:
            if absent == found and not entry.place and not os.path.lexists(os.path.join(root, path)):
                example, absent = example or path, absent + 1
            found += 1
            yield entry
    if found and absent == found:
        raise DataError(f"--input {readable(source)}: none of the {found} files is there; {why_missing(example, root)}")


def _is_picture(source: Path, choice: Choice) -> bool:
    """True if one file is a picture, by its ending or by its first bytes; else it is a list."""
    endings = tuple({*IMAGE_EXTENSIONS, *choice.extensions} - {""})
    if str(source) == STDIN or source.name.lower().endswith(endings):
        return str(source) != STDIN
    try:
        if not source.is_file():  # a look into a pipe would take the beginning of the list away
            return False
        with open(source, "rb") as file:
            return begins_like_picture(file.read(HEAD_BYTES))
    except OSError:
        return False


def is_remote(entry: Entry) -> bool:
    """True if a file is at an address."""
    return entry.place.startswith(PLACE)


def read_input(root: bytes, entry: Entry) -> bytes | bytearray:
    """The bytes of one input file.

    Args:
        root: the folder that paths are relative to.

    Raises:
        ImageError: the short reason why there are none.
    """
    if not entry.place:
        return read_bytes(os.path.join(root, entry.path))
    if entry.place.startswith(b"!"):
        raise ImageError(os.fsdecode(entry.place[1:]))
    if is_remote(entry):
        return read_address(os.fsdecode(entry.path), int(entry.place.removeprefix(PLACE)))
    return read_member(root, entry)


def look_at(root: bytes, entry: Entry, most: int = _LOOK_BYTES) -> bytes:
    """Size and first bytes of one input file, to know it from another one of the same name; nothing if it is not there.

    Args:
        root: the folder that paths are relative to.
        most: first bytes to take.
    """
    if entry.place.startswith(b"!") or is_remote(entry):  # not for a round trip to a server
        return b""
    try:
        if entry.place:
            size = entry.place.split(b":")[3]
            return size + b":" + retries.read(lambda: first_bytes(root, entry, most))
        return retries.read(lambda: _look_at(os.path.join(root, entry.path), most))
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return b""


def file_of(entry: Entry) -> bytes:
    """The file that an entry lies in: itself, or the archive of a member."""
    return place_of(entry)[1] if entry.place and not entry.place.startswith((b"!", PLACE)) else entry.path


def _look_at(path: bytes, most: int) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return b""
        return b"%d:" % status.st_size + read_range(file, 0, min(status.st_size, most))
    finally:
        os.close(file)
