"""Photos inside archives, read where they are: ``.tar`` and ``.zip``; nothing is extracted.

A member's path is ``archive.tar/member``, without ``.`` and doubled slashes. One that would lead out of the archive
(``../x.jpg``), and one that cannot be read there (an encrypted member), is a row that says so. Of several members of
one name the last one counts. Hard and symbolic links lead to the last member of the name that they mean, inside the
archive only (``members.py``). Archives that were joined (``cat a.tar b.tar``) are read to their end.

Compressed tars (``.tgz``, ``.tar.gz``, ``.tar.bz2``, ``.tar.xz``) cannot be read at random: each process unpacks one
once, into a nameless temporary file (in ``TMPDIR``) that goes with the process.
"""

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import re
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flowers.data.choice import Choice
from flowers.data.formats.limits import check_size
from flowers.data.members import TAR_ERRORS, ZIP_ERRORS, Entry, read_range, tar_members, zip_members
from flowers.data.paths import readable
from flowers.errors import FlowersError, ImageError, system_reason
from flowers.retries import is_file, retries

ARCHIVES = (".tar", ".zip")
"""Endings of archives that are looked into wherever they are found."""
_OPENERS = {
    ".tgz": gzip.open, ".tar.gz": gzip.open, ".tbz2": bz2.open, ".tar.bz2": bz2.open, ".txz": lzma.open,
    ".tar.xz": lzma.open,
}  # fmt: skip
COMPRESSED = tuple(_OPENERS)
"""Endings of archives that are unpacked; only those that an input or a list names."""
_INSIDE = re.compile("(?:" + "|".join(map(re.escape, (*ARCHIVES, *COMPRESSED))) + ")(?=/)", re.IGNORECASE)
_BLOCK_BYTES = 1 << 20

_unpacked: dict[tuple, tuple[BinaryIO, str | None]] = {}
_unpacking = threading.Lock()


def members(root: str | os.PathLike, path: bytes, choice: Choice) -> Iterator[Entry]:
    """Index one archive by reading its headers only.

    Args:
        root: the folder that paths are relative to.
        path: of the archive.
        choice: which members are taken; it counts the others.
    """
    full = os.path.join(os.fsencode(root), path)
    try:
        if path.lower().endswith(b".zip"):
            with _open(full) as file:
                yield from zip_members(file, path, choice)
            return
        with _open(full) as file:
            yield from tar_members(file, path, choice)
        if cut := _damage(full):
            yield Entry(path, b"!broken archive: " + os.fsencode(cut))
    except (*TAR_ERRORS, *ZIP_ERRORS) as error:
        yield Entry(path, b"!broken archive: " + os.fsencode(" ".join(str(error).split())))
    except OSError as error:
        yield Entry(path, b"!archive: " + os.fsencode(system_reason(error)))


def read_member(root: bytes, entry: Entry) -> bytes:
    """The bytes of a member.

    Raises:
        ImageError: the short reason why there are none.
    """
    kind, path, offset, size, *zipped = place_of(entry)
    check_size(zipped[0] if zipped else size)

    def read() -> bytes:
        with _open(os.path.join(root, path)) as file:
            if kind == b"zip":
                return _read_zipped(file.fileno(), offset, size, *zipped)
            return read_range(file.fileno(), offset, size)

    try:
        data = retries.read(read)
    except FileNotFoundError:
        raise ImageError("archive not found") from None
    except OSError as error:
        raise ImageError(f"archive: {system_reason(error)}") from None
    if kind == b"tar" and len(data) < size:
        raise ImageError("truncated archive")
    return data


def first_bytes(root: bytes, entry: Entry, most: int) -> bytes:
    """The stored bytes of a member from its start on, at most so many.

    Raises:
        OSError: the archive cannot be read.
    """
    _, path, offset, size, *_ = place_of(entry)
    with _open(os.path.join(root, path)) as file:
        return read_range(file.fileno(), offset, min(size, most))


def place_of(entry: Entry) -> tuple:
    """Kind, path of the archive, offset and stored bytes of a member; of a zip also its size and CRC."""
    kind, length, *numbers = entry.place.split(b":")
    return kind, entry.path[: int(length)], *map(int, numbers)


def _read_zipped(file: int, offset: int, packed: int, size: int, crc: int) -> bytes:
    """One member of a zip; ``offset`` is that of its header."""
    header = read_range(file, offset, 30)
    if len(header) < 30 or not header.startswith(b"PK\3\4"):
        raise ImageError("broken archive: no member there")
    method, name, extra = struct.unpack("<H16xHH", header[8:30])
    data = read_range(file, offset + 30 + name + extra, packed)
    if len(data) < packed:
        raise ImageError("truncated archive")
    if method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error:
            raise ImageError("broken archive: damaged compressed bytes") from None
    if len(data) != size or zlib.crc32(data) != crc:
        raise ImageError("broken archive: wrong checksum")
    return data


def _open(full: bytes) -> BinaryIO:
    """An archive to read from, unpacked if it is compressed; closing it keeps what was unpacked."""
    if not full.lower().endswith(tuple(map(os.fsencode, COMPRESSED))):
        return _patient(full)
    return os.fdopen(os.dup(_unpack(full)[0].fileno()), "rb")


class _PatientFile(io.FileIO):
    """A file each of whose reads waits for a disk's hiccup: to zipfile, an error amid its list is no zip at all."""

    read, readall = io.RawIOBase.read, io.RawIOBase.readall  # by way of ``readinto``

    def readinto(self, buffer: memoryview) -> int:
        return retries.read(lambda: os.readv(self.fileno(), [buffer]))


def _patient(full: bytes) -> BinaryIO:
    return io.BufferedReader(retries.read(lambda: _PatientFile(full)))


def _damage(full: bytes) -> str | None:
    """The reason why a compressed archive could not be unpacked."""
    return _unpack(full)[1] if full.lower().endswith(tuple(map(os.fsencode, COMPRESSED))) else None


def _unpack(full: bytes) -> tuple[BinaryIO, str | None]:
    status = retries.read(lambda: os.stat(full))
    key = full, status.st_size, status.st_mtime_ns
    with _unpacking:
        if key not in _unpacked:
            opener = next(opener for ending, opener in _OPENERS.items() if full.lower().endswith(os.fsencode(ending)))
            with _patient(full) as packed:
                _unpacked[key] = _to_temporary(opener(packed), full)
        return _unpacked[key]


def _to_temporary(packed: BinaryIO, full: bytes) -> tuple[BinaryIO, str | None]:
    """A nameless file of all that can be unpacked, and why there is no more, if the archive is damaged.

    Raises:
        OSError: the archive cannot be read.
        FlowersError: the file cannot be written, which says nothing of the archive.
    """
    with _said_of_temporary(full):
        file = tempfile.TemporaryFile(prefix="flowers-")  # noqa: SIM115
    while True:
        try:
            block = packed.read(_BLOCK_BYTES)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError) as error:
            return file, " ".join(str(error).split())
        except OSError as error:
            if error.errno is not None:
                raise
            return file, str(error)  # bz2 says so that the data is none
        with _said_of_temporary(full):
            file.write(block)
            file.flush()
        if not block:
            return file, None


@contextlib.contextmanager
def _said_of_temporary(full: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder, archive = tempfile.gettempdir(), readable(os.fsdecode(full))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some, or set TMPDIR to a folder with more"
            raise FlowersError(f"{folder} has no room to unpack {archive}: {advice}") from None
        reason = system_reason(error)
        raise FlowersError(f"{folder}: cannot unpack {archive} there: {reason}; set TMPDIR to another folder") from None


class Archive:
    """The members of one archive at a time; rows of one archive follow one another.

    Args:
        root: folder that paths are relative to.
    """

    def __init__(self, root: Path):
        self._root, self._path = root, ""
        self._members: dict[bytes, Entry] = {}

    def entry(self, path: str) -> Entry | None:
        """The entry of a path like ``archive.tar/member``; None if no part of it is an archive.

        One that the archive lacks has that as the reason why it cannot be read.
        """
        if not (self._path and path.startswith(self._path + "/")):
            for match in _INSIDE.finditer(path):
                if is_file(os.path.join(self._root, path[: match.end()])):
                    break
            else:
                return None
            self._path = path[: match.end()]
            found = members(self._root, os.fsencode(self._path), Choice(("",)))
            self._members = {entry.path: entry for entry in found}
        return self._members.get(os.fsencode(path), Entry(os.fsencode(path), b"!not in the archive"))

    def find(self, path: str) -> bool:
        """True if a path lies in an archive, and can be read there."""
        entry = self.entry(path)
        return entry is not None and not entry.place.startswith(b"!")

    def read(self, path: str) -> bytes:
        """The bytes of a member that ``find`` has found.

        Raises:
            ImageError: it cannot be read.
        """
        return read_member(os.fsencode(self._root), self.entry(path))
