"""BMP and PPM: headers that Pillow reads byte by byte, and rasters that it decodes in Python."""

import re

from flowers.data.formats.limits import check_pixels
from flowers.errors import ImageError

_MAX_HEADER_BYTES = 1 << 16
_MAX_PLAIN_BYTES = 64 << 20
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_NUMBER = rb"([0-9.+-]{1,20})"
_PLAIN = (b"1", b"2", b"3")
_PPM = re.compile(rb"P([1-6f])" + _GAP + _NUMBER + _GAP + _NUMBER + rb"(?:" + _GAP + _NUMBER + rb")?")
_RUN_LENGTHS = (1, 2)


def check_bmp(data: bytearray) -> None:
    """Bound the pixels of compressed files.

    Raises:
        ImageError: there are too many.
    """
    if len(data) >= 34 and int.from_bytes(data[30:34], "little") in _RUN_LENGTHS and data[14] >= 40:
        width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
        check_pixels(abs(width), abs(height), "compressed BMP")


def check_ppm(data: bytearray) -> None:
    """Bound the header, and the raster of plain files, whose numbers are written out in digits.

    Raises:
        ImageError: a header of more than 64 KiB, or a plain file that would take too long.
    """
    head = _PPM.match(data, 0, _MAX_HEADER_BYTES)
    if head is None:
        cut = len(data) < _MAX_HEADER_BYTES
        raise ImageError("truncated PPM" if cut else "broken PPM: a header of more than 64 KiB")
    if head[1] in _PLAIN:
        if data.find(b"#", head.end()) >= 0:
            raise ImageError("broken PPM: comments among the pixels")
        if len(data) > _MAX_PLAIN_BYTES:
            raise ImageError(f"a plain PPM of more than {_MAX_PLAIN_BYTES >> 20} MiB")
        width, height = (int(head[at]) if head[at].isdigit() else 0 for at in (2, 3))
        check_pixels(width, height, "plain PPM")
