"""Where the photos come from: a folder, a list file, tar archives. Nothing is extracted.

- A folder: every image file below it (``flowers.data.scan`` says which), and the members of every ``.tar`` in it.
- A ``.tar`` file: its members; their path is ``archive.tar/member``.
- A file that ends like an image: itself.
- Any other file: a list, one path a line, relative to the folder the list is in (``flowers.data.lists``); lines that
  name a ``.tar`` stand for its members.

An archive that is broken somewhere gives its members up to there, and one more row, under the archive's own path,
that says what is wrong with it.
"""

import contextlib
import dataclasses
import functools
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from flowers.data.choice import Choice
from flowers.data.images import IMAGE_EXTENSIONS, check_size, read_bytes
from flowers.data.lists import read_paths
from flowers.data.paths import readable
from flowers.data.retries import retries
from flowers.data.scan import scan_images
from flowers.errors import DataError, ImageError
from flowers.prediction.file_list import Entry

TAR = ".tar"
_LOOK_BYTES = 1 << 16
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


def input_root(source: Path) -> Path:
    """The folder that the paths of an input are relative to.

    Raises:
        DataError: there is no such file or folder, it cannot be looked at, or it is a compressed archive.
    """
    try:
        if stat.S_ISDIR(os.stat(source).st_mode):
            return source
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "no such file or folder" if is_missing else (error.strerror or type(error).__name__).lower()
        raise DataError(f"--input {readable(source)}: {reason}") from None
    if source.name.lower().endswith(COMPRESSED):
        raise DataError(
            f"--input {readable(source)}: compressed archives cannot be read at random; "
            "unpack it, or make an uncompressed .tar of it"
        )
    return source.parent


def list_inputs(source: Path, choice: Choice) -> Iterator[Entry]:
    """Yield every input file, roughly in order.

    Args:
        source: a folder, list, archive or picture.
        choice: which files of a folder or archive are taken; it counts the others.

    Raises:
        DataError: the folder or list cannot be read, or names no file.
    """
    root = input_root(source)
    what = "a list with a path on each line"
    if root == source:
        paths = scan_images(source, dataclasses.replace(choice, extensions={*choice.extensions, TAR}))
        what = "files that end like images (or see --ext) or in .tar"
    elif source.name.lower().endswith((TAR, *IMAGE_EXTENSIONS)):
        paths = iter([source.name])
    else:
        paths = (path for path in read_paths(source) if not choice.excludes_listed(path))
    path = None
    for path in paths:
        if path.lower().endswith(TAR):
            yield from _tar_members(root, os.fsencode(path), choice)
        else:
            yield Entry(os.fsencode(path))
    if path is None:
        raise DataError(f"--input {readable(source)}: no images there; expected {what}")


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
    path, offset, size = _in_archive(entry)
    check_size(size)
    try:
        data = retries.read(lambda: _read_member(os.path.join(root, path), offset, size))
    except FileNotFoundError:
        raise ImageError("archive not found") from None
    except OSError as error:
        raise ImageError(f"archive: {(error.strerror or type(error).__name__).lower()}") from None
    if len(data) < size:
        raise ImageError("truncated archive")
    return data


def _read_member(archive: bytes, offset: int, size: int) -> bytes:
    file = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read_range(file, offset, size)
    finally:
        os.close(file)


def look_at(root: bytes, entry: Entry) -> bytes:
    """Size and first bytes of one input file, to know it from another one of the same name; nothing if it is not there.
    Args:
        root: the folder that paths are relative to.
    """
    if entry.place.startswith(b"!"):
        return b""
    path, offset, size = _in_archive(entry) if entry.place else (entry.path, 0, None)
    try:
        return retries.read(lambda: _look_at(os.path.join(root, path), offset, size))
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return b""


def _look_at(path: bytes, offset: int, size: int | None) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return b""
        size = status.st_size if size is None else size
        return b"%d:" % size + _read_range(file, offset, min(size, _LOOK_BYTES))
    finally:
        os.close(file)


def _in_archive(entry: Entry) -> tuple[bytes, int, int]:
    """The archive that an entry is in, and where its bytes begin there and how many they are."""
    _, length, offset, size = entry.place.split(b":")
    return entry.path[: int(length)], int(offset), int(size)


def _read_range(file: int, offset: int, size: int) -> bytes:
    data = os.pread(file, size, offset)
    while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):
        data += more
    return data


def tar_headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the header of each member of an archive; none is kept.

    Raises:
        tarfile.TarError: it is damaged, or leads in a circle.
    """
    while (member := archive.next()) is not None:
        archive.members.clear()  # or it would keep them all
        if archive.offset <= member.offset or member.size < 0:  # Python before 3.11.14 would go back, for ever
            raise tarfile.ReadError(f"a member of negative size at byte {member.offset}")
        yield member


def _tar_members(root: Path, path: bytes, choice: Choice) -> Iterator[Entry]:
    """Index one archive by reading its headers only."""
    try:
        with tarfile.open(os.path.join(os.fsencode(root), path), "r:") as archive:
            for member in tar_headers(archive):
                name = os.fsencode(member.name.removeprefix("./"))
                if not (member.isreg() or member.islnk() or member.issym()):
                    continue
                if reason := choice.skips_part_of(name):
                    choice.left_out[reason] += 1
                    continue
                head = functools.partial(_read_range, archive.fileobj.fileno(), member.offset_data)
                if not choice.takes(name, head):
                    continue
                inside = path + b"/" + name.replace(b"\0", b"?")
                if not member.isreg():
                    yield Entry(inside, b"!link in a tar: not supported")
                elif member.issparse():
                    yield Entry(inside, b"!sparse member of a tar: not supported")
                else:
                    yield Entry(inside, b"tar:%06d:%016d:%d" % (len(path), member.offset_data, member.size))
            _check_end(archive)
    except (tarfile.TarError, ValueError, ArithmeticError) as error:
        yield Entry(path, b"!broken archive: " + os.fsencode(" ".join(str(error).split())))
    except OSError as error:
        yield Entry(path, b"!archive: " + os.fsencode((error.strerror or type(error).__name__).lower()))


def _check_end(archive: tarfile.TarFile) -> None:
    """tarfile takes any block that is no header for the end; only zeros, or the end of the file, are one."""
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {archive.offset}")


class Archive:
    """The members of one archive at a time; rows of one archive follow one another.

    Args:
        root: folder that paths are relative to.
    """

    def __init__(self, root: Path):
        self._root, self._path = root, ""
        self._tar: tarfile.TarFile | None = None
        self._members: dict[str, tarfile.TarInfo] = {}

    def find(self, path: str) -> bool:
        """True if a path lies in an archive: ``archive.tar/member``."""
        if not (self._path and path.startswith(self._path + "/")):
            end = path.lower().find(TAR + "/")
            while end >= 0 and not os.path.isfile(os.path.join(self._root, path[: end + len(TAR)])):
                end = path.lower().find(TAR + "/", end + 1)
            if end < 0:
                return False
            self.close()
            self._path = path[: end + len(TAR)]
            with contextlib.suppress(tarfile.TarError, OSError, ValueError, ArithmeticError):
                self._tar = tarfile.open(os.path.join(self._root, self._path), "r:")  # noqa: SIM115
                for member in tar_headers(self._tar):
                    self._members[member.name.removeprefix("./")] = member
        return path[len(self._path) + 1 :] in self._members

    def read(self, path: str) -> bytes:
        """The bytes of a member that ``find`` has found."""
        return self._tar.extractfile(self._members[path[len(self._path) + 1 :]]).read()

    def close(self) -> None:
        """Close the archive; another ``find`` opens one again."""
        if self._tar is not None:
            self._tar.close()
        self._tar, self._members, self._path = None, {}, ""
