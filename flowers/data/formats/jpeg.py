"""JPEG: a walk over its header, the decoding, and how to tell that a picture is not all there.

Decoding takes one of two ways. At full scale it is libjpeg-turbo through torchvision.io; where the picture is at least
twice as large as needed, and where torchvision.io is missing or gives up, libjpeg's reduced scales through Pillow.

libjpeg fills what is missing with grey and goes on. So the data are compared with the picture: a file of one scan is
decoded with its end mark hidden, so that a decoder that needs more data says so; one of several scans must have them
all, down to the last bit of every coefficient.
"""

import contextlib
import importlib.util
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import JpegImagePlugin

from flowers.data import pixels
from flowers.data.formats import icc, library_words
from flowers.data.formats.exif import orientation
from flowers.data.formats.limits import allowed_pixels, broken, check_pixels, room_for, too_many_pixels
from flowers.errors import ImageError

MAX_SCANS = 100
"""A progressive JPEG of more scans was made to waste time; cameras and programs write about ten."""
MAX_SEGMENTS = 20_000
MAX_METADATA_BYTES = 64 << 20
"""Before the picture; depth maps inside XMP take some 10 MB."""

_RGB = 3  # torchvision.io.ImageReadMode
_END = b"\xff\xd9"
_START_OF_SCAN = b"\xff\xda"
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8))
_FILLER = bytes(8)  # libjpeg looks up to 8 bytes ahead
_CUT = "truncated JPEG"


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


@dataclass
class Header:
    """All before the first scan's data.

    Attributes:
        width: pixels.
        height: pixels.
        components: channels.
        progressive: one of the progressive processes.
        single_scan: the first scan holds all of the picture.
        start: offset of the first scan's data.
        exif: EXIF's block, its parts joined; empty without one.
        xmp: the XMP packet; empty without one.
        several: another picture follows, as Multi-Picture Format says.
    """

    width: int = 0
    height: int = 0
    components: int = 0
    progressive: bool = False
    single_scan: bool = False
    start: int = 0
    exif: bytearray = field(default_factory=bytearray)
    xmp: bytes = b""
    several: bool = False
    _profile: dict[int, bytes] = field(default_factory=dict)

    @property
    def icc_profile(self) -> bytes:
        """Its parts joined; empty without one."""
        return b"".join(part for _, part in sorted(self._profile.items()))

    def keep(self, marker: int, segment: bytes) -> None:
        """Take what matters to the picture from a segment of metadata."""
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            self.exif += segment[6:]
        elif marker == 0xE1 and segment.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            self.xmp = segment[29:]
        elif marker == 0xE2 and segment.startswith(b"ICC_PROFILE\0") and len(segment) > 14:
            self._profile[segment[12]] = segment[14:]  # its number comes first
        elif marker == 0xE2 and segment.startswith(b"MPF\0"):
            self.several = True


class _Scan(NamedTuple):
    components: bytes
    first: int
    last: int
    """Coefficients, 0 to 63."""
    bit: int
    """Of the coefficients, the lowest one that is there after this scan."""


class _Image(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Leave the resolution alone: Pillow reads all of EXIF for it, see ``flowers.data.formats.exif``."""


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
            raise ImageError(_CUT) from None
        self._end = self._find_end(data)
        self._scans = [] if self.header.single_scan else self._read_scans()
        mode = {1: "L", 4: "CMYK"}.get(self.header.components, "RGB")
        self._transform = icc.find_transform(self.header.icc_profile, mode) if to_srgb else None

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
        size = (header.width, header.height)
        if not header.single_scan:
            # All coefficients of a file of several scans are kept in memory, whatever the scale that it is decoded at.
            check_pixels(*size)
        if -(-size[0] // scale) * -(-size[1] // scale) > allowed_pixels():
            raise too_many_pixels(*size)
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
            raise ImageError(_CUT) from None

    def _unread_at(self, scale: int) -> bytes | None:
        """Decode a file of one scan again, for its damage alone: what was left over, None if it ends early."""
        if self.header.single_scan:
            with contextlib.suppress(_NeedsMoreError, ImageError):
                return self._load(scale, self._end, _FILLER)[1]
        return None

    def _missing(self, unread: bytes | None) -> str | None:
        """What the data lack, in words, or None."""
        if not self.header.single_scan:
            return None if self._is_complete() else "part of the picture is missing: not all scans are there"
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
            raise ImageError(_CUT) from None
        same = all(np.array_equal(tried[0], other) for other in tried[1:])
        if not same or not (self.header.single_scan or self._is_complete()):
            raise ImageError(_CUT)
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

    def _read_scans(self) -> list[_Scan]:
        """Headers of all scans.

        Raises:
            ImageError: there are too many.
        """
        scans: list[_Scan] = []
        at = self.header.start
        stop = self._end if self._end >= 0 else len(self._data)
        at = self._data.rfind(_START_OF_SCAN, 0, at)
        while 0 <= at < stop and at + 5 < len(self._data):
            count = self._data[at + 4]
            tail = at + 5 + 2 * count
            if count > 4 or tail + 3 > len(self._data):
                break
            first, last, bits = self._data[tail : tail + 3]
            scans.append(_Scan(bytes(self._data[at + 5 : tail : 2]), first, last, bits & 15))
            if len(scans) > MAX_SCANS:
                raise ImageError(f"broken JPEG: more than {MAX_SCANS} scans")
            at = self._data.find(_START_OF_SCAN, tail)
        return scans

    def _is_complete(self) -> bool:
        """Tell that every coefficient of every component came, down to its last bit."""
        lowest: dict[tuple[int, int], int] = {}
        for scan in self._scans:
            last = min(scan.last, 63) if self.header.progressive else 63
            for component, place in itertools.product(scan.components, range(scan.first, last + 1)):
                lowest[component, place] = scan.bit if self.header.progressive else 0
        first = self._scans[0].components[0] if self._scans else 0
        seen = {component for component, _ in lowest}
        whole = len(seen) == self.header.components and all((first, place) in lowest for place in range(64))
        return whole and not any(lowest.values())


class _NeedsMoreError(Exception):
    """The data ended before the picture did."""


def _scale(size: tuple[int, int], min_short_side: int | None) -> int:
    """The largest of libjpeg's reductions that keeps the short side: 8, 4, 2 or 1."""
    if min_short_side is None:
        return 1
    return next((scale for scale in (8, 4, 2) if min(size) // scale >= min_short_side), 1)


def read_header(data: bytes | bytearray) -> Header:
    """Walk over the segments before the first scan.

    Raises:
        ImageError: it is cut, broken, or holds more than any program writes.
    """
    at, metadata_bytes, header = 2, 0, Header()
    for _ in range(MAX_SEGMENTS):
        at = data.find(b"\xff", at, at + MAX_SEGMENTS)
        if at < 0 or at + 4 > len(data):
            raise ImageError(_CUT if at + MAX_SEGMENTS >= len(data) else "broken JPEG: no marker found")
        marker = data[at + 1]
        if marker in (0, 0xFF) or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD8, 0xD9):
            raise ImageError("broken JPEG: it ends before the picture begins")
        start, end = at + 4, at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if end > len(data):
            raise ImageError(_CUT)
        if marker == 0xDA:
            if not header.width:
                raise ImageError("broken JPEG: a scan without a frame")
            header.single_scan = not header.progressive and data[start] == header.components
            header.start = end
            return header
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
            if header.width:
                raise ImageError("broken JPEG: two frames")
            header.height, header.width = (int.from_bytes(data[place : place + 2]) for place in (at + 5, at + 7))
            header.components, header.progressive = data[at + 9], marker in _PROGRESSIVE
            if not header.width * header.height:
                raise ImageError(f"broken JPEG: a picture of {header.width} x {header.height} pixels")
        elif marker >= 0xE0:
            metadata_bytes += end - start
            if marker in (0xE1, 0xE2):
                header.keep(marker, bytes(data[start:end]))
        at = end
        if metadata_bytes > MAX_METADATA_BYTES:
            raise ImageError(f"broken JPEG: more than {MAX_METADATA_BYTES >> 20} MiB of metadata")
    raise ImageError(f"broken JPEG: more than {MAX_SEGMENTS} segments")
