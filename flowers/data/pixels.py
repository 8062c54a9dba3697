"""What the pixels of each of Pillow's modes mean in 8-bit RGB: scaled, not clipped; on white; upright.

Grey of more than 8 bits:

- 16-bit integers are scaled by 1/257, so that 65535 becomes 255, whatever the picture's own brightest pixel.
- 32-bit integers and floats have no agreed white. Floats within 0..1 are scaled by 255. Other values are taken as
  8-bit ones if they lie within 0..255 and reach its upper half, as 16-bit ones if they do so for 0..65535;
  anything else is stretched, its least value to 0 and its greatest to 255. NaN is black.

Colour of 16 bits a channel comes from Pillow as the upper 8 bits. CMYK is converted by the plain formula, LAB to
sRGB. ICC profiles are not applied: the networks were trained without.
"""

import numpy as np
from PIL import Image, ImageChops

_ORIENTATION_TAG = 0x0112
_SAMPLE_FORMAT_TAG, _UNSIGNED = 339, (1,)
_BLOCK_PIXELS = 1 << 16  # so that a block stays in the cache


def to_rgb(picture: Image.Image) -> np.ndarray:
    """Convert a loaded Pillow image of any mode.

    Returns:
        uint8 [H, W, 3], C-contiguous and writable; not yet turned by EXIF.
    """
    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):  # "I": by older Pillows
        return _grey_to_rgb(_stretch(np.asarray(picture), 0, 65535))
    if mode in ("I", "F"):
        grey = np.asarray(picture)
        if mode == "I" and getattr(picture, "tag_v2", {}).get(_SAMPLE_FORMAT_TAG) == _UNSIGNED:
            grey = grey.view(np.uint32)
        return _grey_to_rgb(_stretch(grey, *_black_and_white(grey)))
    if mode == "CMYK" and picture.format in ("JPEG", "MPO") and "adobe" not in picture.info:
        picture = ImageChops.invert(picture)  # only Adobe stores no ink as 255 (libjpeg.txt), Pillow assumes it of all
    if mode == "La":
        picture = picture.convert("LA")
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        picture = white
    return np.array(picture.convert("RGB") if picture.mode != "RGB" else picture)


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; a broken EXIF block is no reason to lose the picture, and means 1."""
    try:
        value = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and flip as EXIF says.

    Args:
        array: [H, W, 3] as it is stored.
        orientation: 1 to 8, as in the EXIF 2.3 standard, tag 0x0112.

    Returns:
        C-contiguous [H, W, 3], or [W, H, 3] for 5 to 8.
    """
    if orientation >= 5:
        array = array.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _black_and_white(grey: np.ndarray) -> tuple[float, float]:
    """The values that become 0 and 255."""
    finite = np.isfinite(grey)
    if not finite.any():
        return 0, 1
    if grey.dtype.kind == "f":
        low = float(np.min(grey, where=finite, initial=np.inf))
        high = float(np.max(grey, where=finite, initial=-np.inf))
    else:
        low, high = float(grey.min()), float(grey.max())
    if low >= 0:
        if grey.dtype.kind == "f" and high <= 1:
            return 0, 1
        for white in (255, 65535):
            if white / 2 < high <= white:
                return 0, white
    return low, high if high > low else low + 1


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


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)
