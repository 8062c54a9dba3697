"""A frozen backbone is a function: run it once per view, keep the features, train the head on them in seconds.

Each rank runs the backbone over its share and writes a part file; rank 0 joins the parts into one ``.npy`` in the
run folder, which all ranks map. A run that is resumed finds the files and does not run the backbone again.
"""

import json
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from flowers import console
from flowers.data.dataset import Batch
from flowers.data.folders import Samples
from flowers.data.order import Order, eval_batches
from flowers.errors import ProcessError
from flowers.files import make_folder, write_atomically
from flowers.models.engines import Engine
from flowers.processes import of_main_process, on_main_process

IN_FLIGHT = 3  # batches that wait in the engine while the next one is read


class FeatureBatches:
    """Training batches of cached features, in the order that images would come in.

    Args:
        features: float32 [N, views, D]; a sample's view changes from epoch to epoch, in turn.
        targets: int64 [N].
        order: which sample comes when.
        rank: of this process.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray, order: Order, rank: int):
        self._order, self._rank = order, rank
        self._features = features
        self._targets = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.int64))

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's micro-batches of an epoch; ``images`` holds features [B, D]."""
        views = self._features.shape[1]
        for draws in self._order.micro_batches(epoch, self._rank, start_step):
            rows = np.array([draw.index for draw in draws])
            indices = torch.from_numpy(rows)
            features = torch.from_numpy(self._features[rows, (rows + epoch) % views])
            weights = torch.tensor([draw.weight for draw in draws])
            yield Batch(features, self._targets[indices], weights, indices)


class EvalFeatures:
    """One rank's evaluation batches of cached features, each sample once over all ranks."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, batch_size: int, rank: int, world_size: int):
        self._batches = []
        for draws in eval_batches(len(targets), batch_size, rank, world_size):
            rows = np.array([draw.index for draw in draws])
            weights = torch.tensor([draw.weight for draw in draws])
            labels = torch.from_numpy(np.asarray(targets)[rows].astype(np.int64))
            self._batches.append(Batch(torch.from_numpy(features[rows, 0]), labels, weights, torch.from_numpy(rows)))

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def extract_features(
    accelerator: Accelerator,
    engine: Engine,
    samples: Samples,
    views: list[Iterable[Batch]],
    path: Path,
    key: dict,
) -> np.ndarray:
    """Run the backbone over this rank's share of every view, or map the file that an earlier start left.

    Args:
        engine: gives the features of uint8 images.
        samples: what the rows stand for.
        views: for each view this rank's batches; over all ranks they hold every sample once with weight 1.
        path: the .npy file to write.
        key: all that the features depend on; another key beside the file means to run again.

    Returns:
        float32 [N, views, D], memory-mapped.
    """
    if not _are_there(accelerator, path, key):
        parts = path.with_suffix(".parts")
        on_main_process(accelerator, lambda: _empty_folder(parts))
        _write_part(accelerator, engine, len(samples), views, parts / f"{accelerator.process_index}.npz", path.stem)
        accelerator.wait_for_everyone()
        shape, ranks = (len(samples), len(views)), accelerator.num_processes
        on_main_process(accelerator, lambda: _join_parts(parts, ranks, shape, path, key))
    return np.load(path, mmap_mode="r")


def _are_there(accelerator: Accelerator, path: Path, key: dict) -> bool:
    """Whether an earlier start left these features.

    Rank 0 looks and all go by what it saw: on a network file system each machine would see its own moment.
    """
    key_path = path.with_suffix(".json")
    is_main = accelerator.is_main_process
    there = is_main and path.exists() and key_path.exists() and json.loads(key_path.read_text()) == key
    return bool(of_main_process(accelerator, there))


def _write_part(
    accelerator: Accelerator, engine: Engine, count: int, views: list[Iterable[Batch]], path: Path, title: str
) -> None:
    """This rank's features with the rows and views that they belong to."""
    rows: list[np.ndarray] = []
    view_of: list[np.ndarray] = []
    features: list[np.ndarray] = []
    waiting: deque = deque()

    def take() -> int:
        indices, real, view, handle = waiting.popleft()
        features.append(handle.result().features[real])
        rows.append(indices[real])
        view_of.append(np.full(int(real.sum()), view))
        return int(real.sum())

    with console.progress(f"features of {title}", count * len(views)) as meter:
        for view, batches in enumerate(views):
            for batch in batches:
                real = batch.weights.numpy() > 0
                waiting.append((batch.indices.numpy(), real, view, engine.submit(batch.images.numpy())))
                if len(waiting) > IN_FLIGHT:
                    meter.advance(take() * accelerator.num_processes)
        while waiting:
            meter.advance(take() * accelerator.num_processes)
    with write_atomically(path, "wb") as file:
        np.savez(file, rows=np.concatenate(rows), views=np.concatenate(view_of), features=np.concatenate(features))


def _join_parts(parts: Path, ranks: int, shape: tuple[int, int], path: Path, key: dict) -> None:
    """Sort all parts into one array, write it, then its key: the key's presence says that the array is whole.

    Args:
        shape: samples and views.

    Raises:
        ProcessError: a process's part is not to be seen here, or an image is in none of them.
    """
    joined, filled = np.empty(0, np.float32), np.zeros(shape, bool)
    for part in (parts / f"{rank}.npz" for rank in range(ranks)):
        try:
            with np.load(part) as loaded:
                rows, views, features = loaded["rows"], loaded["views"], loaded["features"]
        except OSError as error:
            raise ProcessError(
                f"{part}: cannot be read ({error.strerror}): the run folder must be one that all machines share"
            ) from None
        if not joined.size:
            joined = np.empty((*shape, features.shape[1]), np.float32)
        joined[rows, views], filled[rows, views] = features, True
    if not filled.all():
        raise ProcessError(f"{path}: {int((~filled).sum())} of {filled.size} features are missing: start again")
    path.with_suffix(".json").unlink(missing_ok=True)
    with write_atomically(path, "wb") as file:
        np.save(file, joined)
    with write_atomically(path.with_suffix(".json")) as file:
        json.dump(key, file)
    shutil.rmtree(parts)


def _empty_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
