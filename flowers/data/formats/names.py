"""Which format a file has, by its first bytes, and what to say of those that are not decoded.

Decoded are the formats that photos come in: JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, JPEG 2000, PPM and its kin, and,
with the extras ``heif`` and ``jxl``, HEIC and JPEG XL. All other formats are refused by name: some start other programs
(EPS), some hold no picture of their own, and each further decoder is one more that a hostile file may choose.
"""

import re

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".avif"}
    | {".jp2", ".ppm", ".pgm", ".pnm", ".heic", ".heif", ".jxl"}
)
"""What makes a file an input of a scan, in any case. Without their extras HEIC and JPEG XL get an error that says what
to do."""

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP": "JPEG2000", b"\xff\x4f\xff\x51": "JPEG2000",
    b"\xff\x0a": "JXL", b"\0\0\0\x0cJXL \r\n": "JXL",
}  # fmt: skip
_PPM = re.compile(rb"P[1-6f][\s#]")
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"mif2"}
_CONVERT = "convert it to JPEG or PNG"
_RAW = f"a camera raw file ({{}}): {_CONVERT}"
_OTHERS = {
    b"8BPS": f"a Photoshop document (PSD): {_CONVERT}",
    b"DDS ": f"a texture (DDS): {_CONVERT}",
    b"\0\0\1\0": f"an icon (ICO): {_CONVERT}",
    b"\0\0\2\0": f"a cursor (CUR): {_CONVERT}",
    b"icns": f"an icon (ICNS): {_CONVERT}",
    b"v/1\1": f"OpenEXR is not decoded: {_CONVERT}",
    b"#?RADIANCE": f"Radiance HDR is not decoded: {_CONVERT}",
    b"qoif": f"QOI is not decoded: {_CONVERT}",
    b"gimp xcf": f"a GIMP document (XCF): {_CONVERT}",
    b"SIMPLE  =": f"FITS is not decoded: {_CONVERT}",
    b"P7\n": f"PAM is not decoded: {_CONVERT}",
    b"IIU\0": _RAW.format("RW2"),
    b"IIRO": _RAW.format("ORF"),
    b"IIRS": _RAW.format("ORF"),
    b"MMOR": _RAW.format("ORF"),
    b"FUJIFILMCCD-RAW": _RAW.format("RAF"),
    b"FOVb": _RAW.format("X3F"),
    b"%!PS": "a PostScript file, not an image",
    b"\xc5\xd0\xd3\xc6": "a PostScript file, not an image",
    b"%PDF": "a PDF document, not an image",
    b"version https://git-lfs": "a Git LFS pointer, not the image itself: run git lfs pull",
    b"PK\3\4": "a ZIP archive, not an image",
    b"\x1f\x8b": "a gzip archive, not an image",
    b"7z\xbc\xaf'\x1c": "a 7z archive, not an image",
    b"Rar!": "a RAR archive, not an image",
    b"\x1aE\xdf\xa3": "a video (Matroska or WebM), not an image",
    b"bplist": "a property list, not an image",
}
_TEXT_START = 1024
"""Bytes in which a page or drawing shows what it is."""


def identify(data: bytes | bytearray) -> str | None:
    """Format of a file among those that can be decoded: Pillow's name for it, or None."""
    if data[4:8] == b"ftyp":
        brands = {bytes(data[8:12]), *_compatible_brands(data)}
        return "AVIF" if brands & _AVIF_BRANDS else "HEIF" if brands & _HEIF_BRANDS else None
    if data.startswith(b"RIFF"):
        return "WEBP" if data[8:12] in (b"WEBP", b"") else None
    if _PPM.match(data):
        return "PPM"
    return next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)


def refusal(data: bytes | bytearray) -> str:
    """Why a file that ``identify`` does not know is no picture, in one line."""
    for signature, reason in _OTHERS.items():
        if data.startswith(signature):
            return reason
    if data[4:8] == b"ftyp":
        return _RAW.format("CR3") if data[8:12] == b"crx " else "a video or other MP4 file, not an image"
    if data.startswith(b"RIFF"):
        return "an audio or video file (RIFF), not an image"
    if data[128:132] == b"DICM":
        return f"DICOM is not decoded: {_CONVERT}"
    start = bytes(data[:_TEXT_START]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in start:
        return "a web page (HTML), not an image"
    if b"<svg" in start:
        return f"a drawing (SVG): {_CONVERT}"
    if start.startswith(b"<?xml"):
        return "an XML file, not an image"
    if start.startswith((b"{", b"[")) and b'"' in start:
        return "a JSON file, not an image"
    return "not an image"


def _compatible_brands(data: bytes | bytearray) -> set[bytes]:
    """Of an ``ftyp`` box (ISO/IEC 14496-12, 4.3), at most as many as fit in 256 bytes."""
    end = min(int.from_bytes(data[:4]), 256)
    return {bytes(data[at : at + 4]) for at in range(16, end, 4)}
