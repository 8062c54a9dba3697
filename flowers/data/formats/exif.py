"""The orientation of a picture, from its EXIF or XMP block.

Read here rather than by Pillow, which reads all values of a block at once: entries that overlap make gigabytes of a few
kilobytes.
"""

import re
import struct
from typing import NamedTuple

MAX_ENTRIES = 4096
"""Of a directory. Cameras write fewer than 200."""

_ORIENTATION = 0x0112
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value of each type of TIFF 6.0 and BigTIFF."""
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)([1-8])")


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

    def numbers(self, block: bytes | bytearray, tag: int, most: int = 16) -> tuple[int, ...]:
        """The first whole numbers under a tag; none if it is missing or cut or holds other values."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _NUMBERS:
            return ()
        count = min(entry.count, most)
        form = f"{self.order}{count}{_NUMBERS[entry.kind]}"
        if entry.at + struct.calcsize(form) > len(block):
            return ()
        return struct.unpack_from(form, block, entry.at)

    def is_bomb(self, block_bytes: int) -> bool:
        """True if it was made to take memory: its values have more bytes together than the block."""
        return self.count > MAX_ENTRIES or sum(entry.size for entry in self.entries.values()) > 2 * block_bytes


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
        for value in found.numbers(block, _ORIENTATION) if found else ():
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
    return Directory(order, big, start, entries, count, number(offset, first + count * entry_bytes) or 0)
