"""Files that are made of boxes (ISO/IEC 14496-12): AVIF, HEIC and JPEG XL, and where the stream of a JPEG 2000 begins.

Readers of AVIF and HEIC would unfold metadata, and trust the size that the stream codes; their limits on boxes, items
and extents are those of libavif and libheif. The plugin for JPEG XL decodes as it opens, so the size is read before;
names are those of ISO/IEC 18181-1 and, for the container, 18181-2.
"""

import re
from collections.abc import Iterator

from flowers.data.formats.limits import check_pixels
from flowers.data.formats.tiff import read_directory
from flowers.errors import ImageError

_MAX_BOXES = 1000
_TIFF_HEADER = re.compile(rb"II\*\0|MM\0\*")
_SIZE_PROPERTY = re.compile(rb"ispe\0\0\0\0(........)", re.DOTALL)
_MAX_BLOCKS = 100
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_SIZE_BITS = (9, 13, 18, 30)
_HEADER_BYTES = 16


def boxes(data: bytearray) -> Iterator[tuple[bytes, int, int]]:
    """Kind, offset of the contents and length with its head of each box, as far as they can be followed."""
    at = 0
    for _ in range(_MAX_BOXES):
        length, kind, head = int.from_bytes(data[at : at + 4]), bytes(data[at + 4 : at + 8]), 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16]), 16
        yield kind, at + head, length
        if length < head:
            return
        at += length


def check_heif(data: bytearray) -> None:
    """Look for EXIF blocks of overlapping entries in AVIF or HEIC, and for sizes that are too large.

    Raises:
        ImageError: an EXIF block that would take memory, or too many pixels.
    """
    for count, match in enumerate(_TIFF_HEADER.finditer(data)):
        block = memoryview(data)[match.start() :]
        found = read_directory(block)
        if count > _MAX_BLOCKS or (found is not None and found.is_bomb):
            raise ImageError("broken AVIF or HEIC: EXIF of more bytes than the file")
    for match in _SIZE_PROPERTY.finditer(data):
        check_pixels(int.from_bytes(match[1][:4]), int.from_bytes(match[1][4:]))


def check_jxl(data: bytearray) -> None:
    """Bound the pixels of a JPEG XL.

    Raises:
        ImageError: there are too many, or there is no picture.
    """
    start = _code_stream(data)
    header = data[start : start + _HEADER_BYTES]
    if len(header) < 4:
        raise ImageError("truncated JXL")
    check_pixels(*_read_size(int.from_bytes(header[2:], "little")), "JXL")


def _code_stream(data: bytearray) -> int:
    """Offset of the code stream of a JPEG XL: the file's own start, or that of the contents of one of its boxes."""
    if data.startswith(b"\xff\x0a"):
        return 0
    for kind, start, _ in boxes(data):
        if kind in (b"jxlc", b"jxlp"):
            return start + 4 * (kind == b"jxlp")  # a part begins with its number
    raise ImageError("broken JXL: no code stream")


def _read_size(bits: int) -> tuple[int, int]:
    """Width and height of a SizeHeader, whose bits come from the lowest on."""

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side(in_eights: int) -> int:
        return 8 * (1 + take(5)) if in_eights else 1 + take(_SIZE_BITS[take(2)])

    in_eights = take(1)
    height = side(in_eights)
    ratio = take(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        return height * across // down, height
    return side(in_eights), height
