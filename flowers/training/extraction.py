"""A frozen backbone is a function: run it once per view and keep the features, whatever happens on the way.

The images are cut into pieces, which the ranks share out; rank 0 joins the pieces into one ``.npy`` in the run folder,
which all ranks map. A run that is resumed finds that file, or the pieces that an earlier start finished, and does not
run the backbone over them again.
"""

import contextlib
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator

from flowers import console
from flowers.data.loaders import ViewLoader
from flowers.data.order import Draw
from flowers.distributed import from_main
from flowers.engines.engine import Engine
from flowers.errors import ProcessError, StoppedError
from flowers.files import make_folder, write_atomically
from flowers.stopping import StopRequest, agree_to_stop

IN_FLIGHT = 3  # batches that wait in the engine while the next one is read
MANY_PIECES = 64  # of a small set, so that all ranks have work
LARGEST_PIECE = 1024  # images of one view: a stop waits for a piece, a kill loses one


class Piece(NamedTuple):
    """Neighbouring images in one view: a rank runs the backbone over them and keeps what came out, all or nothing.

    Attributes:
        view: 0 is evaluation's, others are drawn.
        first: place of the first image.
        end: place behind the last one.
    """

    view: int
    first: int
    end: int

    @property
    def file_name(self) -> str:
        """Of its features, float32 [end - first, D]."""
        return f"{self.view}-{self.first}-{self.end}.npy"

    def batches(self, batch_size: int) -> Iterator[list[Draw]]:
        """Its images in batches of one shape; the gaps are filled with draws of weight 0."""
        for first in range(self.first, self.end, batch_size):
            places = range(first, first + batch_size)
            yield [Draw(min(place, self.end - 1), self.view, place, float(place < self.end)) for place in places]


def pieces_of(num_images: int, views: int, batch_size: int) -> list[Piece]:
    """All pieces, of whole batches, the same for any number of processes."""
    size = batch_size * max(1, min(num_images // MANY_PIECES, LARGEST_PIECE) // batch_size)
    firsts = range(0, num_images, size)
    return [Piece(view, first, min(first + size, num_images)) for first in firsts for view in range(views)]


def extract_features(
    accelerator: Accelerator, engine: Engine, images: ViewLoader, views: int, path: Path, key: dict, stop: StopRequest
) -> np.ndarray:
    """Run the backbone over every view of all images, or map the file that an earlier start left.

    A start that was stopped or killed leaves the pieces that it finished, for a start with any number of processes.

    Args:
        engine: gives the features of uint8 images.
        views: of each image.
        path: the .npy file to write.
        key: all that the features depend on; another key beside the file means to run again.

    Returns:
        float32 [N, views, D], memory-mapped.

    Raises:
        StoppedError: a rank was asked to stop.
        ProcessError: what another process wrote is not to be seen here.
    """
    if not _are_there(path, key):
        folder = path.with_suffix(".parts")
        from_main(lambda: _settle(folder, key))
        pieces = pieces_of(len(images), views, engine.batch_size)
        # Listed, not asked for one by one: NFS remembers for a while that a file was not there, also when it is.
        there = set(from_main(lambda: os.listdir(folder)))
        missing = [piece for piece in pieces if piece.file_name not in there]
        _compute(accelerator, engine, images, missing, folder, path.stem, stop)
        accelerator.wait_for_everyone()
        from_main(lambda: _join(pieces, folder, path, key))
    return np.load(path, mmap_mode="r")


def _are_there(path: Path, key: dict) -> bool:
    """Whether an earlier start left these features.

    Rank 0 looks and all go by what it saw: on a network file system each machine would see its own moment.
    """
    return from_main(lambda: path.exists() and _read_key(path.with_suffix(".json")) == key)


def _settle(folder: Path, key: dict) -> None:
    """Keep the pieces that an earlier start finished, if they are of the same features."""
    if _read_key(folder / "key.json") != key:
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        _write_key(folder / "key.json", key)


def _compute(
    accelerator: Accelerator,
    engine: Engine,
    images: ViewLoader,
    missing: list[Piece],
    folder: Path,
    title: str,
    stop: StopRequest,
) -> None:
    """This rank's share of the missing pieces; after each all ranks agree whether to go on."""
    world_size, size = accelerator.num_processes, engine.batch_size
    mine = missing[accelerator.process_index :: world_size]
    rounds = -(-len(missing) // world_size)
    stops = False
    waiting: deque = deque()
    features: list[np.ndarray] = []

    def take() -> None:
        piece, left, handle = waiting.popleft()
        features.append(handle.result().features[:left])
        if left <= size:
            with write_atomically(folder / piece.file_name, "wb") as file:
                np.save(file, np.concatenate(features))
            features.clear()
        meter.advance(min(left, size) * world_size)

    draws = (batch for piece in mine for batch in piece.batches(size))
    total = sum(piece.end - piece.first for piece in missing)
    with console.progress(f"features of {title}", total) as meter, contextlib.closing(images.load(draws)) as batches:
        for number in range(rounds):
            for piece in mine[number : number + 1]:
                for left in range(piece.end - piece.first, 0, -size):
                    waiting.append((piece, left, engine.submit(next(batches).images.numpy())))
                    if len(waiting) > IN_FLIGHT:
                        take()
            stops = number + 1 < rounds and agree_to_stop(accelerator, stop)
            if stops:
                break
        while waiting:
            take()
    if stops:
        reason = stop.reason() or "another process was asked"
        raise StoppedError(
            f"stopped before {title}/ was through the backbone ({reason}), what is done is kept: the same command "
            "goes on from here"
        )


def _join(pieces: list[Piece], folder: Path, path: Path, key: dict) -> None:
    """Write all pieces as one array, then its key: the key's presence says that the array is whole.

    Raises:
        ProcessError: a piece of another process is not to be seen here.
    """
    path.with_suffix(".json").unlink(missing_ok=True)
    views = 1 + max(piece.view for piece in pieces)
    with write_atomically(path, "wb") as file:
        for first in range(0, len(pieces), views):
            images = np.stack([_read(folder / piece.file_name) for piece in pieces[first : first + views]], axis=1)
            if first == 0:
                header = np.lib.format.header_data_from_array_1_0(images)
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (pieces[-1].end, *images.shape[1:])})
            file.write(images.tobytes())
    _write_key(path.with_suffix(".json"), key)
    shutil.rmtree(folder)


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path)
    except OSError as error:
        raise ProcessError(
            f"{path}: cannot be read ({error.strerror}): the run folder must be one that all machines share"
        ) from None


def _read_key(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def _write_key(path: Path, key: dict) -> None:
    with write_atomically(path) as file:
        json.dump(key, file)
