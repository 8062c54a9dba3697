"""JPEG XL: the size of the picture, read before the plugin, which decodes as it opens.

Names are those of ISO/IEC 18181-1; the container's boxes are those of 18181-2.
"""

from flowers.data.formats.limits import check_pixels
from flowers.errors import ImageError

_MAX_BOXES = 1000
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_SIZE_BITS = (9, 13, 18, 30)
_HEADER_BYTES = 16


def check(data: bytearray, max_pixels: int) -> None:
    """Bound the pixels.

    Raises:
        ImageError: there are too many, or there is no picture.
    """
    header = _code_stream(data)
    if len(header) < 4:
        raise ImageError("truncated JXL")
    check_pixels(*_read_size(int.from_bytes(header[2:], "little")), max_pixels, "JXL")


def _code_stream(data: bytearray) -> bytes:
    """The first bytes of the code stream: the file's own, or those of one of its boxes."""
    if data.startswith(b"\xff\x0a"):
        return bytes(data[:_HEADER_BYTES])
    at = 0
    for _ in range(_MAX_BOXES):
        length, kind = int.from_bytes(data[at : at + 4]), bytes(data[at + 4 : at + 8])
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16]), 16
        if kind in (b"jxlc", b"jxlp"):  # a part begins with its number
            start = at + head + 4 * (kind == b"jxlp")
            return bytes(data[start : start + _HEADER_BYTES])
        if length < head:
            break
        at += length
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
