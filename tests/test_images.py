"""The decoder: every kind of file gives its right pixels, or the reason why there are none."""

import io
import os
import re
import socket
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hostile_files import rgb_tags, tiff_of
from odd_files import FINE, HEIF_MISSING, OddFile, encode, exif, odd_files, png, png_chunk, quarters, sideways, tiff
from PIL import Image

from flowers.data import pixels
from flowers.data.formats import jpeg, limits
from flowers.data.images import decode_image, read_image
from flowers.data.preprocessing import Preprocessing
from flowers.errors import ImageError

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # pytest drops the filter of images.py

ODD_FILES = odd_files()
SAME_WITHIN = 2
"""Levels of 255 between torchvision.io and Pillow, as images.py promises."""


def photo(height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
    """Something with edges and fine detail, like a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height))
    fine = rng.normal(0, 12, (height, width, 1))
    return np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other)


@pytest.fixture
def without_torchvision_io(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "decode_jpeg", None)


@pytest.mark.parametrize(("odd", "data"), ODD_FILES, ids=[odd.name for odd, _ in ODD_FILES])
def test_odd_file(odd: OddFile, data: bytes, tmp_path: Path):
    path = tmp_path / odd.name
    path.write_bytes(data)
    if odd.pixels is None:
        with pytest.raises(ImageError) as error:
            read_image(path)
        assert str(error.value) == odd.reason
        return
    image, damage = decode_image(path)
    assert damage == odd.damage
    assert difference(image, odd.pixels).max() <= odd.tolerance
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert (image == read_image(data)).all(), "the bytes of a file are read as the file is"


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_modes_that_no_format_stores(mode: str):
    alpha = np.array([[0, 128, 255]], np.uint8)
    rgba = Image.fromarray(np.dstack([np.zeros((1, 3, 3), np.uint8), alpha]))
    picture = {"La": rgba.convert("LA"), "RGBa": rgba, "PA": Image.new("P", (3, 1))}[mode].convert(mode)
    if mode == "PA":
        picture.putalpha(Image.fromarray(alpha))
    assert picture.mode == mode
    assert (pixels.to_rgb(picture) == np.array([[[255] * 3, [127] * 3, [0] * 3]])).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_both_ways_give_the_same_picture(options: dict, monkeypatch: pytest.MonkeyPatch):
    for image in (photo(), photo(161, 203, seed=1), photo()[:, :, 0]):
        data = encode(image, "JPEG", **options)
        fast = read_image(data)
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "decode_jpeg", None)
            assert difference(fast, read_image(data)).max() <= SAME_WITHIN


def test_both_ways_give_the_same_real_photo(flowers102: Path, monkeypatch: pytest.MonkeyPatch):
    paths = sorted((flowers102 / "photos").iterdir())[:10]
    fast = [read_image(path) for path in paths]
    monkeypatch.setattr(jpeg, "decode_jpeg", None)
    for path, image in zip(paths, fast, strict=True):
        assert difference(image, read_image(path)).max() <= SAME_WITHIN


def test_reduced_photos_look_the_same_to_a_network(flowers102: Path):
    preprocessing = Preprocessing(240, 224)
    changed, other = [], []
    for path in sorted((flowers102 / "photos").iterdir())[:10]:
        full = read_image(path)
        reduced = read_image(path, min_short_side=240)
        assert reduced.shape[:2] == (full.shape[0] // 2, full.shape[1] // 2)
        changed.append(difference(preprocessing.view(full), preprocessing.view(reduced)).mean())
        other.append(difference(preprocessing.view(full), preprocessing.view(full[:-4, :-4])).mean())
    assert np.mean(changed) < 4
    assert np.mean(changed) < np.mean(other), "cutting off four rows and columns changes more"


def test_the_fast_way_is_taken(monkeypatch: pytest.MonkeyPatch):
    taken = []
    decode = jpeg.decode_jpeg
    monkeypatch.setattr(jpeg, "decode_jpeg", lambda *args, **kwargs: taken.append(1) or decode(*args, **kwargs))
    read_image(encode(photo(), "JPEG"))
    assert taken


def test_pillow_takes_over_where_torchvision_io_gives_up(monkeypatch: pytest.MonkeyPatch):
    def gives_up(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Couldn't load the image extension.")

    data = encode(quarters(), "JPEG", **FINE)
    monkeypatch.setattr(jpeg, "decode_jpeg", gives_up)
    assert difference(read_image(data), quarters()).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_scale_keeps_the_picture(orientation: int):
    large = quarters(64)
    data = encode(sideways(large, orientation), "JPEG", exif=exif(orientation), **FINE)
    for min_short_side, scale in ((129, 1), (128, 1), (64, 2), (33, 2), (32, 4), (16, 8), (1, 8)):
        image = read_image(data, min_short_side=min_short_side)
        assert difference(image, large[::scale, ::scale]).max() <= 4


@pytest.mark.parametrize(("height", "width"), [(101, 131), (131, 101), (9, 9), (17, 200), (64, 65), (7, 900)])
def test_reduced_scale_is_exact_and_large_enough(height: int, width: int):
    data = encode(photo(height, width), "JPEG")
    for min_short_side in (1, 2, 5, 8, 9, 25, 50, 51, 1000):
        got = read_image(data, min_short_side=min_short_side).shape
        scales = [scale for scale in (8, 4, 2, 1) if min(height, width) // scale >= min_short_side] or [1]
        assert got == (height // scales[0], width // scales[0], 3)


def test_reduced_scale_only_for_jpegs():
    assert read_image(encode(photo(), "PNG"), min_short_side=8).shape == (240, 320, 3)


def cuts(length: int) -> list[int]:
    """Where to cut: all over the file, and each of the last bytes."""
    return sorted({*range(1, length, max(1, length // 60)), *range(max(1, length - 20), length)})


@pytest.mark.parametrize("min_short_side", [None, 16])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=["baseline", "progressive", "restart"]
)
@pytest.mark.parametrize("rest", ["nothing", "zeros"])
def test_cut_jpeg_is_noticed_wherever_it_is_cut(options: dict, min_short_side: int | None, rest: str):
    data = encode(photo(48, 64), "JPEG", exif=exif(6), **options)
    whole = read_image(data, min_short_side=min_short_side)
    for cut in cuts(len(data))[3:]:
        damaged = data[:cut] + (bytes(len(data) - cut) if rest == "zeros" else b"")
        if cut < len(data) - 2:
            with pytest.raises(ImageError, match="truncated JPEG"):
                read_image(damaged, min_short_side=min_short_side)
        else:
            found = decode_image(damaged, min_short_side=min_short_side)
            assert difference(found.image, whole).max() <= SAME_WITHIN
            assert found.damage == "the end mark of the file is missing"


END_EARLY = "part of the picture is missing: its data end too early"
LEFT_OVER = "part of the picture is damaged: its data do not fit its size"
SCANS_MISSING = "part of the picture is missing: not all scans are there"


@pytest.mark.parametrize("min_short_side", [None, 100])
def test_half_a_jpeg_that_ends_as_it_should_is_marked(min_short_side: int | None, capfd: pytest.CaptureFixture):
    whole = photo(480, 640)
    data = encode(whole, "JPEG")
    found = decode_image(data[: len(data) // 2] + b"\xff\xd9", min_short_side=min_short_side)
    assert found.damage == END_EARLY
    right = read_image(data, min_short_side=min_short_side)
    third = len(right) // 3
    assert (found.image[:third] == right[:third]).all(), "what is there is given"
    assert (found.image[-third:] == 128).all(), "and the rest is libjpeg's grey"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("min_short_side", [None, 100])
def test_jpeg_with_too_many_data_is_marked(min_short_side: int | None):
    data = encode(photo(480, 640), "JPEG")
    size = data.index(b"\xff\xc0") + 5
    flat = data[:size] + (240).to_bytes(2) + data[size + 2 :]
    assert decode_image(flat, min_short_side=min_short_side).damage == LEFT_OVER


@pytest.mark.parametrize("min_short_side", [None, 100])
def test_progressive_jpeg_without_its_last_scans_is_marked(min_short_side: int | None):
    data = encode(photo(480, 640), "JPEG", progressive=True)
    scans = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    assert decode_image(data, min_short_side=min_short_side).damage is None
    for cut in (*scans[1:], (scans[0] + scans[1]) // 2):
        found = decode_image(data[:cut] + b"\xff\xd9", min_short_side=min_short_side)
        assert found.damage == SCANS_MISSING


@pytest.mark.parametrize("min_short_side", [None, 100])
def test_what_follows_a_jpeg_is_no_damage(min_short_side: int | None):
    """A second picture, a film, padding: phones write all of them."""
    data = encode(photo(480, 640), "JPEG")
    mpo = encode(photo(480, 640), "MPO", save_all=True, append_images=[Image.fromarray(photo(seed=1))])
    for file in (data, data + data, mpo, data + b"film" * 50_000, data + bytes(100_000)):
        assert decode_image(file, min_short_side=min_short_side).damage is None


def test_no_real_photo_is_marked(flowers102: Path):
    for path in sorted((flowers102 / "photos").iterdir())[:100]:
        assert decode_image(path).damage is None
        assert decode_image(path, min_short_side=100).damage is None


def test_threads_find_the_same_damage():
    """libjpeg's words have no name: a sound picture beside a damaged one must not be taken for it."""
    sound = encode(photo(), "JPEG")
    cut = sound[: len(sound) // 2] + b"\xff\xd9"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda data: decode_image(data).damage, [sound, cut] * 50))
    assert found == [None, END_EARLY] * 50


def test_wrong_checksum_in_a_comment_loses_no_picture():
    comment = bytearray(png_chunk(b"tEXt", b"Comment\0hello"))
    comment[-1] ^= 1
    rows = b"".join(b"\0" + row.tobytes() for row in quarters())
    found = decode_image(png(48, 32, 8, 2, rows, bytes(comment)))
    assert (found.image == quarters()).all()
    assert found.damage == "a wrong checksum in its tEXt chunk"


def test_png_without_its_end_is_marked():
    found = decode_image(encode(quarters(), "PNG")[:-12])
    assert (found.image == quarters()).all()
    assert found.damage == "the end mark of the file is missing"


def test_tiff_that_its_library_doubts_is_marked_with_its_words(capfd: pytest.CaptureFixture):
    bits = Image.fromarray(np.random.default_rng(0).integers(0, 2, (64, 64), np.uint8) * 255).convert("1")
    data = bytearray(encode(bits, "TIFF", compression="group4"))
    data[300:310] = bytes([255, 0] * 5)
    assert decode_image(data).damage.startswith("part of the picture is damaged: Bad code word at line 17")
    deflated = bytearray(encode(photo(48, 64), "TIFF", compression="tiff_adobe_deflate"))
    deflated[1000:1100] = bytes(value ^ 0x55 for value in deflated[1000:1100])
    with pytest.raises(ImageError, match="broken TIFF: Decoding error at scanline"):
        read_image(deflated)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
def test_twelve_bits_are_the_same_picture_in_every_type(kind: str):
    values = np.array([[0, 1000, 2048, 4095]])
    found = read_image(tiff(values.astype(kind), {"uint16": 1, "int32": 2, "float32": 3}[kind]))
    assert found[0, :, 0].tolist() == [0, 62, 128, 255]


def test_float_grey_has_no_jump():
    for white in (127, 128):
        assert read_image(tiff(np.array([[0, 50, white]], np.float32), 3))[0, :, 0].tolist() == [0, 100, 255]


def test_white_may_be_zero_in_16_bits_too():
    data = tiff(np.array([[0, 65535]], np.uint16), 1)
    black_is_zero, white_is_zero = (struct.pack("<HHII", 262, 4, 1, value) for value in (1, 0))
    assert read_image(data.replace(black_is_zero, white_is_zero))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("depth", "colour", "row", "clear", "right"),
    [
        (16, 0, struct.pack(">HHH", 0, 40000, 65535), struct.pack(">H", 40000), [0, 255, 255]),
        (16, 2, struct.pack(">9H", 0, 0, 0, 65535, 0, 0, 0, 0, 0), struct.pack(">HHH", 65535, 0, 0), [0, 255, 0]),
        (2, 0, b"\x18", b"\0\2", [0, 85, 255]),
    ],
    ids=["grey of 16 bits", "colour of 16 bits", "grey of 2 bits"],
)
def test_clear_colour_of_a_png_of_another_depth(depth: int, colour: int, row: bytes, clear: bytes, right: list[int]):
    found = read_image(png(3, 1, depth, colour, b"\0" + row, png_chunk(b"tRNS", clear)))
    assert (found == np.array(right)[None, :, None]).all()


def test_orientation_counts_if_it_is_stored_as_a_byte():
    entry = struct.pack(">HHIBBBB", 0x112, 1, 1, 6, 0, 0, 0)
    block = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    assert difference(read_image(encode(sideways(quarters(), 6), "JPEG", exif=block, **FINE)), quarters()).max() <= 4


@pytest.mark.parametrize("inverted", [False, True])
def test_cmyk_jpeg_without_a_mark_is_read_by_its_ink(inverted: bool):
    for upright in (quarters(), photo()):
        ink = np.asarray(Image.fromarray(upright).convert("CMYK"))
        # Pillow inverts what it writes.
        data = encode(Image.fromarray(ink if inverted else 255 - ink, "CMYK"), "JPEG", **FINE)
        mark = data.index(b"\xff\xee")
        data = data[:mark] + data[mark + 2 + int.from_bytes(data[mark + 2 : mark + 4]) :]
        assert difference(read_image(data), upright).mean() < 3


@pytest.fixture
def heif() -> object:
    return pytest.importorskip("pillow_heif")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photo_of_a_phone_is_turned_once(orientation: int, heif: object):
    heif.register_heif_opener()
    data = encode(sideways(quarters(64), orientation), "HEIF", quality=95, chroma=444, exif=exif(orientation).tobytes())
    assert difference(read_image(data), quarters(64)).mean() < 3


def test_first_picture_of_a_burst_is_taken(heif: object):
    burst = heif.from_pillow(Image.fromarray(quarters(64)))
    burst.add_from_pillow(Image.fromarray(255 - quarters(64)))
    file = io.BytesIO()
    burst.save(file, quality=95, chroma=444)
    assert difference(read_image(file.getvalue()), quarters(64)).mean() < 3


def test_ten_bits_of_a_phone(heif: object):
    deep = quarters(64).astype(np.uint16) * 257
    file = io.BytesIO()
    heif.from_bytes("RGB;16", (192, 128), deep.tobytes()).save(file, quality=95, chroma=444)
    assert difference(read_image(file.getvalue()), quarters(64)).mean() < 3


def test_heic_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(ImageError) as error:
        read_image(b"\0\0\0\x18ftypheic" + bytes(12))
    assert str(error.value) == HEIF_MISSING


def preview_first(below: bool, colour: int = 2) -> bytes:
    """A TIFF whose first picture is a small one; the full one comes after it, or below it, as in a DNG."""
    full, small = quarters(), np.ascontiguousarray(quarters()[::8, ::8])
    body = full.tobytes() + small.tobytes() + struct.pack("<HHH", 8, 8, 8)
    depths = (258, 3, 3, 8 + full.size + small.size)
    first = {tag[0]: tag for tag in [*rgb_tags(small, 8 + full.size), depths, (254, 4, 1, 1)]}
    start = 8 + len(body) + 2 + 12 * (len(first) + below) + 4
    if below:
        first[330] = (330, 4, 1, start)
    second = {tag[0]: tag for tag in [*rgb_tags(full), depths, (254, 4, 1, 0), (262, 3, 1, colour)]}
    head = tiff_of(sorted(first.values()), body, following=0 if below else start)
    return head + tiff_of(sorted(second.values()), b"")[8:]


@pytest.mark.parametrize("below", [False, True])
def test_full_picture_is_taken_and_not_the_preview_before_it(below: bool):
    assert (read_image(preview_first(below)) == quarters()).all()


def test_preview_of_raw_values_is_refused():
    with pytest.raises(ImageError, match="a camera raw file"):
        read_image(preview_first(True, colour=32803))


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"8BPS\0\1", "a Photoshop document (PSD): convert it to JPEG or PNG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the image itself: run git lfs pull"),
        (b"\n<html><body>", "a web page (HTML), not an image"),
        (b'<?xml version="1.0"?><svg>', "a drawing (SVG): convert it to JPEG or PNG"),
        (b"\0\0\0\x18ftypcrx ", "a camera raw file (CR3): convert it to JPEG or PNG"),
        (b"II*\0\x10\0\0\0CR\2\0", "a camera raw file (CR2): convert it to JPEG or PNG"),
        (b"FUJIFILMCCD-RAW ", "a camera raw file (RAF): convert it to JPEG or PNG"),
        (b"DDS |", "a texture (DDS): convert it to JPEG or PNG"),
        (b"\0\0\1\0\1\0", "an icon (ICO): convert it to JPEG or PNG"),
        (b"\0\0\0\x18ftypisom", "a video or other MP4 file, not an image"),
        (b"%PDF-1.7", "a PDF document, not an image"),
        (b"PK\3\4", "a ZIP archive, not an image"),
        (b'{"error": "no"}', "a JSON file, not an image"),
        (b"RIFF\0\0\0\0WAVE", "an audio or video file (RIFF), not an image"),
        (b"roses are red", "not an image"),
    ],
)
def test_what_is_not_decoded_is_named(start: bytes, reason: str):
    with pytest.raises(ImageError) as error:
        read_image(start + bytes(100))
    assert str(error.value) == reason


@pytest.mark.parametrize("min_short_side", [None, 16])
def test_cut_jpeg_is_noticed_without_torchvision_io(without_torchvision_io: None, min_short_side: int | None):
    test_cut_jpeg_is_noticed_wherever_it_is_cut({}, min_short_side, "nothing")


def test_thumbnail_does_not_hide_a_cut():
    thumbnail = encode(photo(48, 64, seed=1), "JPEG")
    block = exif(1)
    block.get_ifd(0x8769)[0x927C] = thumbnail  # a maker note: a whole JPEG, with an end marker, before the picture
    data = encode(photo(), "JPEG", exif=block)
    assert thumbnail in data
    assert read_image(data).shape == (240, 320, 3)
    with pytest.raises(ImageError, match="truncated JPEG"):
        read_image(data[:-2000])


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    data = encode(photo(), "JPEG")
    assert (read_image(data + bytes(5000)) == read_image(data)).all()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("GIF", {}),
        ("JPEG2000", {}),
        ("PPM", {}),
    ],
)
def test_cut_file_gives_a_reason_or_the_whole_picture(kind: str, options: dict):
    data = encode(photo(48, 64), kind, **options)
    whole = read_image(data)
    reasons = []
    for cut in cuts(len(data)):
        try:
            assert (read_image(data[:cut]) == whole).all()
        except ImageError as error:
            reasons.append(str(error))
    assert len(reasons) > 50
    assert all(re.match("truncated|broken|not an image", reason) for reason in reasons)


def test_broken_files_say_nothing_on_stderr(capfd: pytest.CaptureFixture):
    """They would tear the progress bar."""
    for _, data in ODD_FILES:
        for cut in (len(data), len(data) // 2):
            try:
                read_image(data[:cut])
            except ImageError:
                continue
    assert capfd.readouterr().err == ""


def test_broken_exif_loses_no_picture():
    data = encode(quarters(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", **FINE)
    assert difference(read_image(data), quarters()).max() <= 4


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "file not found"),
        (lambda path: path.mkdir(), "a folder, not a file"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to(path), "a link to itself"),
        (lambda path: path.symlink_to("nowhere"), "file not found"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    ],
    ids=["missing", "folder", "fifo", "loop", "dangling", "device"],
)
def test_not_a_file(make: object, reason: str, tmp_path: Path):
    path = tmp_path / "x.jpg"
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == reason
    assert len(os.listdir("/proc/self/fd")) == before


def test_socket_and_odd_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.jpg")
    for path, reason in (
        ("s.jpg", "not a regular file"),
        ("a\0b.jpg", "file not found"),
        ("s.jpg/a.jpg", "file not found"),
        ("n" * 300, "file name too long"),
    ):
        with pytest.raises(ImageError) as error:
            read_image(path)
        assert str(error.value) == reason


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "secret.jpg"
    path.write_bytes(encode(quarters(), "JPEG"))
    path.chmod(0)
    if os.geteuid() == 0:  # root may read it all the same

        def refuse(*args: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == "no permission"


def test_too_large_a_file_is_not_read(tmp_path: Path):
    path = tmp_path / "large.jpg"
    with open(path, "wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(ImageError, match=r"too large a file \(2\.0 GiB\)"):
        read_image(path)


def test_pixel_limit_counts_what_is_decoded(monkeypatch: pytest.MonkeyPatch):
    data = encode(photo(400, 600), "JPEG")
    monkeypatch.setattr(limits, "_allowed_pixels", 240_000)
    assert read_image(data).shape == (400, 600, 3)
    limits.allow_pixels(239_999)
    with pytest.raises(ImageError, match=r"too many pixels \(600 x 400\)"):
        read_image(data)
    limits.allow_pixels(20_000)
    assert read_image(data, min_short_side=50).shape == (50, 75, 3)


def test_jpeg_of_several_scans_is_limited_at_its_full_size(monkeypatch: pytest.MonkeyPatch):
    """libjpeg keeps all coefficients of such a file in memory, however small the result."""
    data = encode(photo(400, 600), "JPEG", progressive=True)
    assert read_image(data, min_short_side=50).shape == (50, 75, 3)
    monkeypatch.setattr(limits, "_allowed_pixels", 20_000)
    with pytest.raises(ImageError, match="too many pixels"):
        read_image(data, min_short_side=50)


def test_jpeg_of_very_many_scans_is_refused():
    data = encode(photo(48, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="more than 100 scans"):
        read_image(data[:last] + data[last:-2] * 120 + data[-2:])


def test_reasons_are_single_lines(monkeypatch: pytest.MonkeyPatch):
    def breaks(*args: object, **kwargs: object) -> None:
        raise ValueError("one\ntwo\n" + "x" * 500)

    monkeypatch.setattr(Image, "open", breaks)
    with pytest.raises(ImageError) as error:
        read_image(png(1, 1, 8, 0, b"\0\0"))
    assert str(error.value).startswith("broken PNG: one two xxx")
    assert len(str(error.value)) < 150


def test_out_of_memory_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    def no_memory(picture: Image.Image, keep_cmyk: bool) -> None:
        raise MemoryError

    monkeypatch.setattr(pixels, "to_rgb", no_memory)
    with pytest.raises(ImageError, match="not enough memory"):
        read_image(png(1, 1, 8, 0, b"\0\0"))


def test_many_threads_read_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "LARGE_PIXELS", 1000)  # so that most of them take turns
    datas = [data for odd, data in ODD_FILES if odd.pixels is not None] * 4

    before = [read_image(data) for data in datas]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(before, pool.map(read_image, datas), strict=True):
            assert (one == other).all()


def test_at_most_two_large_pictures_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "LARGE_PIXELS", 100)
    running, most, lock, to_rgb = 0, 0, threading.Lock(), pixels.to_rgb
    second = threading.Event()

    def counted(picture: Image.Image, keep_cmyk: bool) -> np.ndarray:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 2:
                second.set()
        second.wait(5)
        result = to_rgb(picture, keep_cmyk)
        with lock:
            running -= 1
        return result

    monkeypatch.setattr(pixels, "to_rgb", counted)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read_image, [encode(quarters(), "PNG")] * 12))
    assert most == 2


JXL = "JPEG XL needs the extra jxl: pip install flowers[jxl]"


def test_jpeg_xl_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.delitem(Image.OPEN, "JXL", raising=False)
    for start in (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"):
        with pytest.raises(ImageError) as error:
            read_image(start + bytes(32))
        assert str(error.value) == JXL


def test_jpeg_xl_is_upright_and_bounded_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pillow_jxl")
    Image.fromarray(sideways(quarters(), 6)).save(tmp_path / "a.jpg", **FINE, exif=exif(6))
    with Image.open(tmp_path / "a.jpg") as photo:
        packed = encode(photo, "JXL", lossless_jpeg=True)
    assert difference(read_image(packed), quarters()).max() <= 4
    for boxes in (False, True):
        data = encode(quarters(), "JXL", lossless=True, use_container=boxes)
        assert (read_image(data) == quarters()).all()
        with monkeypatch.context() as patch, pytest.raises(ImageError, match="too many pixels"):
            patch.setattr(limits, "_allowed_pixels", quarters().size // 3 - 1)
            read_image(data)
        with pytest.raises(ImageError, match="truncated or broken JXL"):
            read_image(data[:-20])
    for width, height in ((1, 1), (256, 8), (300, 200), (9000, 3), (400, 300), (5, 70000)):
        data = encode(np.zeros((height, width, 3), np.uint8), "JXL")
        monkeypatch.setattr(limits, "_allowed_pixels", width * height - 1)
        with pytest.raises(ImageError, match=rf"too many pixels \({width} x {height}\)"):
            read_image(data)


def test_the_limit_of_pixels_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "_allowed_pixels", limits.MAX_PIXELS)
    data = encode(quarters(), "PNG")
    limits.allow_pixels(quarters().size // 3 - 1)
    with pytest.raises(ImageError, match=r"too many pixels \(48 x 32\)"):
        read_image(data)
    limits.allow_pixels(quarters().size // 3)
    assert (read_image(data) == quarters()).all()
