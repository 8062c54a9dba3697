"""Decoded images, kept: packed into one memory-mapped file that the processes of a machine share.

Decoding is most of what a view costs, so a training set that fits is decoded once (``--cache ram`` or ``disk``). A
picture is kept with its short side at most ``short_side`` (``Augmentation.cache_short_side``), shrunk with
antialiasing, never enlarged. One that was not shrunk gives exactly the views that its file gives; one that was
gives the same views, a touch softer, but for some 3 in 1000, which get another crop: there the last rounding of the
picture's proportions decides whether a drawn box fits. The order of images is not touched at all.

One process builds, the others wait at a lock and then map the same file. A build that is killed leaves no index, and
the next start builds again. ``ram`` lies in /dev/shm and its name is removed as soon as every local process has it
open, so that the memory is given back however the job ends; ``disk`` stays for the next start.
"""

import atexit
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from flowers import console
from flowers.data.folders import Samples
from flowers.data.images import read_image
from flowers.data.loader_processes import SHARED_MEMORY, make_loader, run_loader
from flowers.data.scan import file_stamps
from flowers.errors import DataError, ImageError
from flowers.files import explain_os_error, write_atomically
from flowers.machine import available_memory_bytes, local_world_size

FORMAT = 1
_CHUNK = 16  # images that a loader process decodes at a time
_PIXELS, _INDEX, _LOCK, _READERS = "pixels.u8", "index.npz", "lock", "readers"


class ImageCache:
    """An open cache: ``read`` gives a picture by its row. Pickles by what it maps, not by value.

    Attributes:
        size_bytes: of all pixels.
    """

    def __init__(
        self,
        pixels_path: str | os.PathLike,
        places: np.ndarray,
        reasons: Mapping[int, str],
        paths: Sequence[str] = (),
    ):
        """Map a complete cache.

        Args:
            pixels_path: the packed pixels.
            places: int64 [N, 3]: offset in bytes, height, width of each row.
            reasons: row to why its file gave no picture.
            paths: [N] path of each row, for ``rows`` and ``bad``.
        """
        self._file = open(pixels_path, "rb")  # noqa: SIM115 - kept, as its name may go
        self._places, self._reasons, self._paths = places, reasons, paths
        self.size_bytes = os.fstat(self._file.fileno()).st_size
        # Copy on write, as torch wants writable arrays; nobody writes, so all processes share the same pages.
        mapped = np.memmap(self._file, np.uint8, "c") if self.size_bytes else np.empty(0, np.uint8)
        self._pixels = np.asarray(mapped)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(path, reason) of the files that gave no picture when the cache was built, as ``find_bad_images`` gives."""
        return [(self._paths[row], reason) for row, reason in self._reasons.items()]

    def rows(self, samples: Samples) -> np.ndarray:
        """Where the images of a list stand, which is all or part of what was cached.

        Returns:
            int64 [len(samples)], for ``read``.
        """
        row_of = {path: row for row, path in enumerate(self._paths)}
        return np.fromiter((row_of[path] for path in samples.paths), np.int64, len(samples))

    def read(self, row: int) -> np.ndarray:
        """The picture of a row.

        Returns:
            uint8 [H, W, 3]

        Raises:
            ImageError: its file gave no picture when the cache was built.
        """
        if row in self._reasons:
            raise ImageError(self._reasons[row])
        offset, height, width = self._places[row].tolist()
        return self._pixels[offset : offset + height * width * 3].reshape(height, width, 3)

    def __reduce__(self):
        # By descriptor: the name of a cache in RAM is gone by now. Good for as long as this process lives.
        by_descriptor = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        path = by_descriptor if os.path.exists(by_descriptor) else self._file.name
        return ImageCache, (path, self._places, self._reasons)


def open_cache(
    samples: Samples, kind: Literal["ram", "disk"], short_side: int, *, folder: Path | None = None, workers: int = 0
) -> ImageCache:
    """Map the cache of these images, built now if need be, by one of the processes of this machine.

    Args:
        samples: the training set.
        kind: "ram": shared memory, gone when the job ends. "disk": ``folder``, found again at the next start.
        short_side: pixels; see ``Augmentation.cache_short_side``.
        folder: where a disk cache lies, such as the run folder.
        workers: loader processes that decode.

    Raises:
        DataError: it would not fit, its place cannot be locked, or is somebody else's.
        FlowersError: its place cannot be written.
    """
    name = _fingerprint(samples, short_side)
    if kind == "ram":
        parent = Path(SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else tempfile.gettempdir())
        prefix = f"flowers-{os.getuid()}-"
        place = parent / f"{prefix}{name}"
        for other in set(parent.glob(f"{prefix}*")) - {place}:
            _remove_if_free(other)  # left by a job that was killed while it built
    else:
        place = Path(folder) / name
    try:
        with _locked(place):
            if kind == "ram" and place.stat().st_uid != os.getuid():  # anybody may make folders there
                raise DataError(f"{place} belongs to another user; use --cache disk")
            if not (place / _INDEX).exists():
                _check_room(samples, kind, short_side, place)
                _build(samples, short_side, place, workers)
            cache = _open(place, samples)
            if kind == "ram":
                _count_reader(place)
    except OSError as error:
        raise explain_os_error(error, place) from error
    where = "memory" if kind == "ram" else str(place)
    console.say(
        f"cache: {len(samples) - len(cache.bad)} images, {cache.size_bytes / 1e9:.2f} GB in {console.plain(where)}"
    )
    return cache


def _fingerprint(samples: Samples, short_side: int) -> str:
    """A name that changes with any file's path, size or time of change, and with what is kept of it."""
    digest = hashlib.sha256(f"{FORMAT} {short_side} {len(samples)}".encode())
    stamps = file_stamps(samples.full_path, len(samples))
    for path, (size, changed_ns) in zip(samples.paths, stamps, strict=True):
        seen = "missing" if size < 0 else f"{size} {changed_ns}"
        digest.update(os.fsencode(path) + b"\0" + seen.encode() + b"\0")
    return digest.hexdigest()[:24]


def _check_room(samples: Samples, kind: str, short_side: int, place: Path) -> None:
    """Refuse a cache that would fill the disk or the memory, going by every hundredth image or so.

    Raises:
        DataError: with the sizes.
    """
    probe = _Decoded(samples, short_side)
    step = max(1, len(samples) // 100)
    flat, places, _ = probe.__getitems__(range(0, len(samples), step))
    needed = flat.numel() / max(1, len(places)) * len(samples)
    free_bytes = shutil.disk_usage(place).free
    if kind == "ram":
        free_bytes = min(free_bytes, available_memory_bytes() or free_bytes)
    if needed > 0.9 * free_bytes:
        instead = "--cache disk or none" if kind == "ram" else "--cache none, or an --output-dir with more room"
        raise DataError(
            f"--cache {kind}: {len(samples)} images of short side {short_side} take about {needed / 1e9:.1f} GB, "
            f"{place.parent} has room for {0.9 * free_bytes / 1e9:.1f} GB; use {instead}, or a smaller --image-size"
        )


def _build(samples: Samples, short_side: int, place: Path, workers: int) -> None:
    """Decode everything into the packed file; the index, written last, says that it is whole."""
    for left in place.glob(f".{_PIXELS}*"):  # by a build that was killed
        left.unlink()
    chunks = [range(first, min(first + _CHUNK, len(samples))) for first in range(0, len(samples), _CHUNK)]
    dataset = _Decoded(samples, short_side)
    loader = make_loader(dataset, chunks, workers, batch_bytes=_CHUNK * 2 * short_side * short_side * 3)
    places: list[tuple[int, int, int]] = []
    reasons: dict[int, str] = {}
    offset = 0
    with (
        write_atomically(place / _PIXELS, "wb") as file,
        console.progress("caching images", len(samples)) as meter,
    ):
        for flat, shapes, wrong in run_loader(loader):
            file.write(memoryview(flat.numpy()))
            reasons.update((len(places) + row, reason) for row, reason in wrong)
            for height, width in shapes:
                places.append((offset, height, width))
                offset += height * width * 3
            meter.advance(len(shapes))
    with write_atomically(place / _INDEX, "wb") as file:
        rows, texts = np.array(list(reasons), np.int64), np.array(list(reasons.values()), np.str_)
        np.savez(file, places=np.array(places, np.int64).reshape(-1, 3), bad_rows=rows, reasons=texts)


def _open(place: Path, samples: Samples) -> ImageCache:
    with np.load(place / _INDEX, allow_pickle=False) as index:
        reasons = dict(zip(index["bad_rows"].tolist(), index["reasons"].tolist(), strict=True))
        return ImageCache(place / _PIXELS, index["places"], reasons, samples.paths)


class _Decoded(torch.utils.data.Dataset):
    """A dataset whose ``__getitems__`` decodes a chunk.

    It gives their pixels one after the other (uint8, flat), their (height, width), (0, 0) for none, and
    (place in the chunk, reason) of those.
    """

    def __init__(self, samples: Samples, short_side: int):
        self._samples, self._short_side = samples, short_side

    def __getitems__(self, indices: range) -> tuple[torch.Tensor, list[tuple[int, int]], list[tuple[int, str]]]:
        pictures, shapes, reasons = [], [], []
        for index in indices:
            try:
                image = read_image(self._samples.full_path(index), min_short_side=self._short_side)
                picture = _shrink(torch.from_numpy(image), self._short_side)
                pictures.append(picture.reshape(-1))
                shapes.append((picture.shape[0], picture.shape[1]))
            except ImageError as error:
                reasons.append((len(shapes), str(error)))
                shapes.append((0, 0))
        return torch.cat(pictures) if pictures else torch.empty(0, dtype=torch.uint8), shapes, reasons


def _shrink(image: torch.Tensor, short_side: int) -> torch.Tensor:
    """Bring the short side of a uint8 [H, W, 3] picture down to ``short_side``, if it is longer."""
    short = min(image.shape[:2])
    if short <= short_side:
        return image
    size = [round(length * short_side / short) for length in image.shape[:2]]
    shrunk = functional.interpolate(image[None].permute(0, 3, 1, 2), size, mode="bicubic", antialias=True)
    return shrunk[0].permute(1, 2, 0)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold a cache's lock, made with its folder; it is let go of when this process ends, however that happens.

    Raises:
        DataError: the file system knows no locks.
    """
    while True:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileNotFoundError), open(place / _LOCK, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise DataError(f"{place}: this file system has no locks ({error}); use --cache ram") from error
                console.say("cache: another process is building it, waiting")
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if _is_at(lock.fileno(), place / _LOCK):
                    yield
                    return
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough: loader processes may hold a copy
        # The folder was removed while we waited: start over.


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _count_reader(place: Path) -> None:
    """Remove a RAM cache's names once all local processes have it open; memory goes when the last one ends."""
    readers = place / _READERS
    count = int(readers.read_text()) + 1 if readers.exists() else 1
    if count >= local_world_size():
        shutil.rmtree(place, ignore_errors=True)
    else:
        readers.write_text(str(count))
        atexit.register(_remove_if_free, place)  # should the others never come


def _remove_if_free(place: Path) -> None:
    """Remove a RAM cache that nobody is building or opening."""
    with contextlib.suppress(OSError), open(place / _LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place, ignore_errors=True)
