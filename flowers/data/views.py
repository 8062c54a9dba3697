"""One batch at a time: what a loader process makes of the draws that it is given."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from flowers.data.augment import Augmentation, Preprocessing
from flowers.data.folders import Samples
from flowers.data.image_cache import ImageCache
from flowers.data.images import read_image
from flowers.data.order import Draw, sample_rng
from flowers.data.paths import readable
from flowers.errors import ImageError


class Batch(NamedTuple):
    """What a step works on; tensors are pinned when a GPU is there.

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


class _Views(torch.utils.data.Dataset):
    """A dataset whose ``__getitems__`` makes a whole batch, or the text of what went wrong.

    Attributes:
        bytes_each: the most that a view takes.
    """

    def __init__(self, samples: Samples, size: int):
        self._samples, self._size = samples, size
        self.bytes_each = size * size * 3

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

    def _view(self, draw: Draw) -> np.ndarray:
        raise NotImplementedError


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
        augmentation = dataclasses.replace(self._augmentation, size=self._side(draw.epoch))
        if self._cache is not None:
            image = self._cache.read(self._rows[draw.index])
        else:
            path = self._samples.full_path(draw.index)
            image = read_image(path, min_short_side=augmentation.min_short_side)
        return augmentation.view(image, sample_rng(self._seed, draw.epoch, draw.index, draw.occurrence))


class EvalViews(_Views):
    """The views that a model is evaluated on; those of weight 0 are black."""

    def __init__(self, samples: Samples, preprocessing: Preprocessing):
        super().__init__(samples, preprocessing.crop)
        self._preprocessing = preprocessing

    def _view(self, draw: Draw) -> np.ndarray:
        if draw.weight == 0:
            return np.zeros((self._size, self._size, 3), dtype=np.uint8)
        path = self._samples.full_path(draw.index)
        return self._preprocessing.view(read_image(path, min_short_side=self._preprocessing.min_short_side))


class AllViews(_Views):
    """Evaluation's view as epoch 0, training views as the epochs after it, all of one size."""

    def __init__(self, samples: Samples, preprocessing: Preprocessing, augmentation: Augmentation, seed: int):
        super().__init__(samples, preprocessing.crop)
        self._plain = EvalViews(samples, preprocessing)
        self._drawn = TrainViews(samples, augmentation, seed)

    def _view(self, draw: Draw) -> np.ndarray:
        views = self._plain if draw.epoch == 0 or draw.weight == 0 else self._drawn
        return views._view(draw)
