"""How much one picture may take: pixels, bytes and company.

The ceiling: one file takes at most 2 GiB of memory and 30 s of CPU time. Small files are held to a quarter of that by
``tests/test_hostile_images.py``. Flat pictures as large as the limit allows took 0.9 GiB (JPEG 2000) to 1.7 GiB (WebP)
and 2 to 4 s. Not bounded by what the file says: an AVIF stream whose pictures are larger than its container says, for
which libavif's own limit of 268 megapixels holds.
"""

import contextlib
import threading
from typing import Any, NamedTuple

from flowers.errors import ImageError

MAX_PIXELS = 100_000_000
"""Pictures of more pixels than this after decoding are refused. One of this size needs 0.3 GB of memory on its way as a
JPEG, 1 to 2 GB in other formats."""

_allowed_pixels = MAX_PIXELS

SHARE_OF_PIXELS = {"JPEG2000": 1 / 2, "animated WEBP": 1 / 4, "compressed BMP": 1 / 4, "plain PPM": 1 / 4}
"""Kinds that take more memory or time per pixel, and the share of the limit that they get."""

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused before they are read."""

MAX_PROFILE_BYTES = 4 << 20
"""Larger colour profiles are ignored; those of printers have up to 3 MB."""

LARGE_PIXELS = 16_000_000
"""Of pictures above this only two are decoded at a time, so that many threads do not add them up in memory."""

_large_pictures = threading.BoundedSemaphore(2)


class Prepared(NamedTuple):
    """A file as its decoder gets it."""

    data: bytes | bytearray
    info: dict[str, Any] = {}  # noqa: RUF012
    """What was read on the way, under Pillow's names: ``icc_profile``, ``transparency``."""
    damage: str | None = None
    """What is wrong with the file, although it decodes."""


def allow_pixels(count: int) -> None:
    """Set the limit of this process and of those that it forks, as ``--max-pixels`` asks for."""
    global _allowed_pixels
    _allowed_pixels = count


def allowed_pixels() -> int:
    """The limit of this process."""
    return _allowed_pixels


def check_size(size_bytes: int) -> None:
    """Refuse a file before it is read.

    Raises:
        ImageError: it is larger than any photo.
    """
    if size_bytes > MAX_FILE_BYTES:
        raise ImageError(f"too large a file ({size_bytes / (1 << 30):.1f} GiB)")


def check_pixels(width: int, height: int, kind: str = "", scale: int = 1) -> None:
    """Refuse a picture before it is decoded.

    Args:
        width: pixels.
        height: pixels.
        kind: of ``SHARE_OF_PIXELS``, or any other.
        scale: only one pixel in so many is decoded, in each direction.

    Raises:
        ImageError: it has too many pixels.
    """
    if -(-width // scale) * -(-height // scale) > _allowed_pixels * SHARE_OF_PIXELS.get(kind, 1):
        raise ImageError(f"too many pixels ({width} x {height}{f' in {kind}' if kind in SHARE_OF_PIXELS else ''})")


def room_for(width: int, height: int) -> contextlib.AbstractContextManager:
    """Wait until there is memory for a large picture; small ones go ahead."""
    return _large_pictures if width * height > LARGE_PIXELS else contextlib.nullcontext()


def broken(kind: str, error: Exception | str) -> ImageError:
    """The error of a file whose decoder gave up, in one short line."""
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return ImageError(f"truncated {kind}")
    return ImageError(f"broken {kind}: {text[:120]}" if text else f"broken {kind}")
