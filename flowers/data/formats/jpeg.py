"""JPEG: the decoding, and how to tell that a picture is not all there.

Decoding takes one of two ways. At full scale it is libjpeg-turbo through torchvision.io; where the picture is at least
twice as large as needed, and where torchvision.io is missing or gives up, libjpeg's reduced scales through Pillow.

libjpeg fills what is missing with grey and goes on. So the data are compared with the picture: a file of one scan is
decoded with its end mark hidden, so that a decoder that needs more data says so; one of several scans must have them
all, down to the last bit of every coefficient.
"""

import contextlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import JpegImagePlugin

from flowers.data import pixels
from flowers.data.formats import icc, library_words
from flowers.data.formats.jpeg_header import CUT, has_all_scans, read_header
from flowers.data.formats.limits import broken, check_pixels, room_for
from flowers.data.formats.tiff import orientation
from flowers.errors import ImageError

_RGB = 3  # torchvision.io.ImageReadMode
_END = b"\xff\xd9"
_FILLER = bytes(8)  # libjpeg looks up to 8 bytes ahead


def _find_decoder() -> Callable[[torch.Tensor, int, bool], torch.Tensor] | None:
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


decode_jpeg = _find_decoder()


class _Image(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Leave the resolution alone: Pillow reads all of EXIF for it, see ``flowers.data.formats.tiff``."""


class _Source(io.RawIOBase):
    """A file from which Pillow reads ``data`` up to ``end``, and then ``tail``, without a copy of them all."""

    def __init__(self, data: bytes | bytearray, end: int, tail: bytes):
        self._view, self._tail, self._at = memoryview(data)[:end], tail, 0
        self._end = end

    def read(self, size: int = -1) -> bytes:
        start = self._at
        self._at = self._end + len(self._tail) if size < 0 else min(start + size, self._end + len(self._tail))
        body = bytes(self._view[start : self._at])
        if self._at > self._end:
            body += self._tail[max(0, start - self._end) : self._at - self._end]
        return body

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at


class JpegDecoder:
    """One file on its way.

    Args:
        data: the file's bytes.
        to_srgb: see ``flowers.data.images.decode_image``.

    Raises:
        ImageError: the header is broken.
    """

    def __init__(self, data: bytearray, to_srgb: bool = False):
        self._data = data
        try:
            self.header = read_header(data)
        except ImageError:
            if _END in data:
                raise
            raise ImageError(CUT) from None
        self._end = self._find_end(data)
        end = self._end if self._end >= 0 else len(data)
        self._is_whole = self.header.single_scan or has_all_scans(data, self.header, end)
        mode = {1: "L", 4: "CMYK"}.get(self.header.components, "RGB")
        self._transform = icc.find_transform(self.header.icc_profile, mode) if to_srgb else None

    @property
    def is_plain(self) -> bool:
        """Decoders agree what it shows: YCbCr or grey, in sRGB as far as anybody asks, in one scan that ends."""
        header = self.header
        is_known = header.components == 1 or (header.components == 3 and not header.may_be_rgb)
        return is_known and header.single_scan and self._end >= 0 and self._transform is None

    def _find_end(self, data: bytearray) -> int:
        """Offset of the end mark, -1 without one; of several pictures in one file that of the last may be found."""
        if self.header.single_scan and not self.header.several:
            end = data.rfind(_END, max(self.header.start, len(data) - 64))
            if end >= 0:
                return end  # the usual place; from the start it would take as long as a tenth of the decoding
        return data.find(_END, self.header.start)

    def decode(self, min_short_side: int | None) -> tuple[np.ndarray, str | None]:
        """Give the picture, upright, and what is wrong with it.

        Raises:
            ImageError: too large, too many scans, or damaged beyond use.
        """
        header = self.header
        array, damage = self._decode(_scale((header.width, header.height), min_short_side))
        array = icc.convert(array, self._transform, min_short_side)
        return pixels.upright(array, orientation(header.exif, header.xmp)), damage

    def _decode(self, scale: int) -> tuple[np.ndarray, str | None]:
        """The picture as it is stored, and what is wrong with it."""
        header = self.header
        # All coefficients of a file of several scans are kept in memory, whatever the scale that it is decoded at.
        check_pixels(header.width, header.height, scale=scale if header.single_scan else 1)
        if self._end < 0:
            return self._decode_without_end(scale)
        decoded = self._decode_with_torchvision() if scale == 1 else None
        if decoded is None:
            return self._decode_watched(scale)
        array, suspect = decoded
        return array, self._missing(self._unread_at(8)) if suspect or not header.single_scan else None

    def _decode_with_torchvision(self) -> tuple[np.ndarray, bool] | None:
        """Give the picture, and if it may be damaged; None where Pillow knows the kind, or finds the reason."""
        if decode_jpeg is None or self.header.components not in (1, 3):
            return None
        try:
            with room_for(self.header.width, self.header.height), library_words.LibjpegListener() as listener:
                decoded = decode_jpeg(torch.frombuffer(self._data, dtype=torch.uint8), _RGB, False)
        except RuntimeError:
            return None
        return decoded.permute(1, 2, 0).numpy(), listener.heard

    def _decode_watched(self, scale: int) -> tuple[np.ndarray, str | None]:
        """Decode with Pillow and look out for missing data on the way."""
        if self.header.single_scan:
            with contextlib.suppress(_NeedsMoreError):
                array, unread = self._load(scale, self._end, _FILLER)
                return array, self._missing(unread)
        try:
            return self._load(scale, self._end, _END)[0], self._missing(None)
        except _NeedsMoreError:
            raise ImageError(CUT) from None

    def _unread_at(self, scale: int) -> bytes | None:
        """Decode a file of one scan again, for its damage alone: what was left over, None if it ends early."""
        if self.header.single_scan:
            with contextlib.suppress(_NeedsMoreError, ImageError):
                return self._load(scale, self._end, _FILLER)[1]
        return None

    def _missing(self, unread: bytes | None) -> str | None:
        """What the data lack, in words, or None."""
        if not self.header.single_scan:
            return None if self._is_whole else "part of the picture is missing: not all scans are there"
        if unread is None:
            return "part of the picture is missing: its data end too early"
        return "part of the picture is damaged: its data do not fit its size" if unread.strip(unread[:1]) else None

    def _decode_without_end(self, scale: int) -> tuple[np.ndarray, str]:
        """Tell a whole picture whose end mark is missing from one that was cut: what follows then must not matter.

        Raises:
            ImageError: it was cut.
        """
        end = len(self._data.rstrip(b"\0"))  # a copy that was not finished is filled up with zeros
        if self._data[end - 1] == 0xFF:  # half a mark, or a byte of the picture, which a zero follows
            end += 1 if end < len(self._data) else -1
        try:
            tried = [self._load(scale, end, bytes([tail]) * 64 + _END)[0] for tail in (0, 0x55, 0xAA)]
        except (_NeedsMoreError, ImageError):
            raise ImageError(CUT) from None
        same = all(np.array_equal(tried[0], other) for other in tried[1:])
        if not (same and self._is_whole):
            raise ImageError(CUT)
        return tried[0], "the end mark of the file is missing"

    def _load(self, scale: int, end: int, tail: bytes) -> tuple[np.ndarray, bytes]:
        """Decode with Pillow.

        Returns:
            the picture as it is stored, and the data that were not needed, in steps of 1/32 of the file.

        Raises:
            _NeedsMoreError: the data end before the picture does.
            ImageError: the file is broken.
        """
        header = self.header
        try:
            picture = _Image(io.BytesIO(memoryview(self._data)[: header.start]))
            picture.fp = source = _Source(self._data, end, tail)
            picture.decodermaxblock = min(max((end - header.start) // 32, 2048), 1 << 16)
            if scale > 1:
                picture.draft(None, (header.width // scale, header.height // scale))
            with room_for(*picture.size):
                picture.load()
                array = pixels.to_rgb(picture, keep_cmyk=self._transform is not None)
        except MemoryError:
            raise
        except Exception as error:
            if "truncated" in str(error):
                raise _NeedsMoreError from None
            raise broken("JPEG", error) from None
        # The last row and column may stand for a part only of what the others do; without them the scale is exact.
        return array[: max(1, header.height // scale), : max(1, header.width // scale)], self._unread(
            source.tell(), end
        )

    def _unread(self, start: int, end: int) -> bytes:
        """Data up to the first end mark that the decoder did not ask for."""
        if start >= end:
            return b""
        first = self._data.find(_END, self.header.start, end)
        return bytes(self._data[start : first if first >= 0 else end])


class _NeedsMoreError(Exception):
    """The data ended before the picture did."""


def _scale(size: tuple[int, int], min_short_side: int | None) -> int:
    """The largest of libjpeg's reductions that keeps the short side: 8, 4, 2 or 1."""
    if min_short_side is None:
        return 1
    return next((scale for scale in (8, 4, 2) if min(size) // scale >= min_short_side), 1)
