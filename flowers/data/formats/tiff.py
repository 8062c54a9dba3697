"""TIFF: which of its pictures is meant, and a directory of only what its decoder needs.

A file may begin with a small preview, as those of cameras do (NewSubfileType, TIFF 6.0 page 36). The full picture is
then in a later or lower directory. If that holds a sensor's raw values, as in a DNG or NEF, the file is refused:
a preview is not the photo.

The decoder gets the picture's directory without comments, EXIF and the directories after it, whose entries may make
gigabytes of a few kilobytes.
"""

import math
import struct
from typing import NamedTuple

from flowers.data.formats.exif import Directory, is_bomb, read_directory
from flowers.data.formats.limits import MAX_PIXELS, MAX_PROFILE_BYTES, Prepared, check_pixels
from flowers.errors import ImageError

_MAX_DIRECTORIES = 64
_MAX_STRIPS = 500_000
_MIN_TILE = 4096
"""Tiles may be larger than the picture, up to this side."""
_MAX_BYTES_PER_PIXEL = 12
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOUR = 254, 255, 256, 257, 258, 259, 262
_OFFSETS, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 273, 277, 322, 323, 324
_SUB_DIRECTORIES, _PROFILE, _DNG = 330, 34675, 50706
_LOWEST, _HIGHEST, _SIGNED_LOWEST, _SIGNED_HIGHEST = 280, 281, 340, 341
_RAW_COLOURS = (32803, 34892)  # the sensor's own pattern, and linear values of it
_NEEDED = {
    254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 292, 293, 317, 320, 322, 323, 324, 325,
    332, 338, 339, 340, 341, 347, 512, 513, 514, 519, 520, 521, 529, 530, 531, 532, 34675,
}  # fmt: skip


class _Page(NamedTuple):
    directory: Directory
    start: int


def prepare(data: bytearray, max_pixels: int) -> Prepared:
    """Choose the picture and bound what it takes.

    Raises:
        ImageError: raw values of a camera, or more pixels, strips or bytes than any photo.
    """
    if data[8:10] == b"CR":
        raise _raw("CR2")
    pages = _pages(data)
    if not pages:
        raise ImageError("truncated or broken TIFF")
    page = next((page for page in pages if not _is_preview(data, page.directory)), pages[0])
    if _first(data, page.directory, _COLOUR) in _RAW_COLOURS:
        raise _raw("DNG" if _DNG in pages[0].directory.entries else "NEF, ARW or another")
    if _DNG in pages[0].directory.entries and _is_preview(data, page.directory):
        raise _raw("DNG")
    _check(data, page, max_pixels)
    return Prepared(_with_one_directory(data, page))


def black_and_white(tags: dict, mode: str) -> tuple[float | None, float | None]:
    """Values of black and white that the file's own tags give, or None.

    Args:
        tags: Pillow's ``tag_v2``.
        mode: Pillow's mode of the picture.
    """

    def one(*names: int) -> float | None:
        for name in names:
            value = tags.get(name)
            value = value[0] if isinstance(value, tuple) and value else value
            if isinstance(value, int | float) and math.isfinite(value):
                return float(value)
        return None

    white = one(_SIGNED_HIGHEST, _HIGHEST)
    bits = one(_BITS)
    if white is None and mode.startswith("I;16") and bits is not None and bits < 16:
        white = 2**bits - 1
    return one(_SIGNED_LOWEST, _LOWEST), white


def _raw(name: str) -> ImageError:
    return ImageError(f"a camera raw file ({name}): convert it to JPEG or PNG")


def _pages(data: bytearray) -> list[_Page]:
    """The first directory, those below it, and those that follow it."""
    pages: list[_Page] = []
    waiting: list[int | None] = [None]
    seen: set[int | None] = set()
    while waiting and len(pages) < _MAX_DIRECTORIES:
        start = waiting.pop(0)
        directory = None if start in seen else read_directory(data, start)
        seen.add(start)
        if directory is None:
            continue
        if start is None:
            start = _first_start(data, directory.order)
            waiting = [*directory.numbers(data, _SUB_DIRECTORIES), *_following(data, start, directory.order)]
        else:
            waiting = [*directory.numbers(data, _SUB_DIRECTORIES), *waiting, *_following(data, start, directory.order)]
        pages.append(_Page(directory, start))
    return pages


def _is_big(data: bytearray, order: str) -> bool:
    return struct.unpack_from(order + "H", data, 2)[0] == 43


def _first_start(data: bytearray, order: str) -> int:
    return (
        struct.unpack_from(order + "Q", data, 8)[0]
        if _is_big(data, order)
        else struct.unpack_from(order + "I", data, 4)[0]
    )


def _following(data: bytearray, start: int, order: str) -> list[int]:
    """Offset of the directory after this one, if there is one."""
    form, step, head = ("Q", 20, 8) if _is_big(data, order) else ("I", 12, 2)
    count = struct.unpack_from(order + ("Q" if head == 8 else "H"), data, start)[0]
    at = start + head + step * count
    if at + struct.calcsize(form) > len(data):
        return []
    following = struct.unpack_from(order + form, data, at)[0]
    return [following] if following else []


def _first(data: bytearray, directory: Directory, tag: int, default: int = 0) -> int:
    return next(iter(directory.numbers(data, tag, 1)), default)


def _is_preview(data: bytearray, directory: Directory) -> bool:
    return bool(_first(data, directory, _SUBFILE) & 1) or _first(data, directory, _OLD_SUBFILE) == 2


def _check(data: bytearray, page: _Page, max_pixels: int) -> None:
    directory = page.directory
    width, height = _first(data, directory, _WIDTH), _first(data, directory, _HEIGHT)
    check_pixels(width, height, max_pixels)
    if is_bomb(data, page.start):
        raise ImageError("broken TIFF: values of more bytes than the file")
    tile = [_first(data, directory, tag) for tag in (_TILE_WIDTH, _TILE_HEIGHT)]
    for side, most in zip(tile, (width, height), strict=True):
        if side > max(_MIN_TILE, most + 15):
            raise ImageError(f"broken TIFF: tiles of {tile[0]} x {tile[1]} in a picture of {width} x {height}")
    for tag in (_OFFSETS, _TILE_OFFSETS):
        if tag in directory.entries and directory.entries[tag].count > _MAX_STRIPS:
            raise ImageError("broken TIFF: too many strips or tiles")
    samples = _first(data, directory, _SAMPLES, 1)
    bits = max(directory.numbers(data, _BITS) or (1,))
    if max(width * height, tile[0] * tile[1]) * samples * bits / 8 > _MAX_BYTES_PER_PIXEL * max(max_pixels, MAX_PIXELS):
        raise ImageError(f"too many pixels ({width} x {height} of {samples} samples)")


def _with_one_directory(data: bytearray, page: _Page) -> bytearray:
    """A copy whose first directory is this one alone."""
    order, big = page.directory.order, _is_big(data, page.directory.order)
    entries = []
    for entry in sorted(page.directory.entries.values()):
        if entry.tag not in _NEEDED or (entry.tag == _PROFILE and entry.size > MAX_PROFILE_BYTES):
            continue
        room = 8 if big else 4
        value = bytes(data[entry.at : entry.at + entry.size])
        if entry.size <= room:
            value = value.ljust(room, b"\0")
        else:
            value = struct.pack(order + ("Q" if big else "I"), entry.at)
        entries.append(struct.pack(order + ("HHQ" if big else "HHI"), entry.tag, entry.kind, entry.count) + value)
    copy = bytearray(data)
    struct.pack_into(order + ("Q" if big else "I"), copy, 8 if big else 4, page.start)
    directory = struct.pack(order + ("Q" if big else "H"), len(entries)) + b"".join(entries) + bytes(8 if big else 4)
    copy[page.start : page.start + len(directory)] = directory  # no longer than it was
    return copy
