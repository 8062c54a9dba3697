"""Small JPEGs of pictures, for pages."""

import io
import os

import numpy as np
from PIL import Image

from flowers.data.images import read_image


def thumbnail(source: str | os.PathLike | bytes, side: int = 160, quality: int = 75) -> bytes:
    """The middle square of a picture, as a JPEG.

    Args:
        source: a path, or the bytes of an image file.
        side: pixels.

    Raises:
        ImageError: there is no picture; the short reason.
    """
    picture = Image.fromarray(read_image(source, min_short_side=side))
    short = min(picture.size)
    left, top = ((length - short) / 2 for length in picture.size)
    box = (left, top, left + short, top + short)
    return encode_jpeg(np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box)), quality)


def encode_jpeg(image: np.ndarray, quality: int = 75) -> bytes:
    """A picture as a JPEG.

    Args:
        image: uint8 [H, W, 3].
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
