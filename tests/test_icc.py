"""Colour profiles: converted where a model was trained so, to the right colours; damaged ones change nothing."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from color_profiles import (
    ADOBE_PRIMARIES,
    P3_PRIMARIES,
    cmyk_profile,
    grey_profile,
    lab_of_ink,
    rgb_profile,
    srgb_of_lab,
    srgb_of_rgb,
    srgb_profile,
    with_profile,
)
from pictures import differences
from PIL import Image

from flowers.data.folders import Samples
from flowers.data.formats import icc
from flowers.data.formats.limits import MAX_PROFILE_BYTES
from flowers.data.image_cache import open_cache
from flowers.data.images import as_rgb, read_image
from flowers.data.preprocessing import Preprocessing

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
PATCHES = np.kron(COLOURS, np.ones((16, 16, 1), np.uint8))
P3 = rgb_profile(P3_PRIMARIES)
KINDS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}


@pytest.mark.parametrize("primaries", [P3_PRIMARIES, ADOBE_PRIMARIES], ids=["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("kind", KINDS)
def test_colours_are_those_of_the_profile(kind: str, primaries: np.ndarray) -> None:
    data = with_profile(PATCHES, kind, rgb_profile(primaries), **KINDS[kind])
    stored = with_profile(PATCHES, kind, None, **KINDS[kind])
    wanted = srgb_of_rgb(PATCHES, primaries)
    assert differences(wanted, PATCHES).max() > 40
    assert differences(read_image(data, to_srgb=True), wanted).max() <= (8 if kind == "JPEG" else 1)
    assert np.array_equal(read_image(data), read_image(stored)), "older models see the numbers in the file"
    assert np.array_equal(read_image(stored, to_srgb=True), read_image(stored))


def test_a_pillow_image_is_converted_as_its_file_is(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(with_profile(PATCHES, "PNG", P3))
    with Image.open(path) as picture:
        assert np.array_equal(as_rgb(picture, to_srgb=True).image, read_image(path, to_srgb=True))
        assert np.array_equal(as_rgb(picture).image, PATCHES)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_ink_becomes_the_colours_that_it_prints(kind: str) -> None:
    inks = list(itertools.product((0, 1), repeat=4))
    row = Image.frombytes("CMYK", (16, 1), (255 * np.array(inks, np.uint8)).tobytes())
    data = with_profile(row.resize((256, 16), Image.Resampling.NEAREST), kind, cmyk_profile(), **KINDS[kind])
    found = read_image(data, to_srgb=True)[8, 8::16]
    wanted = np.array([srgb_of_lab(lab_of_ink(ink)) for ink in inks])
    assert differences(found, wanted).max() <= 8  # a CIELAB of 8 bits, and the JPEG
    assert differences(read_image(data)[8, 8::16], wanted).max() > 100, "the plain formula gives other colours"


def test_grey_is_converted_in_every_depth() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    wanted = srgb_of_rgb(np.repeat(ramp[:, :, None], 3, 2), P3_PRIMARIES, gamma=1.0)
    for picture, kind in ((ramp, "PNG"), (ramp, "JPEG"), (ramp.astype(np.uint16) * 257, "PNG")):
        found = read_image(with_profile(picture, kind, grey_profile(1.0)), to_srgb=True)
        assert differences(found, wanted)[:, 16:].max() <= (2 if kind == "PNG" else 8)


def test_large_pictures_are_shrunk_before_they_are_converted() -> None:
    view = Preprocessing(32, 32)
    data = with_profile(PATCHES, "PNG", P3)
    small = read_image(data, min_short_side=32, to_srgb=True)
    assert small.shape[:2] == (32, 48)
    assert differences(view.view(small), view.view(read_image(data, to_srgb=True))).mean() < 4


def test_profiles_of_srgb_and_of_other_pixels_are_left_alone() -> None:
    assert icc.find_transform(srgb_profile(), "RGB") is None
    assert icc.find_transform(srgb_profile(), "L") is None
    for profile, mode in ((P3, "CMYK"), (cmyk_profile(), "RGB"), (grey_profile(1.0), "RGB"), (cmyk_profile(), "L")):
        assert icc.find_transform(profile, mode) is None


def test_damaged_profiles_change_nothing() -> None:
    cut = [P3[:length] for length in (0, 1, 36, 100, 127, 128, 132, 140, 200, len(P3) // 2)]
    large = P3[:128] + P3[128:].ljust(MAX_PROFILE_BYTES, b"\0")
    link = P3[:12] + b"link" + P3[16:]
    for profile in (*cut, b"\xff" * 300, large, link, P3[:128] + b"\xff" * 200, cmyk_profile()[:300]):
        for kind in ("PNG", "JPEG"):
            data = with_profile(PATCHES, kind, profile, **KINDS[kind])
            assert np.array_equal(read_image(data, to_srgb=True), read_image(data))


def test_bytes_that_are_changed_in_a_profile_stop_no_picture() -> None:
    rng = np.random.default_rng(0)
    picture = PATCHES[:16, :16].copy()
    for profile, mode in ((P3, "RGB"), (grey_profile(1.8), "L")):
        for _ in range(50):
            changed = bytearray(profile)
            for place in rng.integers(128, len(profile), 4):
                changed[place] = rng.integers(256)
            assert icc.convert(picture.copy(), icc.find_transform(bytes(changed), mode), None).shape == picture.shape


def test_a_disk_cache_of_stored_numbers_is_not_taken_for_one_of_converted_ones(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(with_profile(PATCHES, "PNG", P3))
    samples = Samples(tmp_path, ["photo.png"], np.zeros(1, np.int64))
    for to_srgb in (False, True, False):
        cache = open_cache(samples, "disk", 500, to_srgb=to_srgb, folder=tmp_path / "cache")
        assert np.array_equal(cache.read(0), read_image(tmp_path / "photo.png", to_srgb=to_srgb))


def test_a_model_without_the_entry_takes_numbers_as_they_are() -> None:
    old = Preprocessing(256, 224).to_dict()
    assert "to_srgb" not in old, "else the hashes of older models would change"
    assert not Preprocessing.from_dict(old).to_srgb
    new = Preprocessing(256, 224, to_srgb=True)
    assert Preprocessing.from_dict(new.to_dict()) == new
