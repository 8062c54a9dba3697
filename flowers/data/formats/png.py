"""PNG: the chunks that a decoder needs, with checksums compared; texts and animation are left out.

Pillow compares no checksum of the pixel data (zeros decode to a picture, too), and refuses a whole picture for a wrong
one in a comment.
"""

import contextlib
import zlib
from typing import Any

from flowers.data.formats.limits import MAX_PROFILE_BYTES, Prepared
from flowers.errors import ImageError

_MAX_TEXT_BYTES = 1 << 20
_ORIENTED = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # texts that may hold an orientation
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_LEFT_OUT = (b"acTL", b"fcTL", b"fdAT", b"iCCP")
_GREY, _RGB = 0, 2


def prepare(data: bytearray) -> Prepared:
    """Walk over all chunks.

    Raises:
        ImageError: the pixel data have a wrong checksum, or there are more chunks than any program writes.
    """
    kept: list[tuple[int, int]] = []
    info: dict[str, Any] = {}
    damage: str | None = None
    has_end = False
    at, depth, colour = 8, 8, _RGB
    view = memoryview(data)
    for _ in range(10_000 + len(data) // 512):
        if at + 12 > len(data):
            break
        kind, start, end = bytes(view[at + 4 : at + 8]), at + 8, at + 8 + int.from_bytes(view[at : at + 4])
        if end + 4 > len(data):
            kept.append((at, len(data)))  # for the decoder to say so, or to do without
            break
        right = zlib.crc32(view[at + 4 : end]) == int.from_bytes(view[end : end + 4])
        if not right and kind in (b"PLTE", b"IDAT"):
            raise ImageError("broken PNG: wrong checksum")
        if not right and kind[:1].islower():
            name = kind.decode("ascii", "replace")
            damage = f"a wrong checksum in its {name if name.isprintable() else 'unknown'} chunk"
        elif not _is_left_out(kind, view[start:end]):
            kept.append((at, end + 4))
        if kind == b"IHDR" and end - start == 13:
            depth, colour = view[start + 8], view[start + 9]
        elif kind == b"tRNS" and right:
            info |= _clear(bytes(view[start:end]), depth, colour)
        elif kind == b"iCCP" and right:
            info |= _profile(bytes(view[start:end]))
        at = end + 4
        if kind == b"IEND":
            has_end = True
            break
    else:
        raise ImageError("broken PNG: too many chunks")
    if not has_end and damage is None:
        damage = "the end mark of the file is missing"
    if sum(end - start for start, end in kept) == len(data) - 8:
        return Prepared(data, info, damage)
    return Prepared(b"".join([view[:8], *(view[start:end] for start, end in kept)]), info, damage)


def _is_left_out(kind: bytes, body: memoryview) -> bool:
    if kind in _TEXTS:
        return len(body) > _MAX_TEXT_BYTES or not bytes(body[:32]).startswith(_ORIENTED)
    return kind in _LEFT_OUT


def _clear(body: bytes, depth: int, colour: int) -> dict[str, Any]:
    """The colour that is transparent, in the numbers that Pillow's pixels have; Pillow takes the file's for it."""
    if colour == _GREY and len(body) >= 2:
        value = int.from_bytes(body[:2])
        return {"transparency": value if depth >= 8 else value * 255 // ((1 << depth) - 1)}
    if colour == _RGB and len(body) >= 6 and depth == 16:
        return {"transparency": (body[0], body[2], body[4])}  # Pillow keeps the upper bytes
    return {}


def _profile(body: bytes) -> dict[str, Any]:
    start = body.find(b"\0", 0, 80) + 2
    with contextlib.suppress(zlib.error):
        profile = zlib.decompressobj().decompress(body[start:], MAX_PROFILE_BYTES)
        return {"icc_profile": profile} if len(profile) < MAX_PROFILE_BYTES else {}
    return {}
