"""Loaders: from sample lists to batches, in loader processes that can be of any number: the batches stay the same."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch

from flowers import console
from flowers.data.augment import Augmentation, Preprocessing
from flowers.data.folders import Samples
from flowers.data.image_cache import ImageCache
from flowers.data.images import read_image
from flowers.data.loader_processes import make_loader, run_loader
from flowers.data.order import Draw, Order, eval_batches
from flowers.data.views import AllViews, Batch, EvalViews, TrainViews
from flowers.errors import DataError, ImageError


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
        self.order = order
        self._batches = _EpochBatches(order, rank)
        views = TrainViews(samples, augmentation, order.seed, cache, sizes)
        self._loader = make_loader(
            views,
            self._batches,
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
        self._batches.epoch, self._batches.start_step = epoch, start_step
        for batch in _checked(run_loader(self._loader), ", or start with --on-bad-image skip"):
            yield batch
            if self._running is not token:
                raise RuntimeError(f"epoch {epoch} goes on after another one was started on the same loader")

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.order.steps_per_epoch * self.order.grad_accum_steps


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
        self._batches = _EvalBatches(len(samples), batch_size, rank, world_size)
        views = EvalViews(samples, preprocessing)
        batch_bytes = batch_size * views.bytes_each
        self._loader = make_loader(views, self._batches, workers, batch_bytes=batch_bytes, pin_memory=pin_memory)

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            DataError: a file cannot be read.
            ProcessError: a loader process died.
        """
        return _checked(run_loader(self._loader))

    def __len__(self) -> int:
        """Batches that each rank gets."""
        return len(self._batches)


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
        self._views = AllViews(samples, preprocessing, augmentation, seed)
        self._workers = workers

    def __len__(self) -> int:
        """Images, not views."""
        return len(self._views)

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


def find_bad_images(samples: Samples, workers: int, min_short_side: int | None = None) -> list[tuple[str, str]]:
    """Decode every image once, in full: a header says nothing of a file's end.

    Args:
        samples: the images.
        workers: loader processes; 0 reads in this process.
        min_short_side: decode large JPEGs at reduced scale, as training will.

    Returns:
        (path relative to the root, reason) of each that gives no picture, in order.
    """
    chunks = [range(first, min(first + 32, len(samples))) for first in range(0, len(samples), 32)]
    loader = make_loader(_Check(samples, min_short_side), chunks, workers, batch_bytes=0)
    bad: list[tuple[str, str]] = []
    with console.progress("checking images", len(samples)) as meter:
        for chunk, reasons in zip(chunks, run_loader(loader), strict=True):
            bad += [(samples.paths[index], reason) for index, reason in reasons]
            meter.advance(len(chunk))
    return bad


class _EpochBatches:
    """Batch sampler of a TrainLoader: iterating gives the draws of the epoch that it is set to."""

    def __init__(self, order: Order, rank: int):
        self._order, self._rank = order, rank
        self.epoch = self.start_step = 0

    def __iter__(self) -> Iterator[list[Draw]]:
        return self._order.micro_batches(self.epoch, self._rank, self.start_step)


class _EvalBatches:
    """Batch sampler of an EvalLoader."""

    def __init__(self, num_samples: int, batch_size: int, rank: int, world_size: int):
        self._arguments = (num_samples, batch_size, rank, world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        return eval_batches(*self._arguments)

    def __len__(self) -> int:
        num_samples, batch_size, _, world_size = self._arguments
        return -(-num_samples // (batch_size * world_size))


class _Check(torch.utils.data.Dataset):
    """A dataset whose ``__getitems__`` gives (index, reason) of the images that cannot be read."""

    def __init__(self, samples: Samples, min_short_side: int | None):
        self._samples, self._min_short_side = samples, min_short_side

    def __getitems__(self, indices: range) -> list[tuple[int, str]]:
        bad = []
        for index in indices:
            try:
                read_image(self._samples.full_path(index), min_short_side=self._min_short_side)
            except ImageError as error:
                bad.append((index, str(error)))
        return bad


def _checked(batches: Iterator[Batch | str], remedy: str = "") -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, str):
            raise DataError(f"{batch}; mend or remove the file{remedy}")
        yield batch
