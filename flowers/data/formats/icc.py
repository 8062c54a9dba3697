"""Colour profiles (ICC) in photos: which of them change anything, and the conversion of pixels to sRGB.

LittleCMS does it, through Pillow, at about 35 ns a pixel: several times what decoding a JPEG costs. So a profile that
moves no colour by more than rounding, as sRGB's own, is left out, and pictures are converted at the size needed.

A profile that is damaged, too large, or made for other pixels than the picture has is ignored, as browsers do.
"""

import functools
import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from flowers.data import pixels
from flowers.data.formats.limits import MAX_PROFILE_BYTES

_SPACE, _CLASS, _MAGIC = slice(16, 20), slice(12, 16), slice(36, 40)  # in the header of a profile
_CLASSES = (b"scnr", b"mntr", b"prtr", b"spac")  # of devices and colour spaces
_FITTING = {b"RGB ": ("RGB", "L"), b"GRAY": ("L",), b"CMYK": ("CMYK",)}
_ROUNDING = 2
"""Levels of 255 by which profiles of sRGB differ from each other; the decoders of JPEGs do, too."""
_BLOCK_PIXELS = 1 << 16


class Transform(NamedTuple):
    """The way from the pixels of one profile to sRGB."""

    lcms: ImageCms.ImageCmsTransform
    mode: str
    """Of Pillow, for what comes in: RGB, L or CMYK."""


def find_transform(profile: bytes | None, mode: str) -> Transform | None:
    """The conversion that a picture needs; None if its numbers are sRGB's already, or no profile says otherwise.

    Args:
        profile: as it is in the file; may be damaged.
        mode: Pillow's, of the loaded picture.
    """
    if not profile or len(profile) > MAX_PROFILE_BYTES or profile[_MAGIC] != b"acsp":
        return None
    if mode != "CMYK":
        mode = "L" if mode in ("1", "L", "LA", "La", "F") or mode.startswith("I") else "RGB"
    if profile[_CLASS] not in _CLASSES or mode not in _FITTING.get(profile[_SPACE], ()):
        return None
    return _build(bytes(profile))


def convert(array: np.ndarray, transform: Transform | None, min_short_side: int | None) -> np.ndarray:
    """Convert a picture to sRGB.

    Args:
        array: uint8 [H, W, 3], or [H, W, 4] of CMYK; three channels are overwritten.
        transform: None returns the picture as it is.
        min_short_side: pixels that the short side must keep; a larger picture is shrunk to it first.

    Returns:
        uint8 [H, W, 3], with H and W of the shrunk picture.
    """
    if transform is None:
        return array
    if min_short_side is not None:
        array = pixels.shrink(array, min_short_side)
    height, width, channels = array.shape
    converted = array if channels == 3 else np.empty((height, width, 3), np.uint8)
    rows = max(1, _BLOCK_PIXELS // width)
    for start in range(0, height, rows):
        block = array[start : start + rows]
        converted[start : start + rows] = _apply(transform, block[:, :, 0] if transform.mode == "L" else block)
    return converted


def _apply(transform: Transform, block: np.ndarray) -> np.ndarray:
    height, width = block.shape[:2]
    return np.asarray(transform.lcms.apply(Image.frombytes(transform.mode, (width, height), block.tobytes())))


@functools.lru_cache(maxsize=16)
def _build(profile: bytes) -> Transform | None:
    """Build a transform; None if it would change nothing, or cannot be built."""
    mode = _FITTING[profile[_SPACE]][0]
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = Transform(ImageCms.buildTransform(found, ImageCms.createProfile("sRGB"), mode, "RGB"), mode)
        if mode == "CMYK":
            return transform
        levels = np.linspace(0, 255, 16).astype(np.uint8)
        colours = np.stack(np.meshgrid(*[levels] * len(mode)), axis=-1).reshape(1, -1, len(mode))
        changed = np.abs(_apply(transform, colours).astype(int) - colours).max()
    except Exception:  # of damaged profiles, with many kinds of errors
        return None
    return transform if changed > _ROUNDING else None
