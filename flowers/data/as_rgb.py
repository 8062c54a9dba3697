"""One picture in memory, whatever holds it, as the RGB pixels that the decoder gives for a file."""

import os
from typing import Any

import numpy as np
from PIL import Image

from flowers.data import pixels
from flowers.data.formats import icc
from flowers.data.formats.exif import orientation
from flowers.data.formats.limits import check_pixels, check_size
from flowers.data.images import Decoded, decode_image
from flowers.errors import ImageError

_EXPECTED = "[H, W], [H, W, 3] or [H, W, 4] of uint8, uint16 or float from 0 to 1"


def is_one(source: object) -> bool:
    """Tell one picture from a collection of them.

    Paths, bytes, open files, Pillow images and arrays of up to three dimensions are one picture each.
    """
    if isinstance(source, np.ndarray):
        return source.ndim <= 3
    return isinstance(source, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or hasattr(
        source, "read"
    )


def as_rgb(source: Any, min_short_side: int | None = None, to_srgb: bool = False) -> Decoded:
    """Decode or convert one picture.

    Args:
        source: a path, the bytes of an image file, a file open in binary mode, a Pillow image, or an array: grey
            [H, W], RGB [H, W, 3] or RGBA [H, W, 4], uint8 from 0 to 255, uint16 from 0 to 65535 or float from 0 to 1.
        min_short_side: as in ``decode_image``; concerns files only.
        to_srgb: as in ``decode_image``; concerns files and Pillow images, which keep the profile of their file.

    Returns:
        uint8 [H, W, 3], RGB, upright, transparency laid on white; and what is wrong with a file that decodes.

    Raises:
        ImageError: the short reason why there is no picture.
    """
    if isinstance(source, np.ndarray):
        return Decoded(_from_array(source), None)
    if isinstance(source, Image.Image):
        return Decoded(_from_pillow(source, to_srgb), None)
    if isinstance(source, memoryview):
        source = bytes(source)
    if isinstance(source, str | os.PathLike | bytes | bytearray):
        return decode_image(source, min_short_side=min_short_side, to_srgb=to_srgb)
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes | bytearray):
            raise ImageError(f"a file that gives {type(data).__name__}: open it in binary mode, 'rb'")
        check_size(len(data))
        return decode_image(data, min_short_side=min_short_side, to_srgb=to_srgb)
    raise ImageError(
        f"got {type(source).__name__}, expected a path, bytes, a binary file, a Pillow image or a numpy array"
    )


def _from_pillow(picture: Image.Image, to_srgb: bool) -> np.ndarray:
    check_pixels(*picture.size)
    if not picture.width * picture.height:
        raise ImageError(f"a Pillow image of {picture.width} x {picture.height} pixels")
    try:
        picture.load()
        transform = icc.find_transform(picture.info.get("icc_profile"), picture.mode) if to_srgb else None
        array = icc.convert(pixels.to_rgb(picture, transform is not None), transform, None)
    except Exception as error:  # what a lazily opened, broken file does to its decoder
        raise ImageError(f"a Pillow image that cannot be read: {' '.join(str(error).split())[:120]}") from None
    return pixels.upright(array, orientation(picture.info.get("exif"), picture.info.get("xmp")))


def _from_array(array: np.ndarray) -> np.ndarray:
    got = f"got an array {list(array.shape)} of {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = "; move the channels last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{got}, expected {_EXPECTED}{hint}")
    if not array.size:
        raise ImageError(f"{got}, which has no pixels")
    check_pixels(array.shape[1], array.shape[0])
    array = _to_uint8(array, got)
    if array.ndim == 2 or array.shape[2] == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if array.shape[2] == 4:
        return pixels.to_rgb(Image.fromarray(np.ascontiguousarray(array)))
    return np.array(array, order="C")


def _to_uint8(array: np.ndarray, got: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.rint(array / 257.0).astype(np.uint8)
    if array.dtype.kind != "f":
        raise ImageError(f"{got}, expected {_EXPECTED}")
    if not np.isfinite(array).all():
        raise ImageError(f"{got} with NaN or infinite values")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        hint = "; use uint8 for 0 to 255" if low >= 0 and 1 < high <= 255 else ""
        raise ImageError(f"{got} with values from {low:g} to {high:g}, expected floats from 0 to 1{hint}")
    return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
