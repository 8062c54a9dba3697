"""The drawn sample set: same bytes for a seed, whole or not there, form and not colour tells species apart."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers.datasets import drawn
from flowers.datasets.drawn import draw_garden, draw_photo
from flowers.datasets.drawn_species import SPECIES
from flowers.errors import DataError, UsageError

SMALL = {"species": 3, "train": 3, "valid": 1, "test": 0, "image_size": 48}


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_set_is_an_image_folder_tree(tmp_path):
    draw_garden(tmp_path / "set", **SMALL)
    paths = list(files_of(tmp_path / "set"))
    assert [path for path in paths if path.endswith(".jpg")] == [
        *(
            f"train/{folder}/{name}_000{n}.jpg"
            for folder, name in enumerate(SPECIES, 1)
            if folder < 4
            for n in (1, 2, 3)
        ),
        *(f"valid/{folder}/{name}_0001.jpg" for folder, name in enumerate(SPECIES, 1) if folder < 4),
    ]
    assert not (tmp_path / "set" / "test").exists()
    names = json.loads((tmp_path / "set" / "cat_to_name.json").read_text())
    assert names == {"1": "daisy", "2": "poppy", "3": "tulip"}
    with Image.open(tmp_path / "set/train/1/daisy_0001.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))


def test_bytes_depend_on_the_seed_and_not_on_the_processes(tmp_path):
    draw_garden(tmp_path / "a", **SMALL)
    draw_garden(tmp_path / "b", **SMALL, processes=2)
    draw_garden(tmp_path / "c", **SMALL, seed=1)
    a, b, c = (files_of(tmp_path / name) for name in "abc")
    assert a == b
    pictures = [path for path in a if path.endswith(".jpg")]
    assert all(a[path] != c[path] for path in pictures)
    assert len({a[path] for path in pictures}) == len(pictures)


def test_a_larger_set_contains_the_smaller(tmp_path):
    draw_garden(tmp_path / "small", **SMALL)
    draw_garden(tmp_path / "large", **{**SMALL, "species": 4, "train": 4, "test": 1})
    small, large = files_of(tmp_path / "small"), files_of(tmp_path / "large")
    pictures = [path for path in small if path.endswith(".jpg")]
    assert all(large[path] == small[path] for path in pictures)


def test_the_same_set_is_kept_and_nothing_else_is_replaced(tmp_path):
    draw_garden(tmp_path / "set", **SMALL)
    picture = tmp_path / "set/train/1/daisy_0001.jpg"
    before = picture.stat().st_mtime_ns
    draw_garden(tmp_path / "set", **SMALL)
    assert picture.stat().st_mtime_ns == before
    (tmp_path / "set" / "train").rename(tmp_path / "train")
    with pytest.raises(DataError, match=r"only a part of the set \(no train/\)"):
        draw_garden(tmp_path / "set", **SMALL)
    with pytest.raises(DataError, match="other settings"):
        draw_garden(tmp_path / "set", **SMALL, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="other files"):
        draw_garden(tmp_path / "mine", **SMALL)
    assert (tmp_path / "mine" / "photo.jpg").read_bytes() == b"mine"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    draw_garden(tmp_path / "set", **SMALL)
    assert (tmp_path / "set" / drawn.MARKER).exists()


def test_a_failed_run_leaves_no_set(tmp_path, monkeypatch):
    calls = iter(range(5))

    def draw(task):
        if next(calls, None) is None:
            raise OSError(28, "No space left on device")
        return b"jpeg"

    monkeypatch.setattr(drawn, "_draw", draw)
    with pytest.raises(Exception, match="disk is full"):
        draw_garden(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_set_and_the_next_one_is_whole(tmp_path):
    code = f"from flowers.datasets.drawn import draw_garden; draw_garden({str(tmp_path / 'set')!r}, image_size=64)"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 30
        while not any(tmp_path.rglob("*.jpg")) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert any(tmp_path.rglob("*.jpg"))
    assert not (tmp_path / "set").exists()
    draw_garden(tmp_path / "set", **SMALL)
    assert len(list((tmp_path / "set").rglob("*.jpg"))) == 12


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"species": 17}, "--species: got 17, expected 2 to 16"),
        ({"species": 1}, "--species: got 1"),
        ({"train": 0}, "--train: got 0 images a class, expected 1 to 9999"),
        ({"valid": -1}, "--valid: got -1 images a class, expected 0 to 9999"),
        ({"image_size": 8}, "--image-size: got 8"),
        ({"seed": -1}, "--seed: got -1"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, setting, message):
    with pytest.raises(UsageError, match=message):
        draw_garden(tmp_path / "set", **{**SMALL, **setting})
    assert not (tmp_path / "set").exists()


def test_colours_do_not_tell_the_species():
    """The nearest neighbour by colour histogram is wrong nearly as often as a guess would be."""

    def histogram(name: str, index: int) -> np.ndarray:
        rng = np.random.default_rng([7, list(SPECIES).index(name), index])
        pixels = np.asarray(Image.open(io.BytesIO(draw_photo(name, rng, 64)))).astype(int) // 52
        codes = (pixels[..., 0] * 5 + pixels[..., 1]) * 5 + pixels[..., 2]
        return np.sqrt(np.bincount(codes.ravel(), minlength=125) / codes.size)

    names = list(SPECIES)[:12]
    known = np.array([[histogram(name, index) for index in range(12)] for name in names])
    asked = np.array([[histogram(name, 100 + index) for index in range(5)] for name in names])
    likeness = asked.reshape(60, -1) @ known.reshape(144, -1).T
    guesses = likeness.argmax(axis=1) // 12
    assert (guesses == np.repeat(np.arange(12), 5)).mean() < 0.4


@pytest.mark.parametrize("name", SPECIES)
def test_every_species_shows_on_its_ground(name, monkeypatch):
    """Each is drawn large enough to see: it changes a fair share of the picture."""

    def photos() -> np.ndarray:
        files = [draw_photo(name, np.random.default_rng(index), 64) for index in range(4)]
        return np.array([np.asarray(Image.open(io.BytesIO(data))) for data in files]).astype(int)

    with_flower = photos()
    monkeypatch.setitem(SPECIES, name, lambda canvas, colours: None)
    changed = abs(with_flower - photos()).max(axis=3) > 40
    assert np.median(changed.mean(axis=(1, 2))) > 0.08
