"""The one decoder of training, evaluation and prediction: a file to RGB uint8, or the reason why there is no picture.

Whatever the file is called, its content decides. JPEGs take the fast way: libjpeg-turbo through torchvision.io, or,
where the picture is at least twice as large as needed, libjpeg's reduced scales through Pillow. All else, and JPEGs
where torchvision.io is missing or gives up, goes through Pillow. At full scale both ways give the same pixels within 2
of 255. Seen through the evaluation view, a reduced picture is a little sharper than a full one, on average by 2 to 3
of 255; that moves EfficientNet-Lite0's features less than the choice between bilinear and bicubic does.

Every failure is one ``ImageError`` with a short reason: nothing waits for a FIFO, and no picture is decoded before
its header has told how much memory it will take. Safe to call from many threads; the decoders release the GIL.

A JPEG that is damaged in its middle but ends as it should is decoded as far as it goes, as everywhere: libjpeg
only remarks on it, and so it does on many good photos.
"""

import contextlib
import errno
import importlib.util
import io
import os
import stat
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, JpegImagePlugin

from flowers.data import pixels
from flowers.errors import ImageError

_RGB = 3  # torchvision.io.ImageReadMode


def _find_jpeg_decoder() -> Callable[[torch.Tensor, int, bool], torch.Tensor] | None:
    """The operator under torchvision.io.decode_jpeg: bytes, mode, whether to apply the orientation.

    Its library is loaded by itself, because importing torchvision takes more than a second of every start. Without
    it, or once torchvision drops its decoders (deprecated since 0.29), Pillow does the same at two thirds of the speed.
    """
    package = importlib.util.find_spec("torchvision")
    for folder in (package and package.submodule_search_locations) or ():
        for library in Path(folder).glob("image*.so"):
            with contextlib.suppress(OSError, RuntimeError, AttributeError):
                torch.ops.load_library(library)
                return torch.ops.image.decode_jpeg
    return None


decode_jpeg = _find_jpeg_decoder()

MAX_PIXELS = 100_000_000
"""Pictures of more pixels than this after decoding are refused. One of this size needs 0.3 GB of memory on its way as a
JPEG, 1 to 2 GB in other formats."""

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused before they are read."""

LARGE_PIXELS = 16_000_000
"""Of pictures above this only two are decoded at a time, so that many threads do not add them up in memory."""

MAX_JPEG_SCANS = 100
"""A progressive JPEG of more scans was made to waste time; cameras and programs write about ten."""

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".avif"}
    | {".jp2", ".ppm", ".pgm", ".pnm", ".heic", ".heif"}
)
"""What makes a file an input of a scan, in any case. HEIC is here to get an error that says what to do about it."""

# Not all that Pillow knows: some formats start other programs (EPS), some hold no picture of their own.
_FORMATS = ("PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
_SIGNATURES = {
    b"\x89PNG": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"RIFF": "WEBP", b"\0\0\0\x0cjP": "JPEG2000",
}  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_END_OF_JPEG = b"\xff\xd9"
_START_OF_SCAN = b"\xff\xda"

Image.init()
_KNOWN_FORMATS = [name for name in _FORMATS if name in Image.OPEN]
Image.MAX_IMAGE_PIXELS = None  # Pillow's own check comes with warnings on stderr; ours takes its place
warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on broken files; the reason below says what matters
with contextlib.suppress(ImportError):
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # many pictures are decoded side by side already

_large_pictures = threading.BoundedSemaphore(2)


def read_image(
    source: str | os.PathLike | bytes, *, min_short_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode one picture, upright, as a person would see it on white paper.

    Of an animation or a file of many pages it is the first one. See ``flowers.data.pixels`` for what becomes of
    16-bit, floating point and transparent pictures.

    Args:
        source: a path, or the bytes of an image file.
        min_short_side: pixels that the short side must keep; a larger JPEG may then be decoded at 1/2, 1/4 or 1/8
            of its size, which is faster and lets huge ones through ``max_pixels``.
        max_pixels: refuse pictures that would have more pixels than this after decoding.

    Returns:
        uint8 [H, W, 3], RGB, C-contiguous and writable; EXIF orientation applied, transparency laid on white.

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
            return _read_jpeg(data, min_short_side, max_pixels)
        return _read_other(data, max_pixels)
    except MemoryError:
        raise ImageError("not enough memory") from None


def read_bytes(path: str | bytes | os.PathLike) -> bytearray:
    """All bytes of a regular file; anything else is refused without waiting for it.

    Raises:
        ImageError: the short reason: "file not found", "no permission", "a folder, not a file", ...
    """
    try:
        # Opening a FIFO that nobody writes to would wait for ever, without O_NONBLOCK.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if stat.S_ISDIR(status.st_mode):
                raise ImageError("a folder, not a file")
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not a regular file")
            check_size(status.st_size)
            data = bytearray(status.st_size)
            done = 0
            with memoryview(data) as view:
                while done < len(data) and (count := os.readv(file, [view[done:]])):
                    done += count
            del data[done:]  # of a file that shrank meanwhile
            return data
        finally:
            os.close(file)
    except ValueError:  # a NUL in the name
        raise ImageError("file not found") from None
    except OSError as error:
        raise ImageError(_os_reason(error)) from None


def check_size(size_bytes: int) -> None:
    """Refuse a file before it is read.

    Raises:
        ImageError: it is larger than any photo.
    """
    if size_bytes > MAX_FILE_BYTES:
        raise ImageError(f"too large a file ({size_bytes / (1 << 30):.1f} GiB)")


def _os_reason(error: OSError) -> str:
    reasons = {
        errno.ENOENT: "file not found",
        errno.ENOTDIR: "file not found",
        errno.EACCES: "no permission",
        errno.EPERM: "no permission",
        errno.ENXIO: "not a regular file",
        errno.ELOOP: "a link to itself",
    }
    return reasons.get(error.errno or 0, (error.strerror or type(error).__name__).lower())


def _read_jpeg(data: bytearray, min_short_side: int | None, max_pixels: int) -> np.ndarray:
    try:
        header = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(_reason("JPEG", error) if _END_OF_JPEG in data else "truncated JPEG") from None
    # Looked for from the end, so that in a whole file it is found at once. libjpeg would fill up with grey.
    if data.rfind(_END_OF_JPEG, header.fp.tell()) < 0:
        raise ImageError("truncated JPEG")
    full, start = header.size, header.fp.tell()
    if full[0] * full[1] > max_pixels and ("progressive" in header.info or data.find(_START_OF_SCAN, start) > 0):
        # All coefficients of a file of several scans are kept in memory, whatever the scale that it is decoded at.
        raise ImageError(_too_many_pixels(full))
    if "progressive" in header.info and data.count(_START_OF_SCAN, start) > MAX_JPEG_SCANS:
        raise ImageError(f"broken JPEG: more than {MAX_JPEG_SCANS} scans")
    width, height = full
    if min_short_side is not None and (drafted := header.draft(None, (min_short_side, min_short_side))):
        # The last row and column may stand for a part only of what the others do; without them the scale is exact.
        width, height = map(int, drafted[1][2:])
    if header.size[0] * header.size[1] > max_pixels:
        raise ImageError(_too_many_pixels(full))
    orientation = pixels.orientation(header)
    if decode_jpeg is not None and header.size == full and header.mode in ("RGB", "L"):
        with contextlib.suppress(RuntimeError), _turn(full):  # Pillow, below, knows the kind or finds the reason
            decoded = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), _RGB, False)
            return pixels.upright(decoded.permute(1, 2, 0).numpy(), orientation)
    return pixels.upright(_load(header, "JPEG")[:height, :width], orientation)


def _read_other(data: bytearray, max_pixels: int) -> np.ndarray:
    try:
        picture = Image.open(io.BytesIO(data), formats=_KNOWN_FORMATS)
    except MemoryError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(_unknown_reason(data)) from None
    except Exception as error:
        kind = _kind(data) or "image"
        cut = kind == "WEBP" and len(data) < int.from_bytes(data[4:8], "little") + 8
        raise ImageError(f"truncated {kind}" if cut else _reason(kind, error)) from None
    kind = picture.format or "image"
    if picture.size[0] * picture.size[1] > max_pixels:
        raise ImageError(_too_many_pixels(picture.size))
    if kind == "PNG":
        _check_png(data)
    elif kind in ("WEBP", "AVIF") and not any(data[-512:]):
        raise ImageError(f"truncated {kind}")  # a copy that was not finished: the rest of the file is zeros
    array = _load(picture, kind)
    return pixels.upright(array, pixels.orientation(picture))  # in this order: TIFFs are turned as they are loaded


def _load(picture: Image.Image, kind: str) -> np.ndarray:
    """Decode with Pillow."""
    try:
        with _turn(picture.size):
            picture.load()
            return pixels.to_rgb(picture)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(_reason(kind, error)) from None


def _turn(size: tuple[int, int]) -> contextlib.AbstractContextManager:
    """Small pictures go ahead, large ones wait until there is room."""
    return _large_pictures if size[0] * size[1] > LARGE_PIXELS else contextlib.nullcontext()


def _too_many_pixels(size: tuple[int, int]) -> str:
    return f"too many pixels ({size[0]} x {size[1]})"


def _check_png(data: bytearray) -> None:
    """Compare the checksums of the pixel data, which Pillow does not: zeros decode to a picture, too."""
    start = 8
    with memoryview(data) as view:
        while start + 12 <= len(data):
            kind, end = bytes(view[start + 4 : start + 8]), start + 8 + int.from_bytes(view[start : start + 4])
            if kind == b"IEND" or end + 4 > len(data):
                return
            if kind in (b"PLTE", b"IDAT") and zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4]):
                raise ImageError("broken PNG: wrong checksum")
            start = end + 4


def _kind(data: bytearray) -> str | None:
    """Format of a file, by its first bytes."""
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    return next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)


def _reason(kind: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"truncated {kind}"
    return f"broken {kind}: {text[:120]}" if text else f"broken {kind}"


def _unknown_reason(data: bytearray) -> str:
    if data[4:8] == b"ftyp" and bytes(data[8:12]) in _HEIF_BRANDS:
        return "HEIC is not supported: convert it to JPEG"
    kind = _kind(data)
    if kind is not None and kind not in _KNOWN_FORMATS:
        return f"{kind} needs a newer Pillow"
    return "not an image" if kind is None else f"truncated or broken {kind}"
