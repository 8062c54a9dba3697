"""The decoder: every kind of file gives its right pixels, or the reason why there are none."""

import os
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from odd_files import FINE, OddFile, encode, exif, odd_files, png, quarters, sideways
from PIL import Image

from flowers.data import images, pixels
from flowers.data.augment import Preprocessing
from flowers.data.images import read_image
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
    monkeypatch.setattr(images, "decode_jpeg", None)


@pytest.mark.parametrize(("odd", "data"), ODD_FILES, ids=[odd.name for odd, _ in ODD_FILES])
def test_odd_file(odd: OddFile, data: bytes, tmp_path: Path):
    path = tmp_path / odd.name
    path.write_bytes(data)
    if odd.pixels is None:
        with pytest.raises(ImageError) as error:
            read_image(path)
        assert str(error.value) == odd.reason
        return
    image = read_image(path)
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
            patch.setattr(images, "decode_jpeg", None)
            assert difference(fast, read_image(data)).max() <= SAME_WITHIN


def test_both_ways_give_the_same_real_photo(flowers102: Path, monkeypatch: pytest.MonkeyPatch):
    paths = sorted((flowers102 / "photos").iterdir())[:10]
    fast = [read_image(path) for path in paths]
    monkeypatch.setattr(images, "decode_jpeg", None)
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
    decode = images.decode_jpeg
    monkeypatch.setattr(images, "decode_jpeg", lambda *args, **kwargs: taken.append(1) or decode(*args, **kwargs))
    read_image(encode(photo(), "JPEG"))
    assert taken


def test_pillow_takes_over_where_torchvision_io_gives_up(monkeypatch: pytest.MonkeyPatch):
    def gives_up(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Couldn't load the image extension.")

    data = encode(quarters(), "JPEG", **FINE)
    monkeypatch.setattr(images, "decode_jpeg", gives_up)
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
    for cut in cuts(len(data))[3:]:
        damaged = data[:cut] + (bytes(len(data) - cut) if rest == "zeros" else b"")
        with pytest.raises(ImageError, match="truncated JPEG"):
            read_image(damaged, min_short_side=min_short_side)


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
    """They would tear the progress bar. libtiff cannot be silenced, and speaks of broken TIFFs."""
    for data in (data for odd, data in ODD_FILES if not odd.name.endswith(".tif")):
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


def test_pixel_limit_counts_what_is_decoded():
    data = encode(photo(400, 600), "JPEG")
    assert read_image(data, max_pixels=240_000).shape == (400, 600, 3)
    with pytest.raises(ImageError, match=r"too many pixels \(600 x 400\)"):
        read_image(data, max_pixels=239_999)
    assert read_image(data, min_short_side=50, max_pixels=20_000).shape == (50, 75, 3)


def test_jpeg_of_several_scans_is_limited_at_its_full_size():
    """libjpeg keeps all coefficients of such a file in memory, however small the result."""
    data = encode(photo(400, 600), "JPEG", progressive=True)
    assert read_image(data, min_short_side=50).shape == (50, 75, 3)
    with pytest.raises(ImageError, match="too many pixels"):
        read_image(data, min_short_side=50, max_pixels=20_000)
    two_scans = encode(photo(400, 600), "JPEG")[:-2] + b"\xff\xda\x00\x02\xff\xd9"
    with pytest.raises(ImageError, match="too many pixels"):
        read_image(two_scans, min_short_side=50, max_pixels=20_000)


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
    def no_memory(picture: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(pixels, "to_rgb", no_memory)
    with pytest.raises(ImageError, match="not enough memory"):
        read_image(png(1, 1, 8, 0, b"\0\0"))


def test_many_threads_read_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "LARGE_PIXELS", 1000)  # so that most of them take turns
    datas = [data for odd, data in ODD_FILES if odd.pixels is not None] * 4

    before = [read_image(data) for data in datas]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(before, pool.map(read_image, datas), strict=True):
            assert (one == other).all()


def test_at_most_two_large_pictures_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "LARGE_PIXELS", 100)
    running, most, lock, to_rgb = 0, 0, threading.Lock(), pixels.to_rgb
    second = threading.Event()

    def counted(picture: Image.Image) -> np.ndarray:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 2:
                second.set()
        second.wait(5)
        result = to_rgb(picture)
        with lock:
            running -= 1
        return result

    monkeypatch.setattr(pixels, "to_rgb", counted)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read_image, [encode(quarters(), "PNG")] * 12))
    assert most == 2
