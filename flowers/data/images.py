"""The one decoder of training, evaluation and prediction: a picture to RGB uint8, or the reason why there is none.

Whatever the file is called, its content decides. JPEGs take the fast way: libjpeg-turbo through torchvision.io, or,
where the picture is at least twice as large as needed, libjpeg's reduced scales through Pillow. All else, and JPEGs
where torchvision.io is missing or gives up, goes through Pillow. At full scale both ways give the same pixels within 2
of 255. Seen through the evaluation view, a reduced picture is a little sharper than a full one, on average by 2 to 3
of 255; that moves EfficientNet-Lite0's features less than the choice between bilinear and bicubic does.

Every failure is one ``ImageError`` with a short reason: nothing waits for a FIFO, and no picture is decoded before
its header has told how much it will take (``flowers.data.formats.limits`` has the limit of pixels, of which some kinds
get a share, and the ceiling; the modules beside it know the formats). Safe to call from many threads; the decoders
release the GIL.

Rules, by what people meet: ``flowers.data.pixels`` for grey of more than 8 bits, CMYK and transparency;
``flowers.data.formats.icc`` for colour profiles; ``flowers.data.formats.tiff`` for files that begin with a preview;
``flowers.data.formats.jpeg`` for what counts as damaged. A picture that is damaged but decodes is given, together with
what is wrong with it.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from flowers.data import pixels
from flowers.data.file_bytes import read_bytes
from flowers.data.formats import animations, bitmap, boxes, icc, jpeg2000, library_words, png, tiff
from flowers.data.formats.jpeg import JpegDecoder
from flowers.data.formats.limits import Prepared, broken, check_pixels, check_size, room_for
from flowers.data.formats.names import identify, refusal
from flowers.data.formats.tiff import orientation
from flowers.errors import ImageError

_EXPECTED = "[H, W], [H, W, 3] or [H, W, 4] of uint8, uint16 or float from 0 to 1"

Image.init()
Image.MAX_IMAGE_PIXELS = None  # Pillow's own check comes with warnings on stderr; ours takes its place
warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on broken files; the reason below says what matters
with contextlib.suppress(ImportError):
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # many pictures are decoded side by side already


class Decoded(NamedTuple):
    """A picture, and what is wrong with its file."""

    image: np.ndarray
    """uint8 [H, W, 3], RGB, C-contiguous and writable; EXIF orientation applied, transparency laid on white."""
    damage: str | None
    """What is missing or wrong, in one line, although the file decodes; None of a sound file."""


def read_image(
    source: str | os.PathLike | bytes,
    *,
    min_short_side: int | None = None,
    to_srgb: bool = False,
) -> np.ndarray:
    """Decode one picture, upright, as a person would see it on white paper, damaged or not.

    Takes and raises what ``decode_image`` does, and returns the pixels alone.
    """
    return decode_image(source, min_short_side=min_short_side, to_srgb=to_srgb).image


def decode_image(
    source: str | os.PathLike | bytes,
    *,
    min_short_side: int | None = None,
    to_srgb: bool = False,
) -> Decoded:
    """Decode one picture, upright, as a person would see it on white paper.

    Of an animation or a file of many pages it is the first full one.

    Args:
        source: a path, or the bytes of an image file.
        min_short_side: pixels that the short side must keep; a larger JPEG may then be decoded at 1/2, 1/4 or 1/8
            of its size, which is faster and lets huge ones through the limit of pixels.
        to_srgb: convert the colours of a file whose profile is another one, such as Display P3, Adobe RGB or one of
            CMYK; a larger picture is shrunk to ``min_short_side`` first. Else profiles are not looked at.

    Raises:
        ImageError: the short reason, one line, without the path: "truncated JPEG", "zero bytes", "not an image",
            "no permission", "file not found", "too many pixels (12345 x 67890)", ...
    """
    if isinstance(source, bytes):
        source = bytearray(source)  # torch warns of memory that it could not write to
    data = source if isinstance(source, bytearray) else read_bytes(source)
    if not data:
        raise ImageError("zero bytes")
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return Decoded(*JpegDecoder(data, to_srgb).decode(min_short_side))
        return _decode_other(data, min_short_side, to_srgb)
    except MemoryError:
        raise ImageError("not enough memory") from None


def is_one_picture(source: object) -> bool:
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


_PREPARE: dict[str, Callable[[bytearray], Prepared | None]] = {
    "PNG": png.prepare,
    "GIF": animations.first_of_gif,
    "TIFF": tiff.prepare,
    "WEBP": animations.check_webp,
    "BMP": bitmap.check_bmp,
    "PPM": bitmap.check_ppm,
    "JPEG2000": jpeg2000.check,
    "AVIF": boxes.check_heif,
    "HEIF": boxes.check_heif,
    "JXL": boxes.check_jxl,
}


def _decode_other(data: bytearray, min_short_side: int | None, to_srgb: bool) -> Decoded:
    kind = identify(data)
    if kind is None:
        raise ImageError(refusal(data))
    if kind not in Image.OPEN and not (kind in _PLUGINS and _PLUGINS[kind]()):
        raise ImageError(_missing_decoder(kind))
    prepared = _PREPARE[kind](data) or Prepared(data)
    picture = _open(prepared.data, kind)
    picture.info |= prepared.info
    check_pixels(*picture.size, kind)
    if kind in ("WEBP", "AVIF") and not any(data[-512:]):
        raise ImageError(f"truncated {kind}")  # a copy that was not finished: the rest of the file is zeros
    array, said = _load(picture, kind, min_short_side, to_srgb)
    # In this order: TIFFs are turned as they are loaded, and JPEG XL but for files that were made of a JPEG.
    is_turned = kind == "TIFF" or (kind == "JXL" and not picture.jpeg)
    turned = 1 if is_turned else orientation(picture.info.get("exif"), picture.info.get("xmp"))
    return Decoded(pixels.upright(array, turned), prepared.damage or said)


def _open(data: bytes | bytearray, kind: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=[kind])
    except MemoryError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"truncated or broken {kind}") from None
    except Exception as error:
        if kind == "JXL":
            raise ImageError("truncated or broken JXL") from None  # its reader only says how to build it in debug mode
        cut = kind == "WEBP" and len(data) < int.from_bytes(data[4:8], "little") + 8
        raise broken(kind, "truncated" if cut else error) from None


def _load(picture: Image.Image, kind: str, min_short_side: int | None, to_srgb: bool) -> tuple[np.ndarray, str | None]:
    """Decode with Pillow; also what libtiff says of a file that it decodes all the same."""
    errors: list[str] = []
    try:
        with room_for(*picture.size), library_words.libtiff() as errors:
            picture.load()
            transform = icc.find_transform(picture.info.get("icc_profile"), picture.mode) if to_srgb else None
            array = icc.convert(pixels.to_rgb(picture, transform is not None), transform, min_short_side)
            return array, f"part of the picture is damaged: {errors[0]}" if errors else None
    except MemoryError:
        raise
    except Exception as error:
        raise broken(kind, errors[0] if errors else error) from None


def _add_heif() -> bool:
    """Let Pillow open HEIC, if the extra is installed; imported with the first such file."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False)
    return True


def _add_jxl() -> bool:
    """Let Pillow open JPEG XL, if the extra is installed."""
    try:
        from pillow_jxl import JpegXLImagePlugin
    except ImportError:
        return False
    JpegXLImagePlugin.DECODE_THREADS = 0  # many pictures are decoded side by side already
    return True


_PLUGINS: dict[str, Callable[[], bool]] = {"HEIF": _add_heif, "JXL": _add_jxl}
_EXTRAS = {"HEIF": ("HEIC", "heif"), "JXL": ("JPEG XL", "jxl")}


def _missing_decoder(kind: str) -> str:
    if kind in _EXTRAS:
        name, extra = _EXTRAS[kind]
        return f"{name} needs the extra {extra}: pip install flowers[{extra}]"
    return f"{kind} needs a newer Pillow, or one that was built with it"


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
    if array.dtype.newbyteorder("=") == np.uint16:  # 16-bit files often hold the other order
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
