"""Makes the odd files that real folders hold, each with the pixels or the reason that the decoder owes for it."""

import importlib.util
import io
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, features

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION_TAG = 0x0112
FINE = {"quality": 95, "subsampling": 0}
"""Of a JPEG, so that its blocks' colours stay where they are."""

HEIF = importlib.util.find_spec("pillow_heif") is not None
HEIF_MISSING = "HEIC needs the extra heif: pip install flowers[heif]"

ODD_NAMES = [
    b"plain.jpg",
    b"two words.jpg",
    b"comma, and; semicolon.jpg",
    b'"quoted".jpg',
    b"it's.jpg",
    b"line\nend.jpg",
    b"carriage\rreturn.jpg",
    b"tab\there.jpg",
    b"back\\slash.jpg",
    b"back\\xff.jpg",
    b"=1+1.jpg",
    b"[bold]markup.jpg",
    b"-dash.jpg",
    b" space first.jpg",
    b"100%.jpg",
    b"upper.JPG",
    "emoji \N{SUNFLOWER}.jpg".encode(),
    "\N{LATIN SMALL LETTER E WITH ACUTE}t\N{LATIN SMALL LETTER E WITH ACUTE}.jpg".encode(),
    b"latin-1 \xe9t\xe9.jpg",
    b"not utf-8 \xff\xfe.jpg",
]
"""File names, as bytes on the disk."""


class OddFile(NamedTuple):
    """One file, and what reading it must give."""

    name: str
    pixels: np.ndarray | None
    """uint8 [H, W, 3], or None if there must be an error."""
    tolerance: int = 0
    """Greatest difference from ``pixels``, of 255."""
    reason: str = ""
    """The error's text."""
    damage: str | None = None
    """What is said of a picture that is given all the same."""


def quarters(side: int = 16) -> np.ndarray:
    """A picture that no turn or flip leaves as it is: red, green / blue, white; [2 side, 3 side, 3].

    The left quarters are twice as wide, and all borders lie on JPEG's blocks.
    """
    image = np.empty((2 * side, 3 * side, 3), np.uint8)
    image[:side, : 2 * side], image[:side, 2 * side :] = RED, GREEN
    image[side:, : 2 * side], image[side:, 2 * side :] = BLUE, WHITE
    return image


def sideways(image: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera stores an upright picture under an EXIF orientation, from the standard's own words.

    They say which edge of the scene the stored row 0 and column 0 show.
    """
    row0, column0 = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    if row0 in ("left", "right"):
        columns = image.swapaxes(0, 1)  # its rows are the scene's columns from the left, its columns from the top
        columns = columns[::-1] if row0 == "right" else columns
        return columns[:, ::-1] if column0 == "bottom" else columns
    image = image[::-1] if row0 == "bottom" else image
    return image[:, ::-1] if column0 == "right" else image


def encode(image: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def half_jpeg() -> bytes:
    """A JPEG that decodes, although the data of its lower half are missing."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(noise, "JPEG")
    return data[: len(data) // 2] + b"\xff\xd9"


HALF_JPEG = "part of the picture is missing: its data end too early"


def exif(orientation: int) -> Image.Exif:
    """An EXIF block that holds an orientation."""
    block = Image.Exif()
    block[ORIENTATION_TAG] = orientation
    return block


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of any depth and colour type, from its rows (each begins with filter byte 0)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [png_chunk(b"IHDR", header), extra, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(values: np.ndarray, sample_format: int) -> bytes:
    """A grey TIFF of any type, from its numbers.

    Args:
        values: [H, W], written little-endian as they are.
        sample_format: TIFF's tag 339: 1 unsigned, 2 signed, 3 float.
    """
    data = values.tobytes()
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, 8 * values.itemsize), (259, 1), (262, 1)]
    tags += [(273, 8), (277, 1), (278, values.shape[0]), (279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def odd_files() -> list[tuple[OddFile, bytes]]:
    """Each of them with its bytes."""
    return [*_turned(), *_deep_grey(), *_transparent(), *_colour_spaces(), *_containers(), *_broken()]


def make_odd_files(folder: Path) -> list[OddFile]:
    """Write all of them into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = odd_files()
    for odd, data in made:
        (folder / odd.name).write_bytes(data)
    return [odd for odd, _ in made]


def _turned() -> list[tuple[OddFile, bytes]]:
    upright = quarters()
    made = []
    for orientation in range(1, 9):
        stored = sideways(upright, orientation)
        data = encode(stored, "JPEG", **FINE, exif=exif(orientation))
        made.append((OddFile(f"turned {orientation}.jpg", upright, 4), data))
    for kind, ending in (("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(sideways(upright, 6), kind, exif=exif(6), **options)
        made.append((OddFile(f"turned 6.{ending}", upright), data))
    no_such = encode(upright, "PNG", exif=exif(9))
    return [*made, (OddFile("turned 9.png", upright), no_such)]


def _deep_grey() -> list[tuple[OddFile, bytes]]:
    grey16 = np.array([[0, 128, 257, 12850], [32768, 65278, 65407, 65535]], np.uint16)
    byte16 = [[0, 0, 1, 50], [128, 254, 255, 255]]  # 128 / 257 = 0.498, 32768 / 257 = 127.502, 65407 / 257 = 254.502
    int32 = np.array([[-1000, 0], [99000, 49000]], np.int32)
    uint32 = np.array([[0, 4_000_000_000], [1_000_000_000, 2_000_000_000]], np.uint32)
    unit = np.array([[0, 0.25, 0.5, 1]], np.float32)
    wide = np.array([[-2, np.nan, 0, 2]], np.float32)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey16)
    return [
        (OddFile("grey16.png", _grey(byte16)), png(4, 2, 16, 0, rows)),
        (OddFile("grey16.tif", _grey(byte16)), tiff(grey16, 1)),
        (OddFile("grey16 big-endian.tif", _grey(byte16)), encode(Image.fromarray(grey16.astype(">u2")), "TIFF")),
        (OddFile("grey16.pgm", _grey(byte16)), b"P5 4 2 65535\n" + grey16.astype(">u2").tobytes()),
        (OddFile("grey32.tif", _grey([[0, 3], [255, 128]])), tiff(int32, 2)),
        (OddFile("grey32 unsigned.tif", _grey([[0, 255], [64, 128]])), tiff(uint32, 1)),
        (OddFile("grey32 of 8 bits.tif", _grey([[3, 200]])), tiff(np.array([[3, 200]], np.int32), 2)),
        (OddFile("grey32 of 16 bits.tif", _grey([[1, 255]])), tiff(np.array([[257, 51400]], np.int32), 2)),
        (OddFile("grey32 flat.tif", _grey([[0, 0]])), tiff(np.array([[-7, -7]], np.int32), 2)),
        (OddFile("float.tif", _grey([[0, 64, 128, 255]])), tiff(unit, 3)),
        (OddFile("float of 8 bits.tif", _grey([[0, 64, 128, 255]])), tiff(np.rint(unit * 255), 3)),
        (OddFile("float with NaN.tif", _grey([[0, 0, 128, 255]])), tiff(wide, 3)),
        (OddFile("float all NaN.tif", _grey([[0, 0]])), tiff(np.full((1, 2), np.nan, np.float32), 3)),
    ]


def _transparent() -> list[tuple[OddFile, bytes]]:
    alpha = np.array([[0, 128, 255]], np.uint8)
    on_white = np.array([[WHITE, (255, 127, 127), RED]], np.uint8)  # 255 - 128 = 127
    red = np.array([[RED] * 3], np.uint8)
    rgba = Image.fromarray(np.dstack([red, alpha]))
    grey_alpha = Image.merge("LA", [Image.new("L", (3, 1), 0), Image.fromarray(alpha)])
    palette = Image.new("P", (3, 1))
    palette.putpalette([*RED, *GREEN, *BLUE])
    palette.putdata([0, 1, 2])
    keyed = np.array([[RED, WHITE, BLUE]], np.uint8)
    first = np.array([[RED, GREEN, BLUE]], np.uint8)
    two = Image.fromarray(np.array([[0, 200, 7]], np.uint8))
    deep = np.array([[65535, 0, 0, 0], [65535, 0, 0, 65535]], ">u2")
    return [
        (OddFile("alpha.png", on_white), encode(rgba, "PNG")),
        (OddFile("alpha.webp", on_white), encode(rgba, "WEBP", lossless=True, exact=True)),
        (OddFile("alpha.tif", on_white), encode(rgba, "TIFF")),
        (OddFile("grey with alpha.png", _grey([[255, 127, 0]])), encode(grey_alpha, "PNG")),
        (
            OddFile("16 bits with alpha.png", np.array([[WHITE, RED]], np.uint8)),
            png(2, 1, 16, 6, b"\0" + deep.tobytes()),
        ),
        (OddFile("palette.png", first), encode(palette, "PNG")),
        (OddFile("palette, one clear.png", keyed), encode(palette, "PNG", transparency=1)),
        (
            OddFile("palette with alpha.png", np.array([[WHITE, (127, 255, 127), BLUE]], np.uint8)),
            encode(palette, "PNG", transparency=bytes([0, 128, 255])),
        ),
        (OddFile("palette, one clear.gif", keyed), encode(palette, "GIF", transparency=1)),
        (OddFile("clear colour.png", keyed), encode(first, "PNG", transparency=GREEN)),
        (OddFile("clear grey.png", _grey([[0, 255, 7]])), encode(two, "PNG", transparency=200)),
    ]


def _colour_spaces() -> list[tuple[OddFile, bytes]]:
    upright = quarters()
    cmyk = Image.fromarray(upright).convert("CMYK")
    cmyk_jpeg = encode(cmyk, "JPEG", **FINE)
    adobe = cmyk_jpeg.index(b"\xff\xee")
    length = 2 + int.from_bytes(cmyk_jpeg[adobe + 2 : adobe + 4])
    inverted = Image.fromarray(255 - np.asarray(cmyk), "CMYK")
    bare = encode(inverted, "JPEG", **FINE)
    bits = np.array([[0, 255, 0, 255, 255]], np.uint8)
    lab = Image.frombytes("LAB", (3, 1), bytes([0, 0, 0, 255, 0, 0, 136, 80, 67]))
    ycbcr = Image.fromarray(upright).convert("YCbCr")
    grey = np.full((16, 16), 77, np.uint8)
    return [
        (OddFile("one bit.png", _grey(bits)), encode(Image.fromarray(bits).convert("1"), "PNG")),
        (OddFile("one bit.tif", _grey(bits)), encode(Image.fromarray(bits).convert("1"), "TIFF", compression="group4")),
        (OddFile("cmyk.tif", upright), encode(cmyk, "TIFF")),
        (OddFile("cmyk by Adobe.jpg", upright, 6), cmyk_jpeg),
        (OddFile("cmyk without Adobe.jpg", upright, 6), bare[:adobe] + bare[adobe + length :]),
        (OddFile("ycbcr.tif", upright, 4), encode(ycbcr, "TIFF", compression="jpeg", quality=100)),
        (OddFile("rgb.jpg", upright, 4), encode(upright, "JPEG", **FINE, keep_rgb=True)),
        # Black, white, and L* 53.2 a* 80.1 b* 67.2, which is sRGB's red; L* is stored as 255ths of 100.
        (OddFile("lab.tif", np.array([[(0, 0, 0), WHITE, RED]], np.uint8), 24), encode(lab, "TIFF")),
        (OddFile("grey.jpg", _grey(grey), 1), encode(grey, "JPEG")),
        (OddFile("progressive.jpg", upright, 4), encode(upright, "JPEG", **FINE, progressive=True)),
    ]


def _containers() -> list[tuple[OddFile, bytes]]:
    upright = quarters()
    other = Image.fromarray(255 - upright)
    again = {"save_all": True, "append_images": [other]}
    deep = upright.astype(np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    paletted = Image.fromarray(upright).quantize(4)
    made = [
        (OddFile("animated.gif", upright), encode(paletted, "GIF", save_all=True, append_images=[other.quantize(4)])),
        (OddFile("animated.png", upright), encode(upright, "PNG", **again)),
        (OddFile("animated.webp", upright, 0), encode(upright, "WEBP", lossless=True, **again)),
        (OddFile("pages.tif", upright), encode(upright, "TIFF", compression="tiff_lzw", **again)),
        (OddFile("pair.mpo", upright, 4), encode(upright, "MPO", **FINE, **again)),
        (OddFile("16 bits a channel.png", upright), png(upright.shape[1], upright.shape[0], 16, 2, rows)),
        (OddFile("windows.bmp", upright), encode(upright, "BMP")),
        (OddFile("plain.ppm", upright), encode(upright, "PPM")),
        (OddFile("lossless.jp2", upright), encode(upright, "JPEG2000")),
        (OddFile("UPPER.JPG", upright, 4), encode(upright, "JPEG", **FINE)),
        (OddFile("really a png.jpg", upright), encode(upright, "PNG")),
        (OddFile("really a jpeg.png", upright, 4), encode(upright, "JPEG", **FINE)),
        (OddFile("one pixel.png", np.array([[RED]], np.uint8)), encode(np.array([[RED]], np.uint8), "PNG")),
    ]
    if features.check("avif"):
        made.append((OddFile("lossless.avif", upright, 8), encode(upright, "AVIF", quality=100, subsampling="4:4:4")))
    return made


def _broken() -> list[tuple[OddFile, bytes]]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    jpeg, portable, webp = encode(noise, "JPEG"), encode(noise, "PNG"), encode(noise, "WEBP")
    scaled = bytearray(jpeg)
    size = scaled.index(b"\xff\xc0") + 5
    scaled[size : size + 4] = struct.pack(">HH", 64000, 65000)
    large = png(100_000, 90_000, 8, 0, b"\0")
    zeros = portable[: len(portable) // 2] + bytes(len(portable) - len(portable) // 2)
    return [
        (OddFile("empty.jpg", None, reason="zero bytes"), b""),
        (OddFile("cut.jpg", None, reason="truncated JPEG"), jpeg[: len(jpeg) // 2]),
        (OddFile("cut in the header.jpg", None, reason="truncated JPEG"), jpeg[:100]),
        (OddFile("half zeros.jpg", None, reason="truncated JPEG"), jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2)),
        (OddFile("cut.png", None, reason="truncated PNG"), portable[: len(portable) // 2]),
        (OddFile("half zeros.png", None, reason="broken PNG: wrong checksum"), zeros),
        (OddFile("cut.webp", None, reason="truncated WEBP"), webp[: len(webp) // 2]),
        (
            OddFile("page.jpg", None, reason="a web page (HTML), not an image"),
            b"<!DOCTYPE html><title>404 Not Found</title>",
        ),
        (OddFile("zeros.jpg", None, reason="not an image"), bytes(5000)),
        (
            OddFile("program.jpg", None, reason="a PostScript file, not an image"),
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        ),
        (
            OddFile("phone.heic", None, reason="truncated or broken HEIF" if HEIF else HEIF_MISSING),
            b"\0\0\0\x18ftypheic" + bytes(12),
        ),
        (OddFile("bomb.png", None, reason="too many pixels (100000 x 90000)"), large),
        (OddFile("bomb.jpg", None, reason="too many pixels (65000 x 64000)"), bytes(scaled)),
    ]


def make_odd_names(folder: Path) -> list[str]:
    """Write a small picture under each of ``ODD_NAMES``; returns them as a scan gives them, in its order."""
    folder.mkdir(parents=True, exist_ok=True)
    data = encode(quarters(), "JPEG")
    for name in ODD_NAMES:
        (folder / os.fsdecode(name)).write_bytes(data)
    return [os.fsdecode(name) for name in sorted(ODD_NAMES)]


def make_odd_tree(folder: Path) -> list[str]:
    """Make a tree with all that may lie in a scan's way; returns the images that it must find, in its order."""
    data = encode(quarters(), "JPEG")
    for name in (
        "a.jpg", "a/b.JPEG", "a/deep/er/c.png", "a b/d.jpg", "with space/e.webp", "z.tif",
        ".hidden.jpg", "._foo.jpg", "a/.DS_Store", "a/.ipynb_checkpoints/f-checkpoint.jpg", ".git/g.jpg",
        "notes.txt", "no extension", "a/jpg",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg/h.jpg").write_bytes(data)
    (folder / "a/up").symlink_to("..")
    (folder / "self").symlink_to(".")
    (folder / "a/itself").symlink_to("itself")
    (folder / "a/itself.jpg").symlink_to("itself.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "link.jpg").symlink_to("a.jpg")
    (folder / "other name").symlink_to("a b")
    os.mkfifo(folder / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server, _inside(folder):
        server.bind("socket.jpg")  # by a relative name: a socket's address is at most about 100 bytes long
    return [
        "a b/d.jpg", "a.jpg", "a/b.JPEG", "a/deep/er/c.png", "a/itself.jpg", "dangling.jpg", "folder.jpg/h.jpg",
        "link.jpg", "other name/d.jpg", "with space/e.webp", "z.tif",
    ]  # fmt: skip


class _inside:
    """In this working folder for a while."""

    def __init__(self, folder: Path):
        self._folder, self._before = folder, Path.cwd()

    def __enter__(self) -> None:
        os.chdir(self._folder)

    def __exit__(self, *exception: object) -> None:
        os.chdir(self._before)


def _grey(values: object) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[:, :, None], 3, axis=2)
