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


def tar_members(file: BinaryIO, path: bytes, choice: Choice) -> Iterator[Entry]:
    """The members in order, then the links, which name members that may come later."""
    links: dict[bytes, _Link] = {}
    broken: Exception | None = None
    try:
        for member in tar_headers(file):
            name = os.fsencode(member.name)
            if member.islnk() or member.issym():
                base = os.path.dirname(name) if member.issym() else b""
                links[_inside(name)[0]] = _Link(name, base, os.fsencode(member.linkname))
            elif member.isreg():
                links.pop(_inside(name)[0], None)
                yield from _chosen(path, name, choice, _tar_place(path, member), functools.partial(_head_in_tar, file))
    except TAR_ERRORS as error:
        broken = error
    if links:
        targets = {name: _target(links, name) for name in links}
        wanted, places = set(targets.values()), {}
        with contextlib.suppress(*TAR_ERRORS):  # said below
            for member in tar_headers(file):
                if member.isreg() and (name := _inside(os.fsencode(member.name))[0]) in wanted:
                    places[name] = _tar_place(path, member)
        for name, link in links.items():
            place = places.get(targets[name]) or _why_not(targets[name])
            yield from _chosen(path, link.name, choice, place, functools.partial(_head_in_tar, file))
    if broken is not None:
        raise broken


def _tar_place(path: bytes, member: tarfile.TarInfo) -> bytes:
    if member.issparse():
        return b"!sparse member of a tar: not supported"
    return b"tar:%06d:%016d:%d" % (len(path), member.offset_data, member.size)


def _head_in_tar(file: BinaryIO, place: bytes, count: int) -> bytes:
    if place.startswith(b"!"):
        return b""
    offset, size = map(int, place.split(b":")[2:])
    return read_range(file.fileno(), offset, min(count, size))


def zip_members(full: bytes, path: bytes, choice: Choice) -> Iterator[Entry]:
    """The members in order, then the links."""
    with zipfile.ZipFile(os.fsdecode(full)) as archive:
        members: dict[bytes, zipfile.ZipInfo] = {}
        links: dict[bytes, _Link] = {}
        for member in archive.infolist():
            name = os.fsencode(member.filename.replace("\\", "/"))
            inside = _inside(name)[0]
            links.pop(inside, None)
            if stat.S_ISLNK(member.external_attr >> 16) and member.file_size <= _LONGEST_BYTES:
                target = _head_of_zipped(archive, member, _LONGEST_BYTES)
                links[inside] = _Link(name, os.path.dirname(name), target)
            elif not member.is_dir():
                members[inside] = member
                head = functools.partial(_head_of_zipped, archive, member)
                yield from _chosen(
                    path, name, choice, _zip_place(path, member), lambda _, count, head=head: head(count)
                )
        for name, link in links.items():
            target = _target(links, name)
            member = members.get(target)
            place = _zip_place(path, member) if member else _why_not(target)
            head = functools.partial(_head_of_zipped, archive, member) if member else lambda count: b""
            yield from _chosen(path, link.name, choice, place, lambda _, count, head=head: head(count))


def _zip_place(path: bytes, member: zipfile.ZipInfo) -> bytes:
    if member.flag_bits & 1:
        return b"!encrypted in a zip: not supported"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return b"!compressed otherwise than by deflate in a zip: not supported"
    where = (len(path), member.header_offset, member.compress_size, member.file_size, member.CRC)
    return b"zip:%06d:%016d:%d:%d:%d" % where


class _Link(NamedTuple):
    """A link in an archive: its name, the folder that its target starts from, the target."""

    name: bytes
    base: bytes
    target: bytes


def _target(links: Mapping[bytes, _Link], name: bytes) -> bytes:
    """The member that a link leads to by way of others, folders that are links among them; ``!REASON`` if none."""
    for _ in range(_MOST_LINKS):
        if len(name) > _LONGEST_BYTES:
            return _NO_TARGET
        steps = name.split(b"/")
        heads = (b"/".join(steps[:end]) for end in range(1, len(steps) + 1))
        head = next((head for head in heads if head in links), None)
        if head is None:
            return name
        link = links[head]
        if link.target.startswith(b"/"):
            return _ESCAPES
        name, escapes = _inside(b"/".join((link.base, link.target, name[len(head) :])))
        if escapes:
            return _ESCAPES
    return _CIRCLE


def _why_not(target: bytes) -> bytes:
    """The place of a link whose target is no member."""
    return target if target in (_ESCAPES, _CIRCLE) else _NO_TARGET


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


def _chosen(
    path: bytes, name: bytes, choice: Choice, place: bytes, head: Callable[[bytes, int], bytes]
) -> Iterator[Entry]:
    """The entry of a member, or nothing if it is left out.

    Args:
        path: of the archive.
        name: of the member.
        choice: which are taken; it counts the others.
        place: of the entry.
        head: gives the first bytes at a place, so many of them.
    """
    inside, escapes = _inside(name)
    if not inside:
        return
    is_long = len(inside) > _LONGEST_BYTES
    if is_long:
        place = b"!a path of more than %d bytes" % _LONGEST_BYTES
    if not is_long and (reason := choice.skips_part_of(inside)):
        choice.left_out[reason] += 1
    elif choice.takes(inside, lambda count: head(place, count)):
        yield Entry(path + b"/../" + inside, _ESCAPES) if escapes else Entry(path + b"/" + inside, place)


def _head_of_zipped(archive: zipfile.ZipFile, member: zipfile.ZipInfo, count: int) -> bytes:
    try:
        with archive.open(member) as file:
            return file.read(count)
    except (OSError, NotImplementedError, zlib.error, *ZIP_ERRORS):
        return b""
