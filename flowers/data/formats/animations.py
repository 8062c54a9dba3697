"""GIF and WebP, which may be animations.

Of a GIF the decoder gets the first picture alone, without the comments and all that follows: Pillow joins comment
blocks one by one, which takes time by the square of their number. Of a WebP it keeps two canvases of an animation,
whatever the size of its pictures.
"""

from flowers.data.formats.limits import MAX_PROFILE_BYTES, Prepared, broken, check_pixels
from flowers.errors import ImageError

_MAX_BLOCKS = 500_000
"""Before the first picture, of up to 255 bytes each."""
_EXTENSION, _PICTURE, _END = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL = 0xF9
_MAX_CHUNKS = 100_000
_ANIMATED = 0x02


def first_of_gif(data: bytearray) -> Prepared:
    """Find the first picture of a GIF.

    Raises:
        ImageError: there is none, or too much before it.
    """
    if len(data) < 13:
        raise ImageError("truncated GIF")
    at = header = 13 + _palette_bytes(data[10])
    control = b""
    while at < len(data) and data[at] == _EXTENSION:
        end = _after_blocks(data, at + 2)
        if data[at + 1 : at + 2] == bytes([_GRAPHIC_CONTROL]):
            control = data[at:end]
        at = end
        if at > 255 * _MAX_BLOCKS:
            break
    if at + 11 > len(data):
        raise ImageError("truncated GIF")
    if data[at] != _PICTURE:
        raise broken("GIF", "no picture" if data[at] == _END else "no picture where one should begin")
    end = _after_blocks(data, at + 11 + _palette_bytes(data[at + 9]), most=len(data))
    return Prepared(b"".join([data[:header], control, data[at:end], bytes([_END])]))


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytearray, at: int, most: int = _MAX_BLOCKS) -> int:
    """Offset after a row of blocks, each of which begins with its length, and the empty one at its end."""
    for _ in range(most):
        if at >= len(data):
            return len(data)
        if not data[at]:
            return at + 1
        at += 1 + data[at]
    raise broken("GIF", "too many comment blocks")


def check_webp(data: bytearray) -> None:
    """Bound the canvas of an animation, and the metadata, by the chunks of the RIFF container.

    Raises:
        ImageError: an animation of too many pixels, or too many chunks.
    """
    if data[12:16] == b"VP8X" and len(data) >= 30 and data[20] & _ANIMATED:
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        check_pixels(width, height, "animated WEBP")
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] in (b"ICCP", b"EXIF", b"XMP ") and size > 16 * MAX_PROFILE_BYTES:
            raise ImageError(f"broken WEBP: {size} bytes of metadata")
        at += 8 + size + size % 2
    raise ImageError("broken WEBP: too many chunks")
