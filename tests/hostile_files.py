"""Small files that ask their decoder for much memory or time, each with what the one decoder owes for it."""

import functools
import struct
import zlib
from typing import NamedTuple

import numpy as np
from odd_files import encode, png, png_chunk, quarters
from PIL import Image, features


class HostileFile(NamedTuple):
    """One of them."""

    name: str
    data: bytes
    reason: str | None
    """The error, or None where the picture, that of ``quarters``, is given all the same."""


@functools.cache
def hostile_files() -> list[HostileFile]:
    """All of them, each of at most 5 MB."""
    made = [*_tiffs(), *_pngs(), *_jpegs(), *_gifs(), *_plain(), *_webps(), *_jpeg2000()]
    return made + _avifs() if features.check("avif") else made


def tiff_of(tags: list[tuple[int, int, int, int]], data: bytes, order: str = "<", following: int = 0) -> bytes:
    """A TIFF whose data begin at byte 8, followed by its only directory.

    Args:
        tags: (tag, type, count, value or offset), sorted.
        data: whatever the offsets point to.
        order: ``<`` or ``>``.
        following: the offset of the next directory.
    """
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, count)
        + (struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else struct.pack(order + "I", value))
        for tag, kind, count, value in tags
    )
    directory = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", following)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return head + data + directory


def rgb_tags(image: np.ndarray, at: int = 8) -> list[tuple[int, int, int, int]]:
    """Tags of an uncompressed 8-bit picture whose bytes begin at an offset; depth 8, for three channels, at 2."""
    return [
        (256, 4, 1, image.shape[1]), (257, 4, 1, image.shape[0]), (258, 3, 3, at + image.size), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, 1, at), (277, 3, 1, 3), (278, 4, 1, image.shape[0]), (279, 4, 1, image.size),
    ]  # fmt: skip


def _tiffs() -> list[HostileFile]:
    image = quarters()
    body = image.tobytes() + struct.pack("<HHH", 8, 8, 8)
    tile = [
        (256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 5), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, 46000), (323, 4, 1, 46000), (324, 4, 1, 8), (325, 4, 1, 3000),
    ]  # fmt: skip
    padding = bytes(1 << 20)
    comments = [(40000 + number, 7, len(padding), 8 + len(body)) for number in range(2000)]
    inner = struct.pack("<H", 4000) + b"".join(
        struct.pack("<HHII", 40000 + number, 7, len(padding), 8 + len(body)) for number in range(4000)
    )
    sub = 8 + len(body) + len(padding)
    strips = [tag for tag in rgb_tags(image) if tag[0] != 273]
    strips = sorted([*strips, (273, 4, 1_000_000, 8)])
    too_large = "broken TIFF: tiles of 46000 x 46000 in a picture of 16 x 16"
    overlap = "broken TIFF: values of more bytes than the file"
    return [
        HostileFile("tile.tif", tiff_of(tile, b"\x80\0\x40" * 1000), too_large),
        HostileFile("comments.tif", tiff_of([*rgb_tags(image), *comments], body + padding), overlap),
        HostileFile("exif.tif", tiff_of([*rgb_tags(image), (34665, 4, 1, sub)], body + padding + inner), None),
        HostileFile("directories.tif", tiff_of(rgb_tags(image), body, following=8 + len(body)), None),
        HostileFile("strips.tif", tiff_of(strips, body + bytes(4_000_000)), "broken TIFF: too many strips or tiles"),
    ]  # fmt: skip


def _pngs() -> list[HostileFile]:
    image = quarters()
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    bomb = zlib.compress(bytes(200_000_000), 1)

    def with_chunks(*chunks: bytes) -> bytes:
        return png(image.shape[1], image.shape[0], 8, 2, rows, b"".join(chunks))

    return [
        HostileFile("text.png", with_chunks(*[png_chunk(b"zTXt", b"a\0\0" + bomb)] * 10), None),
        HostileFile("profile.png", with_chunks(png_chunk(b"iCCP", b"a\0\0" + bomb)), None),
        HostileFile("chunks.png", with_chunks(png_chunk(b"abCd", b"") * 100_000), "broken PNG: too many chunks"),
        HostileFile("frames.png", with_chunks(png_chunk(b"acTL", struct.pack(">II", 1 << 30, 0))), None),
    ]


def _jpegs() -> list[HostileFile]:
    jpeg = encode(quarters(), "JPEG", quality=95, subsampling=0)
    entries = 4000
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, entries)
    block += b"".join(struct.pack("<HHII", 40000 + number, 7, 60_000, 0) for number in range(entries))
    block += bytes(65_000 - len(block))
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    too_many = "broken JPEG: more than 20000 segments"
    without_jfif = jpeg[:2] + jpeg[4 + int.from_bytes(jpeg[4:6]) :]
    return [
        HostileFile("exif.jpg", without_jfif[:2] + segment + without_jfif[2:], None),
        HostileFile("segments.jpg", jpeg[:2] + b"\xff\xe5\0\2" * 1_000_000 + jpeg[2:], too_many),
        HostileFile("filling.jpg", jpeg[:2] + b"\xff" * 3_000_000 + jpeg[2:], too_many),
        HostileFile("junk.jpg", jpeg[:20] + bytes(3_000_000) + jpeg[20:], "broken JPEG: no marker found"),
    ]  # fmt: skip


def _gifs() -> list[HostileFile]:
    gif = encode(Image.fromarray(quarters()).quantize(4), "GIF")
    start = gif.index(b",\0\0\0\0")
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0"
    tiny = b"!\xfe" + b"\1c" * 1_000_000 + b"\0"
    return [
        HostileFile("comment.gif", gif[:start] + comment + gif[start:], None),
        HostileFile("comments.gif", gif[:start] + b"!\xfe\1c\0" * 200_000 + gif[start:], None),
        HostileFile("blocks.gif", gif[:start] + tiny + gif[start:], "broken GIF: too many comment blocks"),
    ]


def _plain() -> list[HostileFile]:
    ppm = encode(quarters(), "PPM")
    runs = encode(Image.fromarray(quarters()).quantize(4), "BMP")
    large = bytearray(runs[:54] + bytes(4 * 256) + b"\0\0" * 10_000 + b"\0\1")
    struct.pack_into("<ii", large, 18, 9000, 9000)
    struct.pack_into("<I", large, 30, 1)
    digits = b"P3\n1000 1000\n255\n" + b"#\n" * 500_000
    return [
        HostileFile("comment.ppm", b"P6\n#" + b"c" * 5_000_000 + ppm[2:], "broken PPM: a header of more than 64 KiB"),
        HostileFile("comments.ppm", digits, "broken PPM: comments among the pixels"),
        HostileFile("runs.bmp", bytes(large), "too many pixels (9000 x 9000 in compressed BMP)"),
    ]


def _webps() -> list[HostileFile]:
    frames = [Image.fromarray(quarters()), Image.fromarray(255 - quarters())]
    webp = bytearray(encode(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:]))
    webp[24:30] = (9999).to_bytes(3, "little") * 2
    chunks = encode(frames[0], "WEBP", lossless=True) + b"abcd\0\0\0\0" * 300_000
    return [
        HostileFile("canvas.webp", bytes(webp), "too many pixels (10000 x 10000 in animated WEBP)"),
        HostileFile("chunks.webp", chunks, "broken WEBP: too many chunks"),
    ]


def _jpeg2000() -> list[HostileFile]:
    def code_stream(
        *, side: int, tile: int, components: int = 3, blocks: int = 4, layers: int = 1, precincts: bytes = b""
    ) -> bytes:
        size = struct.pack(">H8IH", 0, side, side, 0, 0, tile, tile, 0, 0, components) + b"\7\1\1" * components
        levels = max(0, len(precincts) - 1)
        style = struct.pack(">BBHBBBBBB", bool(precincts), 0, layers, 0, levels, blocks, blocks, 0, 1) + precincts
        quality = b"\x40" + bytes([8 << 3]) * (3 * levels + 1)
        segments = [(b"\xff\x51", size), (b"\xff\x52", style), (b"\xff\x5c", quality)]
        main = b"".join(marker + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
        return b"\xff\x4f" + main + b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 0, 0, 1) + b"\xff\x93\xff\xd9"

    many = "broken JPEG2000: too many code blocks or packets"
    large = "too many pixels (65000 x 65000 in JPEG2000)"
    channels = "broken JPEG2000: 5000 components"
    return [
        HostileFile("tiles.j2k", code_stream(side=65000, tile=300, components=1), large),
        HostileFile("small tiles.j2k", code_stream(side=2000, tile=8), "broken JPEG2000: more than 8192 tiles"),
        HostileFile("components.j2k", code_stream(side=64, tile=64, components=5000), channels),
        HostileFile("blocks.j2k", code_stream(side=7000, tile=7000, blocks=0), many),
        HostileFile("precincts.j2k", code_stream(side=7000, tile=7000, precincts=b"\0"), many),
        HostileFile("layers.j2k", code_stream(side=7000, tile=7000, layers=65535, precincts=b"\x55" * 3), many),
    ]  # fmt: skip


def _avifs() -> list[HostileFile]:
    entries = 4000
    block = b"II*\0" + struct.pack("<IH", 8, entries)
    block += b"".join(struct.pack("<HHII", 40000 + number, 7, 1_000_000, 0) for number in range(entries))
    block += bytes(1_000_000)
    harmless = b"II*\0" + struct.pack("<IH", 8, 0) + b"\xa5" * (len(block) - 10)  # Pillow would read the other: 14 s
    written = encode(quarters(), "AVIF", exif=b"Exif\0\0" + harmless)
    assert harmless in written
    bomb = written.replace(harmless, block)
    return [HostileFile("exif.avif", bomb, "broken AVIF or HEIC: EXIF of more bytes than the file")]
