"""Batches of cached features, which train a head in seconds, in the order that images would come in."""

from collections.abc import Iterator

import numpy as np
import torch

from flowers.data.loaders import Batch
from flowers.data.order import Order, eval_batches


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
