"""Cache decoded images in one memory-mapped file that the processes of a machine share.

Decoding is most of what a view costs, so a training set that fits is decoded once (``--cache ram`` or ``disk``). A
picture is kept with its short side at most ``short_side`` (``Augmentation.cache_short_side``), shrunk with
antialiasing, never enlarged. One that was not shrunk gives exactly the views that its file gives; one that was
gives the same views, a touch softer, but for some 3 in 1000, which get another crop: there the last rounding of the
picture's proportions decides whether a drawn box fits. The order of images is not touched at all.

``disk`` is built by the main process, is whole or has no index, and stays for the next start, which checks its CRC-32
and builds a damaged one again. ``ram`` is built by one process of each machine, in shared memory and without a name:
the others open it through that process, and the kernel frees it when the last one ends, however that happens.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from flowers import console
from flowers.data import pixels
from flowers.data.folders import Samples
from flowers.data.images import Decoded, decode_image
from flowers.data.loader_processes import SHARED_MEMORY
from flowers.data.scan import file_stamps
from flowers.data.threads import in_order
from flowers.distributed import from_all, from_main
from flowers.environment import first_rank_here, rank
from flowers.errors import DataError, ImageError
from flowers.files import NPZ_DAMAGE, explain_os_error, remove, write_atomically
from flowers.machine import available_memory_bytes
from flowers.retries import retries

FORMAT = 1
_PIXELS, _INDEX = "pixels.u8", "index.npz"
_BLOCK = 2**22  # bytes read at a time


class _Decoding(NamedTuple):
    """How a picture is decoded for the cache."""

    short_side: int
    to_srgb: bool


class ImageCache:
    """An open cache: ``read`` gives a picture by its row. Pickled by reference to the file, not by value.

    Attributes:
        size_bytes: of all pixels.
        num_damaged: files that gave a picture although they are damaged.
    """

    def __init__(self, pixels_path: str | os.PathLike, index: Mapping[str, np.ndarray], paths: Sequence[str] = ()):
        """Map a complete cache.

        Args:
            pixels_path: the packed pixels.
            index: as ``_decode_all`` gives it.
            paths: [N] path of each row, for ``rows`` and ``bad``.
        """
        self._file = open(pixels_path, "rb")  # noqa: SIM115 - kept: it may have no name
        self._index, self._places, self._paths = index, index["places"], paths
        self._reasons = dict(zip(index["bad_rows"].tolist(), index["reasons"].tolist(), strict=True))
        self.num_damaged = int(index.get("damaged", 0))  # earlier versions did not count
        self.size_bytes = os.fstat(self._file.fileno()).st_size
        # Copy on write, as torch wants writable arrays; nobody writes, so all processes share the same pages.
        mapped = np.memmap(self._file, np.uint8, "c") if self.size_bytes else np.empty(0, np.uint8)
        self._pixels = np.asarray(mapped)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(path, reason) of the files that gave no picture when the cache was built, as ``find_bad_images`` gives."""
        return [(self._paths[row], reason) for row, reason in self._reasons.items()]

    def rows(self, samples: Samples) -> np.ndarray:
        """Find the rows of the images of a list, which is all or part of what was cached.

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
        # By descriptor: a cache in RAM has no name. Good for as long as this process lives.
        return ImageCache, (_path_of(self._file), self._index)


def open_cache(
    samples: Samples,
    kind: Literal["ram", "disk"],
    short_side: int,
    *,
    to_srgb: bool = False,
    folder: Path | None = None,
    threads: int = 1,
) -> ImageCache:
    """Map the cache of these images, built now if need be. All processes of a job call this together.

    Args:
        samples: the training set.
        kind: "ram": shared memory, gone when the job ends. "disk": ``folder``, found again at the next start.
        short_side: pixels; see ``Augmentation.cache_short_side``.
        to_srgb: as in ``flowers.data.images.decode_image``.
        folder: where a disk cache lies, such as the run folder.
        threads: how many decode.

    Raises:
        DataError: it would not fit, or is not to be seen from this process.
        FlowersError: its place cannot be written.
        PeerError: one of these on another process.
    """
    decoding = _Decoding(short_side, to_srgb)
    if kind == "ram":
        cache = _share_in_memory(samples, decoding, threads)
    else:
        place = Path(folder) / _fingerprint(samples, decoding)
        from_main(lambda: _build_on_disk(samples, decoding, place, threads))
        cache = _open(place / _PIXELS, place / _INDEX, samples)
    where = "memory" if kind == "ram" else str(place)
    images = console.counted(len(samples) - len(cache.bad), "image")
    console.say(f"cache: {images}, {cache.size_bytes / 1e9:.2f} GB in {console.plain(where)}")
    return cache


def _build_on_disk(samples: Samples, decoding: _Decoding, place: Path, threads: int) -> None:
    """Write the pixels, then the index, whose presence says that the pixels are whole; do nothing if both are there."""
    if os.path.lexists(place / _INDEX):
        if _is_whole(place):
            return
        console.warn(
            f"{console.plain(str(place))}: this image cache is damaged or of an earlier version; it is built again"
        )
    for old in (place / _INDEX, place / _PIXELS):
        remove(old)
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in place.glob(f".{_PIXELS}*"):  # by a build that was killed
            left.unlink()
    except OSError as error:
        raise explain_os_error(error, place) from error
    _check_room(samples, "disk", decoding, place.parent, threads)
    with write_atomically(place / _PIXELS, "wb") as file:
        index = _decode_all(samples, decoding, threads, file)
    with write_atomically(place / _INDEX, "wb") as file:
        np.savez(file, **index)


def _is_whole(place: Path) -> bool:
    """True if the pixels are those that the index was written for; they are read once, from front to back."""

    def compare() -> bool:
        index, crc = _read_index(place / _INDEX), 0
        written = [int(index[name]) for name in ("size_bytes", "crc32")]
        with open(place / _PIXELS, "rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            while size_bytes == written[0] and (block := file.read(_BLOCK)):
                crc = zlib.crc32(block, crc)
        return [size_bytes, crc] == written

    try:
        return retries.read(compare)
    except (OSError, *NPZ_DAMAGE):
        return False


def _share_in_memory(samples: Samples, decoding: _Decoding, threads: int) -> ImageCache:
    """Build on one process of each machine, in files without a name, which the others open while it has them open."""
    memory = Path(SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else tempfile.gettempdir())
    builder = first_rank_here() if os.path.isdir("/proc/self/fd") else rank()  # not on Linux: a cache for each
    caches: list[ImageCache] = []
    with contextlib.ExitStack() as open_files:

        def build() -> list[str] | None:
            if rank() != builder:
                return None
            _check_room(samples, "ram", decoding, memory, threads)
            try:
                pixels, index = (open_files.enter_context(tempfile.TemporaryFile(dir=memory)) for _ in range(2))
                np.savez(index, **_decode_all(samples, decoding, threads, pixels))
                pixels.seek(0)
                index.seek(0)
            except OSError as error:
                raise explain_os_error(error, memory) from error
            return [_path_of(pixels), _path_of(index)]

        paths = from_all(build)[builder]
        from_all(lambda: caches.append(_open(*paths, samples)))
    return caches[0]


def _path_of(file: IO) -> str:
    """A path at which the processes of this machine (this process only, if not on Linux) can open an open file."""
    by_process = f"/proc/{os.getpid()}/fd/{file.fileno()}"
    return by_process if os.path.exists(by_process) else f"/dev/fd/{file.fileno()}"


def _fingerprint(samples: Samples, decoding: _Decoding) -> str:
    """A name that changes with any file's path, size or time of change, and with what is kept of it."""
    digest = hashlib.sha256(f"{FORMAT} {decoding.short_side} {len(samples)}{' sRGB' * decoding.to_srgb}".encode())
    stamps = file_stamps(samples.full_path, len(samples))
    for path, (size, changed_ns) in zip(samples.paths, stamps, strict=True):
        seen = "missing" if size < 0 else f"{size} {changed_ns}"
        digest.update(os.fsencode(path) + b"\0" + seen.encode() + b"\0")
    return digest.hexdigest()[:24]


def _check_room(samples: Samples, kind: str, decoding: _Decoding, folder: Path, threads: int) -> None:
    """Refuse a cache that would fill the disk or the memory, going by every hundredth image or so.

    Raises:
        DataError: with the sizes.
    """
    probed = range(0, len(samples), max(1, len(samples) // 100))
    pictures = in_order(lambda row: _picture(samples, row, decoding), probed, threads)
    sizes = (picture.image.size for picture in pictures if not isinstance(picture, str))
    needed = sum(sizes) / len(probed) * len(samples)
    free_bytes = shutil.disk_usage(folder).free
    if kind == "ram":
        free_bytes = min(free_bytes, available_memory_bytes() or free_bytes)
    if needed > 0.9 * free_bytes:
        instead = "--cache disk or none" if kind == "ram" else "--cache none, or an --output-dir with more room"
        raise DataError(
            f"--cache {kind}: {len(samples)} images of short side {decoding.short_side} take about "
            f"{needed / 1e6:,.0f} MB, {folder} has room for {0.9 * free_bytes / 1e6:,.0f} MB; use {instead}, or a "
            "smaller --image-size"
        )


def _decode_all(samples: Samples, decoding: _Decoding, threads: int, file: IO[bytes]) -> dict[str, np.ndarray]:
    """Write the pixels of all images, one after the other.

    Returns:
        The index: places int64 [N, 3] as in ImageCache, bad_rows int64 and reasons of those that give no picture;
        damaged, how many others are; size_bytes and crc32 of all pixels.
    """
    places = np.zeros((len(samples), 3), np.int64)
    reasons: dict[int, str] = {}
    offset = crc = damaged = 0
    pictures = in_order(lambda row: _picture(samples, row, decoding), range(len(samples)), threads)
    with console.progress("caching images", len(samples)) as meter:
        for row, picture in enumerate(pictures):
            places[row, 0] = offset
            if isinstance(picture, str):
                reasons[row] = picture
            else:
                file.write(picture.image.data)
                crc = zlib.crc32(picture.image.data, crc)
                places[row, 1:] = picture.image.shape[:2]
                offset += picture.image.size
                damaged += picture.damage is not None
            meter.advance(1)
    return {
        "places": places,
        "bad_rows": np.array(list(reasons), np.int64),
        "reasons": np.array(list(reasons.values()), np.str_),
        "damaged": np.int64(damaged),
        "size_bytes": np.int64(offset),
        "crc32": np.int64(crc),
    }


def _open(pixels: str | os.PathLike, index: str | os.PathLike, samples: Samples) -> ImageCache:
    """Map a complete cache.

    Raises:
        DataError: it is on another machine, or in another container.
    """
    try:
        return ImageCache(pixels, _read_index(index), samples.paths)
    except OSError as error:
        raise DataError(
            f"the image cache that another process has built cannot be opened here ({error}); use --cache none"
        ) from error


def _read_index(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """All of an index, so that zip's own CRC-32 is checked, too."""
    with np.load(file, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _picture(samples: Samples, row: int, decoding: _Decoding) -> Decoded | str:
    """One image as it is kept, or the reason why its file gives none."""
    try:
        image, damage = decode_image(
            samples.full_path(row), min_short_side=decoding.short_side, to_srgb=decoding.to_srgb
        )
    except ImageError as error:
        return str(error)
    return Decoded(pixels.shrink(image, decoding.short_side), damage)
