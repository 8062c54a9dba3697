"""The members of an open archive: where the bytes of each are, links followed, from the headers alone.

Members come in their order and links after them, so that of one path the last entry counts. A link leads to the last
member of the name that it means; one that was followed by a member of its own name is none.
"""

import contextlib
import functools
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, NamedTuple

from flowers.data.choice import Choice

TAR_ERRORS = (tarfile.TarError, ValueError, ArithmeticError)
ZIP_ERRORS = (zipfile.BadZipFile, ValueError, ArithmeticError, RuntimeError, struct.error, EOFError)
_BLOCK_BYTES = 1 << 20
_ESCAPES = b"!a path that leads out of the archive"
_NO_TARGET = b"!a link to what is not in the archive"
_CIRCLE = b"!links that lead in a circle"
_MOST_LINKS = 40
_LONGEST_BYTES = 4096
"""Of a path on disk, which is enough for one in an archive; what follows takes the square of it in time."""


class Entry(NamedTuple):
    """One input file.

    Attributes:
        path: as ``os.fsencode`` gives it; relative to the input's root, or as a list file wrote it.
        place: empty for the file at that path; ``tar:ARCHIVE:OFFSET:SIZE`` for a tar's member, where ARCHIVE is the
            length of the archive's own path; ``!REASON`` for what is known to be unreadable.
    """

    path: bytes
    place: bytes = b""


def read_range(file: int, offset: int, size: int) -> bytes:
    """So many bytes of an open file, less at its end."""
    data = os.pread(file, size, offset)
    while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):
        data += more
    return data


def tar_headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the header of each member of a tar, or of several that were joined; none is kept.

    Raises:
        tarfile.TarError: it is damaged, or leads in a circle.
    """
    start: int | None = 0
    while start is not None:
        file.seek(start)
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        while (member := archive.next()) is not None:
            archive.members.clear()  # or it would keep them all
            if archive.offset <= member.offset or member.size < 0:  # Python before 3.11.14 would go back, for ever
                raise tarfile.ReadError(f"a member of negative size at byte {member.offset}")
            yield member
        start = _next_archive(file, archive.offset)


def _next_archive(file: BinaryIO, end: int) -> int | None:
    """The offset of the next of several joined archives; None at the end of the file.

    tarfile takes any block that is no header for the end; only zeros, or the end of the file, are one.
    """
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {end}")
    while block := file.read(_BLOCK_BYTES):
        if rest := block.lstrip(b"\0"):
            at = file.tell() - len(rest)
            return at - at % tarfile.BLOCKSIZE
    return None


class _Member(NamedTuple):
    """A file in an archive, or a link."""

    name: bytes
    place: bytes = b""
    """As in ``Entry``."""
    head: Callable[[int], bytes] = lambda _: b""
    """Gives its first bytes, so many of them."""
    target: bytes | None = None
    """Of a link: the path that it leads to."""


def tar_members(file: BinaryIO, path: bytes, choice: Choice) -> Iterator[Entry]:
    """The files of a tar in order, then the links.

    Args:
        path: of the archive, for the entries.
        choice: which are taken; it counts the others.
    """

    def members() -> Iterator[_Member]:
        for member in tar_headers(file):
            name = os.fsencode(member.name)
            if member.issym():
                yield _Member(name, target=_from_folder_of(name, os.fsencode(member.linkname)))
            elif member.islnk():
                yield _Member(name, target=os.fsencode(member.linkname))
            elif member.issparse():
                yield _Member(name, b"!sparse member of a tar: not supported")
            elif member.isreg():
                place = b"tar:%06d:%016d:%d" % (len(path), member.offset_data, member.size)
                yield _Member(name, place, functools.partial(_head_in_tar, file, member.offset_data, member.size))

    return _entries(path, members, choice)


def _head_in_tar(file: BinaryIO, offset: int, size: int, count: int) -> bytes:
    return read_range(file.fileno(), offset, min(count, size))


def zip_members(file: BinaryIO, path: bytes, choice: Choice) -> Iterator[Entry]:
    """As ``tar_members``, of a zip."""
    with zipfile.ZipFile(file) as archive:

        def members() -> Iterator[_Member]:
            for member in archive.infolist():
                name = os.fsencode(member.filename.replace("\\", "/"))
                head = functools.partial(_head_of_zipped, archive, member)
                if stat.S_ISLNK(member.external_attr >> 16) and member.file_size <= _LONGEST_BYTES:
                    yield _Member(name, target=_from_folder_of(name, head(_LONGEST_BYTES)))
                elif not member.is_dir():
                    yield _Member(name, _zip_place(path, member), head)

        yield from _entries(path, members, choice)


def _zip_place(path: bytes, member: zipfile.ZipInfo) -> bytes:
    if member.flag_bits & 1:
        return b"!encrypted in a zip: not supported"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return b"!compressed otherwise than by deflate in a zip: not supported"
    where = (len(path), member.header_offset, member.compress_size, member.file_size, member.CRC)
    return b"zip:%06d:%016d:%d:%d:%d" % where


def _head_of_zipped(archive: zipfile.ZipFile, member: zipfile.ZipInfo, count: int) -> bytes:
    try:
        with archive.open(member) as file:
            return file.read(count)
    except (OSError, NotImplementedError, zlib.error, *ZIP_ERRORS):
        return b""


def _from_folder_of(link: bytes, target: bytes) -> bytes:
    return os.path.join(os.path.dirname(link).lstrip(b"/"), target)


def _entries(path: bytes, members: Callable[[], Iterator[_Member]], choice: Choice) -> Iterator[Entry]:
    """The files in order, then the links, which may name files that come later: for these all headers are read again.

    Args:
        path: of the archive.
        members: reads its headers.
        choice: which are taken; it counts the others.
    """
    links: dict[bytes, _Member] = {}
    broken: Exception | None = None
    try:
        for member in members():
            inside = _inside(member.name)[0]
            links.pop(inside, None)
            if member.target is None:
                yield from _chosen(path, member, choice)
            else:
                links[inside] = member
    except TAR_ERRORS as error:
        broken = error
    if links:
        targets = {inside: _target(links, inside) for inside in links}
        wanted, found = set(targets.values()), {}
        with contextlib.suppress(*TAR_ERRORS):  # said below
            for member in members():
                if member.target is None and (inside := _inside(member.name)[0]) in wanted:
                    found[inside] = member
        for inside, link in links.items():
            target = targets[inside]
            reason = target if target in (_ESCAPES, _CIRCLE) else _NO_TARGET
            yield from _chosen(path, found.get(target, _Member(b"", reason))._replace(name=link.name), choice)
    if broken is not None:
        raise broken


def _target(links: Mapping[bytes, _Member], name: bytes) -> bytes:
    """The member that a link leads to by way of others, folders that are links among them; ``!REASON`` if none."""
    for _ in range(_MOST_LINKS):
        if len(name) > _LONGEST_BYTES:
            return _NO_TARGET
        steps = name.split(b"/")
        heads = (b"/".join(steps[:end]) for end in range(1, len(steps) + 1))
        head = next((head for head in heads if head in links), None)
        if head is None:
            return name
        target = links[head].target
        if target.startswith(b"/"):
            return _ESCAPES
        name, escapes = _inside(target + b"/" + name[len(head) :])
        if escapes:
            return _ESCAPES
    return _CIRCLE


def _inside(name: bytes) -> tuple[bytes, bool]:
    """A member's name without ``.``, ``..`` and doubled slashes; True if it would lead out of the archive."""
    steps: list[bytes] = []
    escapes = False
    for step in name.replace(b"\0", b"?").split(b"/"):
        if step == b".." and steps:
            steps.pop()
        elif step == b"..":
            escapes = True
        elif step not in (b"", b"."):
            steps.append(step)
    return b"/".join(steps), escapes


def _chosen(path: bytes, member: _Member, choice: Choice) -> Iterator[Entry]:
    """The entry of a member, or nothing if it is left out."""
    inside, escapes = _inside(member.name)
    if not inside:
        return
    if len(inside) > _LONGEST_BYTES:
        member = _Member(member.name, b"!a path of more than %d bytes" % _LONGEST_BYTES)
    elif reason := choice.skips_part_of(inside):
        choice.left_out[reason] += 1
        return
    if choice.takes(inside, member.head):
        yield Entry(path + b"/../" + inside, _ESCAPES) if escapes else Entry(path + b"/" + inside, member.place)
