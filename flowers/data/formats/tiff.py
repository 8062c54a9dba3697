"""TIFF: which of its pictures is meant, and a directory of only what its decoder needs.

A file may begin with a small preview, as those of cameras do (NewSubfileType, TIFF 6.0 page 36). The full picture is
then in a later or lower directory. If that holds a sensor's raw values, as in a DNG or NEF, the file is refused:
a preview is not the photo.

The decoder gets the picture's directory without comments, EXIF and the directories after it, whose entries may make
gigabytes of a few kilobytes.
"""

import struct

from flowers.data.formats.exif import Directory, read_directory
from flowers.data.formats.limits import MAX_PIXELS, MAX_PROFILE_BYTES, Prepared, allowed_pixels, check_pixels
from flowers.errors import ImageError

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
    page = next((page for page in pages if not _is_preview(data, page)), pages[0])
    if _first(data, page, _COLOUR) in _RAW_COLOURS:
        raise _raw("DNG" if _DNG in pages[0].entries else "NEF, ARW or another")
    if _DNG in pages[0].entries and _is_preview(data, page):
        raise _raw("DNG")
    _check(data, page)
    return Prepared(_with_one_directory(data, page))


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
            waiting = [*page.numbers(data, _SUB_DIRECTORIES), *waiting]
            waiting += [page.following] if page.following else []
    return pages


def _first(data: bytearray, page: Directory, tag: int, default: int = 0) -> int:
    return next(iter(page.numbers(data, tag, 1)), default)


def _is_preview(data: bytearray, page: Directory) -> bool:
    return bool(_first(data, page, _SUBFILE) & 1) or _first(data, page, _OLD_SUBFILE) == 2


def _check(data: bytearray, page: Directory) -> None:
    width, height = _first(data, page, _WIDTH), _first(data, page, _HEIGHT)
    check_pixels(width, height)
    if page.is_bomb(len(data)):
        raise ImageError("broken TIFF: values of more bytes than the file")
    tile = [_first(data, page, tag) for tag in (_TILE_WIDTH, _TILE_HEIGHT)]
    for side, most in zip(tile, (width, height), strict=True):
        if side > max(_MIN_TILE, most + 15):
            raise ImageError(f"broken TIFF: tiles of {tile[0]} x {tile[1]} in a picture of {width} x {height}")
    for tag in (_OFFSETS, _TILE_OFFSETS):
        if tag in page.entries and page.entries[tag].count > _MAX_STRIPS:
            raise ImageError("broken TIFF: too many strips or tiles")
    samples = _first(data, page, _SAMPLES, 1)
    bits = max(page.numbers(data, _BITS) or (1,))
    most_bytes = _MAX_BYTES_PER_PIXEL * max(allowed_pixels(), MAX_PIXELS)
    if max(width * height, tile[0] * tile[1]) * samples * bits / 8 > most_bytes:
        raise ImageError(f"too many pixels ({width} x {height} of {samples} samples)")


def _with_one_directory(data: bytearray, page: Directory) -> bytearray:
    """A copy whose first directory is this one alone."""
    number, room, count_form = ("Q", 8, "Q") if page.big else ("I", 4, "H")
    entries = []
    for entry in sorted(page.entries.values()):
        if entry.tag not in _NEEDED or (entry.tag == _PROFILE and entry.size > MAX_PROFILE_BYTES):
            continue
        if entry.size <= room:
            value = bytes(data[entry.at : entry.at + entry.size]).ljust(room, b"\0")
        else:
            value = struct.pack(page.order + number, entry.at)
        entries.append(struct.pack(f"{page.order}HH{number}", entry.tag, entry.kind, entry.count) + value)
    copy = bytearray(data)
    struct.pack_into(page.order + number, copy, 8 if page.big else 4, page.start)
    directory = struct.pack(page.order + count_form, len(entries)) + b"".join(entries) + bytes(room)
    copy[page.start : page.start + len(directory)] = directory  # no longer than it was
    return copy
