"""TIFF: its directories, in files and in the EXIF blocks of others, and which picture of a file is meant.

EXIF is read here rather than by Pillow, which reads all values of a block at once: entries that overlap make gigabytes
of a few kilobytes. For the same reason the decoder of a TIFF gets the picture's directory with only what it needs,
without comments, EXIF and the directories after it.

A file may begin with a small preview, as those of cameras do (NewSubfileType, TIFF 6.0 page 36). The full picture is
then in a later or lower directory. If that holds a sensor's raw values, as in a DNG or NEF, the file is refused:
a preview is not the photo.
"""

import re
import struct
from typing import NamedTuple

from flowers.data.formats.limits import MAX_PIXELS, MAX_PROFILE_BYTES, Prepared, allowed_pixels, check_pixels
from flowers.errors import ImageError

MAX_ENTRIES = 4096
"""Of a directory. Cameras write fewer than 200."""

_ORIENTATION = 0x0112
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value of each type of TIFF 6.0 and BigTIFF."""
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)([1-8])")
_MAX_DIRECTORIES = 64
_MAX_STRIPS = 500_000
_MIN_TILE = 4096
"""Tiles may be larger than the picture, up to this side."""
_MAX_BYTES_PER_PIXEL = 12
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COLOUR = 254, 255, 256, 257, 258, 262
_OFFSETS, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 273, 277, 322, 323, 324
_SUB_DIRECTORIES, _PROFILE, _DNG = 330, 34675, 50706
_RAW_COLOURS = (32803, 34892)  # the sensor's own pattern, and linear values of it
_NEEDED = {
    254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 292, 293, 317, 320, 322, 323, 324, 325,
    332, 338, 339, 340, 341, 347, 512, 513, 514, 519, 520, 521, 529, 530, 531, 532, 34675,
}  # fmt: skip


class Entry(NamedTuple):
    """One entry of a directory."""

    tag: int
    kind: int
    """Type of its values, as TIFF numbers them."""
    count: int
    at: int
    """Offset of its values in the block."""

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return self.count * _SIZES.get(self.kind, 1)


class Directory(NamedTuple):
    """One directory of a block in TIFF's layout."""

    block: bytes | bytearray | memoryview
    order: str
    """``<`` or ``>``, as struct writes it."""
    big: bool
    """BigTIFF, whose offsets have 8 bytes."""
    start: int
    """Its offset in the block."""
    entries: dict[int, Entry]
    count: int
    """Entries that it says it has; no more than ``MAX_ENTRIES`` are read."""
    following: int
    """Offset of the next directory; 0 if there is none."""

    def numbers(self, tag: int, most: int = 16) -> tuple[int, ...]:
        """The first whole numbers under a tag; none if it is missing or cut or holds other values."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _NUMBERS:
            return ()
        count = min(entry.count, most)
        form = f"{self.order}{count}{_NUMBERS[entry.kind]}"
        if entry.at + struct.calcsize(form) > len(self.block):
            return ()
        return struct.unpack_from(form, self.block, entry.at)

    def first(self, tag: int, default: int = 0) -> int:
        """The first of these numbers."""
        return next(iter(self.numbers(tag, 1)), default)

    @property
    def is_bomb(self) -> bool:
        """True if it was made to take memory: its values have more bytes together than the block."""
        return self.count > MAX_ENTRIES or sum(entry.size for entry in self.entries.values()) > 2 * len(self.block)


def orientation(block: bytes | bytearray | None, xmp: bytes | str | None = None) -> int:
    """The orientation of a picture, 1 to 8; a broken block is no reason to lose the picture, and means 1.

    Args:
        block: EXIF, with or without its name in front. The value counts whatever whole number it is stored as: some
            programs write BYTE where the standard wants SHORT.
        xmp: looked at if EXIF has none.
    """
    if block:
        block = block.removeprefix(b"Exif\0\0")
        found = read_directory(block)
        for value in found.numbers(_ORIENTATION) if found else ():
            return value if value in range(1, 9) else 1
    if xmp:
        match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        return int(match[1]) if match else 1
    return 1


def read_directory(block: bytes | bytearray | memoryview, start: int | None = None) -> Directory | None:
    """Read one directory; of two entries with the same tag the first counts.

    Args:
        block: a TIFF file, BigTIFF or not, or what follows the name in an EXIF block.
        start: offset of the directory. Default: the first one.

    Returns:
        None if there is none where one should be. Entries that lie beyond the end of the block are left out.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(block[:2]))
    if order is None or len(block) < 8:
        return None
    big = struct.unpack_from(order + "H", block, 2)[0] == 43
    offset, room, count_form = ("Q", 8, "Q") if big else ("I", 4, "H")

    def number(form: str, at: int) -> int | None:
        form = order + form
        return struct.unpack_from(form, block, at)[0] if at + struct.calcsize(form) <= len(block) else None

    if start is None:
        start = number(offset, 8 if big else 4)
    count = None if start is None else number(count_form, start)
    if count is None:
        return None
    first, entry_form, entry_bytes = start + struct.calcsize(count_form), f"{order}HH{offset}{offset}", 4 + 2 * room
    entries: dict[int, Entry] = {}
    for place in range(first, len(block) - entry_bytes + 1, entry_bytes)[: min(count, MAX_ENTRIES)]:
        tag, kind, values, at = struct.unpack_from(entry_form, block, place)
        if values * _SIZES.get(kind, 1) <= room:
            at = place + entry_bytes - room  # the values stand where else their offset does
        entries.setdefault(tag, Entry(tag, kind, values, at))
    return Directory(block, order, big, start, entries, count, number(offset, first + count * entry_bytes) or 0)


def prepare(data: bytearray) -> Prepared:
    """Choose the picture and bound what it takes.

    Raises:
        ImageError: raw values of a camera, or more pixels, strips or bytes than any photo.
    """
    if data[8:10] == b"CR":
        raise _raw("CR2")
    pages = _pages(data)
    if not pages:
        raise ImageError("truncated or broken TIFF")
    page = next((page for page in pages if not _is_preview(page)), pages[0])
    if page.first(_COLOUR) in _RAW_COLOURS:
        raise _raw("DNG" if _DNG in pages[0].entries else "NEF, ARW or another")
    if _DNG in pages[0].entries and _is_preview(page):
        raise _raw("DNG")
    _check(page)
    return Prepared(_with_this_directory(page))


def _raw(name: str) -> ImageError:
    return ImageError(f"a camera raw file ({name}): convert it to JPEG or PNG")


def _pages(data: bytearray) -> list[Directory]:
    """The first directory, those below it, and those that follow it."""
    pages: list[Directory] = []
    waiting: list[int | None] = [None]
    seen: set[int | None] = set()
    while waiting and len(pages) < _MAX_DIRECTORIES:
        start = waiting.pop(0)
        page = None if start in seen else read_directory(data, start)
        seen.add(start)
        if page is not None:
            pages.append(page)
            waiting = [*page.numbers(_SUB_DIRECTORIES), *waiting]
            waiting += [page.following] if page.following else []
    return pages


def _is_preview(page: Directory) -> bool:
    return bool(page.first(_SUBFILE) & 1) or page.first(_OLD_SUBFILE) == 2


def _check(page: Directory) -> None:
    width, height = page.first(_WIDTH), page.first(_HEIGHT)
    check_pixels(width, height)
    if page.is_bomb:
        raise ImageError("broken TIFF: values of more bytes than the file")
    tile = [page.first(tag) for tag in (_TILE_WIDTH, _TILE_HEIGHT)]
    for side, most in zip(tile, (width, height), strict=True):
        if side > max(_MIN_TILE, most + 15):
            raise ImageError(f"broken TIFF: tiles of {tile[0]} x {tile[1]} in a picture of {width} x {height}")
    for tag in (_OFFSETS, _TILE_OFFSETS):
        if tag in page.entries and page.entries[tag].count > _MAX_STRIPS:
            raise ImageError("broken TIFF: too many strips or tiles")
    samples = page.first(_SAMPLES, 1)
    bits = max(page.numbers(_BITS) or (1,))
    most_bytes = _MAX_BYTES_PER_PIXEL * max(allowed_pixels(), MAX_PIXELS)
    if max(width * height, tile[0] * tile[1]) * samples * bits / 8 > most_bytes:
        raise ImageError(f"too many pixels ({width} x {height} of {samples} samples)")


def _with_this_directory(page: Directory) -> bytearray:
    """A copy of the file whose first directory is this one alone."""
    number, room, count_form = ("Q", 8, "Q") if page.big else ("I", 4, "H")
    entries = []
    for entry in sorted(page.entries.values()):
        if entry.tag not in _NEEDED or (entry.tag == _PROFILE and entry.size > MAX_PROFILE_BYTES):
            continue
        if entry.size <= room:
            value = bytes(page.block[entry.at : entry.at + entry.size]).ljust(room, b"\0")
        else:
            value = struct.pack(page.order + number, entry.at)
        entries.append(struct.pack(f"{page.order}HH{number}", entry.tag, entry.kind, entry.count) + value)
    copy = bytearray(page.block)
    struct.pack_into(page.order + number, copy, 8 if page.big else 4, page.start)
    directory = struct.pack(page.order + count_form, len(entries)) + b"".join(entries) + bytes(room)
    copy[page.start : page.start + len(directory)] = directory  # no longer than it was
    return copy
