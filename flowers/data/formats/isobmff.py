"""AVIF and HEIC: metadata that their readers would unfold, and the size of the pictures that the stream codes.

Both are boxes of ISO/IEC 14496-12. The limits on boxes, items and their extents are those of libavif and libheif.
"""

import re

from flowers.data.formats.exif import is_bomb
from flowers.data.formats.limits import check_pixels
from flowers.errors import ImageError

_TIFF_HEADER = re.compile(rb"II\*\0|MM\0\*")
_SIZE_PROPERTY = re.compile(rb"ispe\0\0\0\0(........)", re.DOTALL)
_MAX_BLOCKS = 100


def check(data: bytearray, max_pixels: int) -> None:
    """Look for EXIF blocks of overlapping entries, and for sizes that are too large.

    Raises:
        ImageError: an EXIF block that would take memory, or too many pixels.
    """
    for count, match in enumerate(_TIFF_HEADER.finditer(data)):
        block = memoryview(data)[match.start() :]
        if count > _MAX_BLOCKS or is_bomb(block):
            raise ImageError("broken AVIF or HEIC: EXIF of more bytes than the file")
    for match in _SIZE_PROPERTY.finditer(data):
        check_pixels(int.from_bytes(match[1][:4]), int.from_bytes(match[1][4:]), max_pixels)
