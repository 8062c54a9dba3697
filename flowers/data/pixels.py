"""What the pixels of each of Pillow's modes mean in 8-bit RGB: scaled, not clipped; on white; upright.

Grey of more than 8 bits, by one rule: black is 0 or the lowest value, if that is less; white is the value that the
format or the file gives for it, else the highest value that is there, and at least 255 among integers and 1 among
floats. So the same numbers give the same picture in each type, and a slightly larger number a slightly darker one.

- PNG, PPM and JPEG 2000 give white: the greatest value of their depth. 65535 of 16 bits becomes 255, however dark the
  picture is.
- TIFF may give it: MaxSampleValue, SMaxSampleValue, or fewer than 16 bits a sample. A greater value that is there
  shows that the tag is wrong. WhiteIsZero is turned round. NaN is black.

Colour of 16 bits a channel comes from Pillow as the upper 8 bits. LAB is converted to sRGB, CMYK by the plain formula
where no profile is applied (``flowers.data.formats.icc``).
Only Adobe's programs store no ink as 255, and mark it. A CMYK JPEG without the mark is taken as the standard says,
unless much more of it would then be under more ink than paper holds than the other way round.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageChops
from torch.nn import functional

# Tags of TIFF
_BITS, _COLOUR, _SAMPLE_FORMAT = 258, 262, 339
_LOWEST, _HIGHEST, _SIGNED_LOWEST, _SIGNED_HIGHEST = 280, 281, 340, 341
_UNSIGNED, _WHITE_IS_ZERO = (1,), 0
_MOST_INK = 867
"""Of 4 x 255: 340%, above which presses smear."""
_BLOCK_PIXELS = 1 << 16  # so that a block stays in the cache


def to_rgb(picture: Image.Image, keep_cmyk: bool = False) -> np.ndarray:
    """Convert a loaded Pillow image of any mode.

    Args:
        keep_cmyk: give the four inks of a CMYK picture instead, 0 for no ink, to be converted by a colour profile.

    Returns:
        uint8 [H, W, 3], or [H, W, 4] of inks; C-contiguous and writable; not yet turned by EXIF.
    """
    mode = picture.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _deep_grey(picture)
    if mode == "CMYK" and picture.format in ("JPEG", "MPO") and "adobe" not in picture.info:
        picture = _by_ink(picture)
    if mode == "CMYK" and keep_cmyk:
        return np.array(picture)
    if mode == "La":
        picture = picture.convert("LA")
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        picture = white
    return np.array(picture.convert("RGB") if picture.mode != "RGB" else picture)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and flip as EXIF says.

    Args:
        array: [H, W, 3] as it is stored.
        orientation: 1 to 8, as in the EXIF 2.3 standard, tag 0x0112.

    Returns:
        C-contiguous [H, W, 3], or [W, H, 3] for 5 to 8.
    """
    is_transposed, flipped = turns(orientation)
    if is_transposed:
        array = array.transpose(1, 0, 2)
    for axis in flipped:
        array = np.flip(array, axis)
    return np.ascontiguousarray(array)


def turns(orientation: int) -> tuple[bool, tuple[int, ...]]:
    """What makes a picture upright: first whether rows become columns, then the axes that are flipped, 0 for rows."""
    axes = ((0, (3, 4, 7, 8)), (1, (2, 3, 6, 7)))
    return orientation >= 5, tuple(axis for axis, orientations in axes if orientation in orientations)


def shrink(array: np.ndarray, short_side: int) -> np.ndarray:
    """Bring the short side of a uint8 [H, W, C] picture down to ``short_side``, antialiased, if it is longer."""
    short = min(array.shape[:2])
    if short <= short_side:
        return array
    size = [round(length * short_side / short) for length in array.shape[:2]]
    image = torch.from_numpy(array)[None].permute(0, 3, 1, 2)
    shrunk = functional.interpolate(image, size, mode="bicubic", antialias=True)
    return shrunk[0].permute(1, 2, 0).contiguous().numpy()


def _deep_grey(picture: Image.Image) -> np.ndarray:
    grey, tags = np.asarray(picture), getattr(picture, "tag_v2", {})
    if picture.mode == "I" and tags.get(_SAMPLE_FORMAT) == _UNSIGNED:
        grey = grey.view(np.uint32)
    if picture.mode != "F" and (picture.format in ("PNG", "PPM", "JPEG2000") or (not tags and picture.mode != "I")):
        black, white = 0.0, 65535.0
    else:
        black, white = _black_and_white(grey, tags, picture.mode)
    scaled = _stretch(grey, black, white)
    if tags.get(_COLOUR) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        scaled[grey == clear] = 255
    return np.repeat(scaled[:, :, None], 3, axis=2)


def _black_and_white(grey: np.ndarray, tags: dict, mode: str) -> tuple[float, float]:
    """The values that become 0 and 255: those that a TIFF's tags give, if any, and what its pixels show.

    Args:
        grey: [H, W] of any type.
        tags: Pillow's ``tag_v2``.
        mode: Pillow's mode of the picture.
    """
    is_float = grey.dtype.kind == "f"
    finite = np.isfinite(grey)
    if not finite.any():
        return 0, 1
    low = float(np.min(grey, where=finite, initial=np.inf)) if is_float else float(grey.min())
    high = float(np.max(grey, where=finite, initial=-np.inf)) if is_float else float(grey.max())
    black = _first_number(tags, _SIGNED_LOWEST, _LOWEST)
    white = _first_number(tags, _SIGNED_HIGHEST, _HIGHEST)
    bits = _first_number(tags, _BITS)
    if white is None and mode.startswith("I;16") and bits is not None and bits < 16:
        white = 2**bits - 1
    if white is None:
        white = 1.0 if is_float else 255.0
    black, white = min(0.0 if black is None else black, low), max(white, high)
    return black, white if white > black else black + 1


def _first_number(tags: dict, *names: int) -> float | None:
    """The first of some tags that holds a finite number, the first of its values."""
    for name in names:
        value = tags.get(name)
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    return None


def _by_ink(picture: Image.Image) -> Image.Image:
    """A CMYK picture of which Pillow assumed that no ink is 255, the other way round if there is no better evidence."""
    stored = 255 - np.asarray(picture)  # undoes what Pillow did
    small = stored[:: max(1, stored.shape[0] // 256), :: max(1, stored.shape[1] // 256)].astype(np.int32)
    total = small.sum(axis=2)
    too_much, inverted_too_much = (total > _MOST_INK).mean(), (4 * 255 - total > _MOST_INK).mean()
    all_black = (small[:, :, 3] == 255).all()  # stored inverted by a program that uses no black ink
    if too_much > inverted_too_much or (too_much == inverted_too_much and all_black):
        return picture
    return ImageChops.invert(picture)


def _stretch(grey: np.ndarray, black: float, white: float) -> np.ndarray:
    """Scale black..white to 0..255, a block of rows at a time; NaN to 0.

    Args:
        grey: [H, W] of any type.

    Returns:
        uint8 [H, W]
    """
    scaled = np.empty(grey.shape, np.uint8)
    rows = max(1, _BLOCK_PIXELS // max(1, grey.shape[1]))
    for start in range(0, len(grey), rows):
        block = grey[start : start + rows].astype(np.float64)
        block -= black
        block *= 255 / (white - black)
        if grey.dtype.kind == "f":
            np.nan_to_num(block, copy=False, nan=0, posinf=255, neginf=0)
        scaled[start : start + rows] = np.rint(np.clip(block, 0, 255, out=block), out=block)
    return scaled
