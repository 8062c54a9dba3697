"""From sample lists to batches: the views of a batch, and the loaders that make them in any number of processes.

The batches are the same whatever the number of loader processes. Threads would do for one or two of them, and were
measured: of a view from a file 0.5 of 2.5 ms hold Python's lock (0.2 of 1.0 ms from the cache), so that one process
would end at 2,000 views/s however many threads it had, where 16 processes make 6,500, and its training loop would
wait for the same lock.
"""

import abc
import dataclasses
import itertools
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from flowers import console
from flowers.data.augment import Augmentation
from flowers.data.folders import Samples
from flowers.data.image_cache import ImageCache
from flowers.data.images import decode_image
from flowers.data.loader_processes import make_loader, run_loader
from flowers.data.order import Draw, Order, eval_batches, sample_rng
from flowers.data.paths import readable
from flowers.data.preprocessing import Preprocessing
from flowers.data.threads import in_order
from flowers.errors import DataError, ImageError


class Batch(NamedTuple):
    """The input of a step; tensors are pinned when a GPU is there.

    Attributes:
        images: uint8 [B, S, S, 3].
        targets: int64 [B] class indices.
        weights: float32 [B]; 1 for real images, 0 for those that only fill up the shape.
        indices: int64 [B] places in the sample list.
    """

    images: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    indices: torch.Tensor


class _Views(torch.utils.data.Dataset, abc.ABC):
    """A dataset whose ``__getitems__`` makes a whole batch, or the text of what went wrong.

    Attributes:
        bytes_each: the most that a view takes.
        damaged: uint8 [N], 1 for images that were read and decode although they are damaged; loader processes share it.
    """

    def __init__(self, samples: Samples, size: int):
        self._samples, self._size = samples, size
        self.bytes_each = size * size * 3
        self.damaged = np.frombuffer(mmap.mmap(-1, max(1, len(samples))), np.uint8)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitems__(self, draws: list[Draw]) -> Batch | str:
        size = self._side(draws[0].epoch)
        images = torch.empty((len(draws), size, size, 3), dtype=torch.uint8)
        for pixels, draw in zip(images.numpy(), draws, strict=True):
            try:
                pixels[:] = self._view(draw)
            except ImageError as error:
                # Returned, not raised: torch would wrap the one line in two tracebacks.
                return f"{readable(self._samples.full_path(draw.index))}: {error}"
        indices = np.array([draw.index for draw in draws], dtype=np.int64)
        targets = np.asarray(self._samples.targets)[indices].astype(np.int64)
        weights = np.array([draw.weight for draw in draws], dtype=np.float32)
        return Batch(images, *map(torch.from_numpy, (targets, weights, indices)))

    def _side(self, epoch: int) -> int:
        return self._size

    def _read(self, index: int, view: Augmentation | Preprocessing) -> np.ndarray:
        path = self._samples.full_path(index)
        image, damage = decode_image(path, min_short_side=view.min_short_side, to_srgb=view.to_srgb)
        if damage:
            self.damaged[index] = 1
        return image

    @abc.abstractmethod
    def _view(self, draw: Draw) -> np.ndarray:
        """The view of one draw, uint8 [side, side, 3]."""


class TrainViews(_Views):
    """Augmented views, drawn anew each epoch.

    Args:
        cache: decoded images to use instead of the files.
        sizes: side of the views, epoch by epoch; default: always the augmentation's.
    """

    def __init__(
        self,
        samples: Samples,
        augmentation: Augmentation,
        seed: int,
        cache: ImageCache | None = None,
        sizes: Sequence[int] = (),
    ):
        super().__init__(samples, max([augmentation.size, *sizes]))
        self._augmentation, self._seed, self._cache, self._sizes = augmentation, seed, cache, sizes
        self._rows = cache.rows(samples) if cache is not None else None

    def _side(self, epoch: int) -> int:
        return self._sizes[epoch] if self._sizes else self._augmentation.size

    def _view(self, draw: Draw) -> np.ndarray:
        augmentation = self._augmentation
        if self._sizes:
            augmentation = dataclasses.replace(augmentation, size=self._sizes[draw.epoch])
        if self._cache is not None:
            image = self._cache.read(self._rows[draw.index])
        else:
            image = self._read(draw.index, augmentation)
        return augmentation.view(image, sample_rng(self._seed, draw.epoch, draw.index, draw.occurrence))


class EvalViews(_Views):
    """The views that a model is evaluated on, called those of epoch 0; those of weight 0 are black.

    Args:
        drawn: gives the views of the epochs after it, all of the same size.
    """

    def __init__(self, samples: Samples, preprocessing: Preprocessing, drawn: TrainViews | None = None):
        super().__init__(samples, preprocessing.crop)
        self._preprocessing, self._drawn = preprocessing, drawn
        if drawn is not None:
            drawn.damaged = self.damaged

    def _view(self, draw: Draw) -> np.ndarray:
        if draw.weight == 0:
            return np.zeros((self._size, self._size, 3), dtype=np.uint8)
        if draw.epoch > 0 and self._drawn is not None:
            return self._drawn._view(draw)
        return self._preprocessing.view(self._read(draw.index, self._preprocessing))


class _Batches:
    """Batch sampler: gives anew, each time that it is iterated, what a function gives."""

    def __init__(self, draws: Callable[[], Iterator[list[Draw]]]):
        self._draws = draws

    def __iter__(self) -> Iterator[list[Draw]]:
        return self._draws()


class TrainLoader:
    """Augmented batches of one rank; loader processes live on from epoch to epoch.

    Args:
        samples: the training set.
        augmentation: how views are drawn.
        order: which sample comes when.
        rank: of this process, 0 to order.world_size - 1.
        workers: loader processes; 0 loads in this process.
        cache: decoded images to use instead of the files.
        sizes: side of the views, epoch by epoch; default: always the augmentation's.
        pin_memory: for a GPU.
    """

    def __init__(
        self,
        samples: Samples,
        augmentation: Augmentation,
        order: Order,
        *,
        rank: int,
        workers: int,
        cache: ImageCache | None = None,
        sizes: Sequence[int] = (),
        pin_memory: bool = False,
    ):
        self._epoch = self._start_step = 0
        views = TrainViews(samples, augmentation, order.seed, cache, sizes)
        self._loader = make_loader(
            views,
            _Batches(lambda: order.micro_batches(self._epoch, rank, self._start_step)),
            workers,
            batch_bytes=order.batch_size * views.bytes_each,
            persistent=True,
            pin_memory=pin_memory,
        )
        self._running: object = None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, grad_accum_steps a step, from ``start_step`` on.

        Several epochs may be asked for ahead, but only one can be under way: starting another ends it.

        Raises:
            DataError: a file cannot be read any more; nothing is put in its place.
            ProcessError: a loader process died.
        """
        self._running = token = object()
        self._epoch, self._start_step = epoch, start_step
        for batch in _checked(run_loader(self._loader), ", or start with --on-bad-image skip"):
            yield batch
            if self._running is not token:
                raise RuntimeError(f"epoch {epoch} goes on after another one was started on the same loader")


class EvalLoader:
    """The evaluation views of one rank's share of a sample list, each sample once over all ranks.

    Args:
        samples: what to evaluate on.
        preprocessing: the model's own.
        batch_size: images per process and batch; the last batches are filled up with black images of weight 0.
        rank: of this process.
        world_size: processes.
        workers: loader processes; 0 loads in this process.
        pin_memory: for a GPU.
    """

    def __init__(
        self,
        samples: Samples,
        preprocessing: Preprocessing,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ):
        self._views = EvalViews(samples, preprocessing)
        self._loader = make_loader(
            self._views,
            _Batches(lambda: eval_batches(len(samples), batch_size, rank, world_size)),
            workers,
            batch_bytes=batch_size * self._views.bytes_each,
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            DataError: a file cannot be read.
            ProcessError: a loader process died.
        """
        return _checked(run_loader(self._loader))

    @property
    def damaged(self) -> list[int]:
        """Places in the sample list of images that were damaged, of those loaded so far."""
        return np.flatnonzero(self._views.damaged).tolist()


class ViewLoader:
    """The views that cached features are made of: evaluation's, called epoch 0, and training views of other epochs.

    Args:
        samples: the images.
        preprocessing: of evaluation.
        augmentation: how training views are drawn, of the size that evaluation's have.
        seed: of the run.
        workers: loader processes; 0 loads in this process.
    """

    def __init__(
        self, samples: Samples, preprocessing: Preprocessing, augmentation: Augmentation, seed: int, workers: int
    ):
        self._views = EvalViews(samples, preprocessing, TrainViews(samples, augmentation, seed))
        self._workers = workers

    def __len__(self) -> int:
        """Images, not views."""
        return len(self._views)

    @property
    def num_damaged(self) -> int:
        """Images that were damaged, of those loaded so far."""
        return int(self._views.damaged.sum())

    def load(self, draws: Iterable[list[Draw]]) -> Iterator[Batch]:
        """A batch for each list of draws, all lists of one length; draws of weight 0 are black.

        Raises:
            DataError: a file cannot be read.
            ProcessError: a loader process died.
        """
        first = next(draws := iter(draws), None)
        if first is None:
            return
        loader = make_loader(
            self._views,
            itertools.chain([first], draws),
            self._workers,
            batch_bytes=len(first) * self._views.bytes_each,
        )
        yield from _checked(run_loader(loader))


def find_bad_images(samples: Samples, threads: int) -> tuple[list[tuple[str, str]], int]:
    """Decode every image once, in full, since a header says nothing about the end of a file.

    Args:
        samples: the images.
        threads: how many decode at a time.

    Returns:
        (path relative to the root, reason) of each that gives no picture, in order; and how many others are damaged.
    """

    def look(index: int) -> tuple[str | None, bool]:
        try:
            return None, decode_image(samples.full_path(index)).damage is not None
        except ImageError as error:
            return str(error), False

    bad: list[tuple[str, str]] = []
    damaged = 0
    with console.progress("checking images", len(samples)) as meter:
        for index, (reason, is_damaged) in enumerate(in_order(look, range(len(samples)), threads)):
            if reason is not None:
                bad.append((samples.paths[index], reason))
            damaged += is_damaged
            meter.advance(1)
    return bad, damaged


def _checked(batches: Iterator[Batch | str], remedy: str = "") -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, str):
            raise DataError(f"{batch}; mend or remove the file{remedy}")
        yield batch
