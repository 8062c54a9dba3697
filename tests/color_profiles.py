"""Colour profiles that tests make, and the sRGB numbers that colours have by the formulas of the standards."""

import io
import itertools
import struct

import numpy as np
from PIL import Image, ImageCms

WHITE = (0.9642, 1.0, 0.8249)
"""D50 as XYZ, to which all profiles refer."""
P3_PRIMARIES = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_PRIMARIES = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
"""Columns are the XYZ of red, green and blue."""
_XYZ_TO_SRGB = np.array([[3.1339, -1.6169, -0.4906], [-0.9785, 1.9160, 0.0333], [0.0720, -0.2290, 1.4057]])


def rgb_profile(primaries: np.ndarray, gamma: float = 2.2) -> bytes:
    """The profile of a screen or a working space."""
    tags = {name + b"TRC": _curve(gamma) for name in (b"r", b"g", b"b")}
    return _profile(
        b"RGB ", tags | {name + b"XYZ": _xyz(primaries[:, at]) for at, name in enumerate((b"r", b"g", b"b"))}
    )


def grey_profile(gamma: float) -> bytes:
    """The profile of grey pictures whose light grows with the power ``gamma`` of their numbers."""
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def srgb_profile() -> bytes:
    """That of LittleCMS."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def cmyk_profile() -> bytes:
    """The profile of a printer with the colours of ``lab_of_ink``."""
    grid = b"".join(
        bytes([round(2.55 * light), round(red + 128), round(yellow + 128)])
        for light, red, yellow in map(lab_of_ink, itertools.product((0, 1), repeat=4))
    )
    identity = b"".join(map(_fixed, np.eye(3).ravel()))
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + grid + ramp * 3
    return _profile(b"CMYK", {b"A2B0": table}, b"prtr", b"Lab ")


def lab_of_ink(ink: tuple[int, int, int, int]) -> tuple[float, float, float]:
    """The colour of full or no ink of each kind, roughly as on paper, in CIELAB."""
    cyan, magenta, yellow, black = ink
    light = 100 * (1 - 0.4 * cyan) * (1 - 0.5 * magenta) * (1 - 0.1 * yellow) * (1 - black)
    return light, (1 - black) * (50 * magenta - 25 * cyan), (1 - black) * (60 * yellow - 30 * cyan)


def srgb_of_rgb(array: np.ndarray, primaries: np.ndarray, gamma: float = 2.2) -> np.ndarray:
    """sRGB numbers, uint8 [..., 3], of colours in the space of ``rgb_profile``."""
    return _encode((array / 255) ** gamma @ primaries.T)


def srgb_of_lab(lab: tuple[float, float, float]) -> np.ndarray:
    """sRGB numbers, uint8 [3], of a colour in CIELAB."""
    middle = (lab[0] + 16) / 116
    roots = np.array([middle + lab[1] / 500, middle, middle - lab[2] / 200])
    return _encode(np.where(roots > 6 / 29, roots**3, (roots - 4 / 29) * 3 * (6 / 29) ** 2) * WHITE)


def with_profile(array: np.ndarray | Image.Image, kind: str, profile: bytes | None, **options: object) -> bytes:
    """An image file that carries a profile."""
    buffer = io.BytesIO()
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(buffer, kind, icc_profile=profile, **options)
    return buffer.getvalue()


def _encode(xyz: np.ndarray) -> np.ndarray:
    linear = np.clip(xyz @ _XYZ_TO_SRGB.T, 0, 1)
    encoded = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def _profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", connection: bytes = b"XYZ ") -> bytes:
    tags = {b"wtpt": _xyz(WHITE), **tags}
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    start = struct.pack(">IIBBBB", at + len(body), 0, 2, 0x20, 0, 0) + kind + space + connection + bytes(12) + b"acsp"
    return (start + bytes(28) + b"".join(map(_fixed, WHITE))).ljust(128, b"\0") + table + body


def _xyz(values: np.ndarray | tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))
