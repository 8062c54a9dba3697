"""JPEG: what the segments of a file say: its size, its metadata, and whether all scans are there."""

import itertools
from dataclasses import dataclass, field

from flowers.errors import ImageError

MAX_SCANS = 100
"""A progressive JPEG of more scans was made to waste time; cameras and programs write about ten."""
MAX_SEGMENTS = 20_000
MAX_METADATA_BYTES = 64 << 20
"""Before the picture; depth maps inside XMP take some 10 MB."""

CUT = "truncated JPEG"

_START_OF_SCAN = b"\xff\xda"
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8))


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
        may_be_rgb: a program says, or seems to say, that three components are not YCbCr.
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
    may_be_rgb: bool = False
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
        elif marker == 0xEE and segment.startswith(b"Adobe"):
            self.may_be_rgb |= segment[11:12] == b"\0"


def read_header(data: bytes | bytearray) -> Header:
    """Walk over the segments before the first scan.

    Raises:
        ImageError: it is cut, broken, or holds more than any program writes.
    """
    at, metadata_bytes, header = 2, 0, Header()
    for _ in range(MAX_SEGMENTS):
        at = data.find(b"\xff", at, at + MAX_SEGMENTS)
        if at < 0 or at + 4 > len(data):
            raise ImageError(CUT if at + MAX_SEGMENTS >= len(data) else "broken JPEG: no marker found")
        marker = data[at + 1]
        if marker in (0, 0xFF) or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD8, 0xD9):
            raise ImageError("broken JPEG: it ends before the picture begins")
        start, end = at + 4, at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if end > len(data):
            raise ImageError(CUT)
        if marker == 0xDA:
            if not header.width:
                raise ImageError("broken JPEG: a scan without a frame")
            header.single_scan = not header.progressive and data[start] == header.components
            header.may_be_rgb |= data[start + 1 : start + 7 : 2] == b"RGB"
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
            if marker in (0xE1, 0xE2, 0xEE):
                header.keep(marker, bytes(data[start:end]))
        at = end
        if metadata_bytes > MAX_METADATA_BYTES:
            raise ImageError(f"broken JPEG: more than {MAX_METADATA_BYTES >> 20} MiB of metadata")
    raise ImageError(f"broken JPEG: more than {MAX_SEGMENTS} segments")


def has_all_scans(data: bytes | bytearray, header: Header, end: int) -> bool:
    """True if every coefficient of every component came, down to its last bit.

    Args:
        end: offset of what follows the scans.

    Raises:
        ImageError: there are too many.
    """
    lowest_bit: dict[tuple[int, int], int] = {}
    scans, first_component = 0, 0
    at = data.rfind(_START_OF_SCAN, 0, header.start)
    while 0 <= at < end and at + 5 < len(data):
        tail = at + 5 + 2 * data[at + 4]
        if data[at + 4] > 4 or tail + 3 > len(data):
            break
        scans += 1
        if scans > MAX_SCANS:
            raise ImageError(f"broken JPEG: more than {MAX_SCANS} scans")
        components = data[at + 5 : tail : 2]
        first, last, bits = data[tail : tail + 3] if header.progressive else (0, 63, 0)
        for component, place in itertools.product(components, range(first, min(last, 63) + 1)):
            lowest_bit[component, place] = bits & 15
        if scans == 1 and components:
            first_component = components[0]
        at = data.find(_START_OF_SCAN, tail)
    seen = {component for component, _ in lowest_bit}
    whole = len(seen) == header.components and all((first_component, place) in lowest_bit for place in range(64))
    return whole and not any(lowest_bit.values())
