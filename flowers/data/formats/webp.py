"""WebP: the size of its canvas and of its profile, from the chunks of the RIFF container."""

from flowers.data.formats.limits import MAX_PROFILE_BYTES, check_pixels
from flowers.errors import ImageError

_MAX_CHUNKS = 100_000
_ANIMATED = 0x02


def check(data: bytearray, max_pixels: int) -> None:
    """Bound what the decoder will take: it keeps two canvases of an animation, whatever the size of its pictures.

    Raises:
        ImageError: an animation of too many pixels, or too many chunks.
    """
    if data[12:16] == b"VP8X" and len(data) >= 30 and data[20] & _ANIMATED:
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        check_pixels(width, height, max_pixels, "animated WEBP")
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] in (b"ICCP", b"EXIF", b"XMP ") and size > 16 * MAX_PROFILE_BYTES:
            raise ImageError(f"broken WEBP: {size} bytes of metadata")
        at += 8 + size + size % 2
    raise ImageError("broken WEBP: too many chunks")
