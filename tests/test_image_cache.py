"""The cache of decoded images: the same pixels, one copy, built once, whole or not at all, gone when it should be."""

import functools
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_memory import PICTURE_BYTES, draw, grown
from jobs_in_processes import answers
from odd_files import half_jpeg
from PIL import Image

from flowers.data import image_cache as cache_module
from flowers.data.augment import Augmentation
from flowers.data.folders import Samples
from flowers.data.image_cache import ImageCache, open_cache
from flowers.data.images import read_image
from flowers.data.loaders import TrainLoader, find_bad_images
from flowers.data.order import Order
from flowers.errors import DataError, FlowersError, ImageError

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    """21 smooth pictures with short sides from 30 to 110 pixels."""
    rng = np.random.default_rng(0)
    paths = [f"photo {index:02d}.{'png' if index % 3 else 'jpg'}" for index in range(21)]
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, path in enumerate(paths):
        noise = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        noise.resize((50 + 3 * index, 30 + 4 * index), Image.Resampling.BICUBIC).save(folder / path)
    return Samples(folder, paths, np.zeros(21, np.int64))


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own in place of /dev/shm, so that tests do not see each other's caches."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(cache_module, "SHARED_MEMORY", str(folder))
    return folder


@pytest.mark.parametrize("threads", [1, 2])
def test_small_pictures_are_kept_as_they_are(samples, tmp_path, threads):
    cache = open_cache(samples, "disk", 200, folder=tmp_path / "cache", threads=threads)
    pictures = [read_image(samples.full_path(index)) for index in range(21)]
    assert all(np.array_equal(cache.read(row), picture) for row, picture in enumerate(pictures))
    assert cache.size_bytes == sum(picture.size for picture in pictures)
    assert cache.bad == []


def test_larger_pictures_are_shrunk_to_the_short_side(samples, tmp_path):
    cache = open_cache(samples, "disk", 64, folder=tmp_path / "cache")
    assert min(cache.read(20).shape[:2]) == 64
    assert cache.read(20).shape == (64, 64, 3)  # was 110 x 110
    assert cache.read(15).shape == (64, 68, 3)  # was 90 x 95
    assert cache.read(3).shape == (42, 59, 3)  # was no larger
    with Image.open(samples.full_path(20)) as picture:
        by_pillow = np.asarray(picture.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(cache.read(20) - by_pillow).max() <= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_views_and_order_are_those_of_the_files(samples, workers):
    """Exactly, where nothing was shrunk; nearly, for all but few, where it was; in the same order either way."""
    order = Order(21, seed=4, batch_size=4)
    augmentation = Augmentation(32, auto_augment="trivial")
    plain = list(TrainLoader(samples, augmentation, order, rank=0, workers=0).epoch(1))
    for short_side, tolerance in ((200, 0.0), (48, 3.0)):
        cache = open_cache(samples, "ram", short_side)
        cached = list(TrainLoader(samples, augmentation, order, rank=0, workers=workers, cache=cache).epoch(1))
        assert [batch.indices.tolist() for batch in cached] == [batch.indices.tolist() for batch in plain]
        apart = [
            (one.images.float() - other.images.float()).abs().mean(dim=(1, 2, 3))
            for one, other in zip(plain, cached, strict=True)
        ]
        assert (torch.cat(apart) <= tolerance).float().mean() >= (0.9 if tolerance else 1)


def test_bad_files_are_listed_and_the_rest_is_served(samples, tmp_path):
    Path(samples.full_path(4)).write_bytes(b"no picture")
    Path(samples.full_path(9)).unlink()
    Path(samples.full_path(3)).write_bytes(half_jpeg())
    cache = open_cache(samples, "disk", 40, folder=tmp_path / "cache")
    assert (cache.bad, cache.num_damaged) == find_bad_images(samples, 0)
    assert [path for path, _ in cache.bad] == ["photo 04.png", "photo 09.jpg"]
    assert cache.num_damaged == 1
    with pytest.raises(ImageError, match="file not found"):
        cache.read(9)
    kept = [path for path in samples.paths if path not in dict(cache.bad)]
    remaining = Samples(samples.root, kept, np.zeros(19, np.int64))
    assert cache.rows(remaining).tolist() == [row for row in range(21) if row not in (4, 9)]
    [batch] = TrainLoader(remaining, Augmentation(24), Order(19, 0, 19), rank=0, workers=0, cache=cache).epoch(0)
    assert sorted(batch.indices.tolist()) == list(range(19))
    again = open_cache(samples, "disk", 40, folder=tmp_path / "cache")
    assert again.bad == cache.bad


def test_no_picture_at_all(samples, tmp_path):
    for index in range(21):
        Path(samples.full_path(index)).write_bytes(b"")
    cache = open_cache(samples, "disk", 40, folder=tmp_path / "cache")
    assert (len(cache.bad), cache.size_bytes) == (21, 0)


def no_decoding(*_, **__):
    raise AssertionError("decoded again")


def test_a_disk_cache_is_found_again_until_something_changes(samples, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    open_cache(samples, "disk", 40, folder=folder)
    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "decode_image", no_decoding)
        open_cache(samples, "disk", 40, folder=folder)
        with pytest.raises(AssertionError, match="decoded again"):
            open_cache(samples, "disk", 41, folder=folder)
    Image.new("RGB", (33, 44)).save(samples.full_path(7))
    assert open_cache(samples, "disk", 40, folder=folder).read(7).shape == (44, 33, 3)
    fewer = Samples(samples.root, samples.paths[:5], samples.targets[:5])
    assert len(open_cache(fewer, "disk", 40, folder=folder).rows(fewer)) == 5


def test_a_ram_cache_leaves_no_name_behind(samples, memory):
    cache = open_cache(samples, "ram", 40)
    assert list(memory.iterdir()) == []
    assert cache.read(0).shape == (30, 50, 3)


def open_and_report(samples: Samples, kind: str, folder: Path, memory: Path, rank: int) -> tuple:
    cache_module.SHARED_MEMORY = str(memory)
    decoded = []
    original = cache_module.decode_image

    def counted(*args, **kwargs):
        decoded.append(args)
        return original(*args, **kwargs)

    cache_module.decode_image = counted
    cache = open_cache(samples, kind, 40, folder=folder)
    return len(decoded) > 0, cache.read(20).tobytes(), os.fstat(cache._file.fileno()).st_ino


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_local_processes_build_once_and_share_one_copy(samples, tmp_path, memory, kind):
    reports = answers(functools.partial(open_and_report, samples, kind, tmp_path / "cache", memory), [0, 1, 2])
    decoded, pixels, files = zip(*reports, strict=True)
    assert sorted(decoded) == [False, False, True]
    assert len(set(pixels)) == 1
    assert len(set(files)) == 1
    assert list(memory.iterdir()) == []


@pytest.mark.processes
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's account of memory")
def test_the_pixels_of_a_ram_cache_are_no_processes_own_memory(tmp_path, memory):
    found = grown(draw(tmp_path, 128), 2, str(memory))
    private, sizes = zip(*((values["private"], values["cache"]) for values in found), strict=True)
    assert set(sizes) == {128 * PICTURE_BYTES}
    # 96 MB; the one that built it keeps some memory that decoding has freed, the other one has no reason for any.
    assert min(private) < sizes[0] / 10
    assert max(private) < sizes[0] / 2


def build_slowly(samples: Samples, kind: str, folder: Path, half_done) -> None:
    decoded = []
    original = cache_module.decode_image

    def slow(*args, **kwargs):
        decoded.append(args)
        if len(decoded) == 32:  # all of them to see how much room they need, then again
            half_done.set()
            time.sleep(60)
        return original(*args, **kwargs)

    cache_module.decode_image = slow
    open_cache(samples, kind, 40, folder=folder)


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_killed_while_building(samples, tmp_path, memory, kind):
    folder = tmp_path / "cache"
    half_done = FORK.Event()
    builder = FORK.Process(target=build_slowly, args=(samples, kind, folder, half_done))
    builder.start()
    assert half_done.wait(60)
    assert list(memory.iterdir()) == [], "no name that a kill could leave behind"
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    assert bool(list(folder.glob("*/.pixels*"))) == (kind == "disk"), "killed in the middle"
    assert not list(folder.glob("*/index.npz"))
    cache = open_cache(samples, kind, 40, folder=folder)
    assert np.array_equal(cache.read(0), read_image(samples.full_path(0)))
    assert not list(folder.glob("*/.pixels*"))


def test_an_unnamed_cache_is_freed_with_its_last_reader(samples, memory):
    """No name, no other descriptor: the kernel has nothing left to keep it for."""
    cache = open_cache(samples, "ram", 40)
    by_descriptor = f"/proc/{os.getpid()}/fd/{cache._file.fileno()}"
    assert os.stat(by_descriptor).st_nlink == 0
    del cache
    assert not os.path.exists(by_descriptor)


def test_a_cache_that_does_not_fit_is_refused_before_it_is_built(samples, tmp_path, memory, monkeypatch):
    monkeypatch.setattr(cache_module, "available_memory_bytes", lambda: 100_000)
    with pytest.raises(DataError, match=r"--cache ram: 21 images of short side 40 take about \d+ MB"):
        open_cache(samples, "ram", 40)
    assert not list(memory.glob("*/*pixels*"))
    open_cache(samples, "disk", 40, folder=tmp_path / "cache")


def test_a_full_disk_while_building_is_one_line_and_leaves_nothing(samples, tmp_path, monkeypatch):
    decoded, picture = [], cache_module._picture

    def full(*args):
        decoded.append(args)
        if len(decoded) > 30:
            raise OSError(28, "No space left on device")
        return picture(*args)

    monkeypatch.setattr(cache_module, "_picture", full)
    with pytest.raises(FlowersError, match="the disk is full"):
        open_cache(samples, "disk", 40, folder=tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*/*pixels*"))
    assert not list(tmp_path.glob("cache/*/.*pixels*"))


def test_a_place_that_cannot_be_written_is_one_line(samples, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FlowersError, match="not a folder"):
        open_cache(samples, "disk", 40, folder=tmp_path / "file")


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_it_pickles_by_what_it_maps(samples, tmp_path, kind):
    cache = open_cache(samples, kind, 40, folder=tmp_path / "cache")
    pickled = pickle.dumps(cache)
    assert len(pickled) < cache.size_bytes / 10
    copy = pickle.loads(pickled)
    assert isinstance(copy, ImageCache)
    assert all(np.array_equal(copy.read(row), cache.read(row)) for row in range(21))


@pytest.mark.parametrize("name", ["pixels.u8", "index.npz"])
@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "removed", "a folder"])
def test_a_damaged_cache_is_built_again(samples, tmp_path, capsys, name, how):
    open_cache(samples, "disk", 64, folder=tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob(f"*/{name}")
    whole = file.read_bytes()
    if how in ("removed", "a folder"):
        file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how != "removed":
        middle = 300  # among the values: a date in the zip may well be another
        flipped = whole[:middle] + bytes([whole[middle] ^ 0x10]) + whole[middle + 1 :]
        file.write_bytes({"flipped": flipped, "cut": whole[:middle], "emptied": b""}[how])
    capsys.readouterr()
    cache = open_cache(samples, "disk", 64, folder=tmp_path / "cache")
    assert file.stat().st_size == len(whole)
    is_told = (name, how) != ("index.npz", "removed")  # then it was never complete, as after a kill
    assert ("it is built again" in capsys.readouterr().err) == is_told
    assert all(cache.read(row).shape[2] == 3 for row in range(21))
    if name == "pixels.u8":
        assert file.read_bytes() == whole
