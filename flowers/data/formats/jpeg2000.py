"""JPEG 2000: what its code stream makes the decoder allocate, from the main header and those of all tile parts.

Names are those of ISO/IEC 15444-1, annex A.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from flowers.data.formats.boxes import boxes
from flowers.data.formats.limits import check_pixels
from flowers.errors import ImageError

_MAX_HEADER_BYTES = 4 << 20
_MAX_COMPONENTS, _MAX_TILES, _MAX_TILE_PARTS = 4, 8192, 100_000
_MAX_CODE_BLOCKS, _MAX_PACKETS = 2_000_000, 10_000_000
_SOC, _SOT, _SOD, _SIZ, _COD, _COC = b"\xff\x4f", b"\xff\x90", b"\xff\x93", b"\xff\x51", b"\xff\x52", b"\xff\x53"


class _Size(NamedTuple):
    width: int
    height: int
    components: int
    tiles: int


def check(data: bytearray) -> None:
    """Bound pixels, components, tiles, code blocks and packets.

    Raises:
        ImageError: more than any photo needs, or a broken header.
    """
    try:
        start = _code_stream(data)
        size = _read_size(data, start + 2)
        check_pixels(size.width, size.height, "JPEG2000")
        if size.components > _MAX_COMPONENTS:
            raise ImageError(f"broken JPEG2000: {size.components} components")
        if size.tiles > _MAX_TILES:
            raise ImageError(f"broken JPEG2000: more than {_MAX_TILES} tiles")
        for marker, body in _segments(data, start + 2):
            if marker == _COD:
                _check_style(body[0] & 1, struct.unpack_from(">H", body, 2)[0], body[5:], size)
            elif marker == _COC:
                _check_style(body[1] & 1, 1, body[2:], size)
    except (struct.error, IndexError):
        raise ImageError("truncated JPEG2000") from None


def _code_stream(data: bytearray) -> int:
    """Offset of the code stream: the file itself, or one of its boxes."""
    if data.startswith(_SOC):
        return 0
    for kind, start, length in boxes(data):
        if kind == b"jp2c":
            return start
        if not kind:
            raise ImageError("truncated JPEG2000")
        if kind == b"jp2h" and length > _MAX_HEADER_BYTES:
            break
    raise ImageError("broken JPEG2000: no code stream")


def _read_size(data: bytearray, at: int) -> _Size:
    if data[at : at + 2] != _SIZ:
        raise ImageError("broken JPEG2000: no size")
    right, bottom, left, top, tile_width, tile_height, tiles_left, tiles_top, components = struct.unpack_from(
        ">8IH", data, at + 6
    )
    if not (tile_width and tile_height and right > left and bottom > top):
        raise ImageError("broken JPEG2000: an empty picture")
    tiles = -(-(right - tiles_left) // tile_width) * -(-(bottom - tiles_top) // tile_height)
    return _Size(right - left, bottom - top, components, tiles)


def _segments(data: bytearray, at: int) -> Iterator[tuple[bytes, bytes]]:
    """Marker and contents of every segment of the main header and of the tile parts' headers."""
    part_end = 0
    for _ in range(_MAX_TILE_PARTS):
        marker = bytes(data[at : at + 2])
        if marker == _SOD:  # its data; the next part begins where this one ends
            if part_end <= at or part_end + 12 > len(data) or data[part_end : part_end + 2] != _SOT:
                return
            at = part_end
            continue
        if marker[:1] != b"\xff" or at + 4 > len(data):
            return
        length = struct.unpack_from(">H", data, at + 2)[0]
        if marker == _SOT:
            part_bytes = struct.unpack_from(">I", data, at + 6)[0]
            part_end = at + part_bytes if part_bytes else 0
        yield marker, bytes(data[at + 4 : at + 2 + length])
        at += 2 + length
    raise ImageError("broken JPEG2000: too many segments")


def _check_style(own_precincts: int, layers: int, style: bytes, size: _Size) -> None:
    """Count code blocks and packets, as if the whole picture were coded in this style.

    Args:
        own_precincts: 1 if the style lists the precincts' sizes, else they are 2^15 pixels wide.
        layers: of quality.
        style: decomposition levels, code block's width and height less 2, two more bytes, precincts.
        size: of the picture.
    """
    levels = style[0]
    if levels > 32:
        raise ImageError("broken JPEG2000: more than 32 levels")
    area = size.width * size.height * size.components
    blocks = area >> (style[1] + style[2] + 4)
    packets = 0
    for level in range(levels + 1):
        across, down = (style[5 + level] & 15, style[5 + level] >> 4) if own_precincts else (15, 15)
        shrink = levels - level
        width, height = (-(-side // (1 << shrink)) for side in (size.width, size.height))
        packets += max(size.tiles, -(-width // (1 << across)) * -(-height // (1 << down))) * size.components
    if blocks > _MAX_CODE_BLOCKS or packets * layers > _MAX_PACKETS:
        raise ImageError("broken JPEG2000: too many code blocks or packets")
