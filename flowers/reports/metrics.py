"""Metrics that add up exactly over ranks: each image is scored once, in its own row, and the division happens last."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers.errors import TrainingError

Reduce = Callable[[Tensor], Tensor]
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Metrics:
    """An evaluation's result: mean cross-entropy, shares of hits (fractions), images counted."""

    loss: float
    top1: float
    top5: float
    images: int

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def target_ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """Count the classes that score above the true one, image by image: 0 is a top-1 hit, below 5 a top-5 hit.

    Of equal logits the lower class index stands first, as in the predictions table.

    Args:
        logits: [B, num_classes] scores before softmax, any float dtype.
        targets: [B] int64 class indices.

    Returns:
        [B] int64, on the device of ``logits``.
    """
    own = logits.gather(1, targets[:, None])
    before = torch.arange(logits.shape[1], device=logits.device)[None, :] < targets[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(1)


class Table:
    """A row an image, added up over ranks.

    Every rank fills the rows of its own images and the others stay zero, so adding the ranks' tables gives the whole
    one, exactly, in any order and for any number of ranks.
    """

    def __init__(self, num_images: int, columns: int, device: torch.device):
        self._rows = torch.zeros(num_images, columns, device=device)

    def add(self, indices: Tensor, weights: Tensor, values: Tensor) -> None:
        """Add float32 values [B, columns] to the rows; those of weight 0 only fill up the batch."""
        values = torch.where(weights[:, None] > 0, values, 0.0)
        self._rows.index_add_(0, indices.to(self._rows.device), values.to(self._rows.device))

    def sum(self, reduce: Reduce, device: torch.device) -> Tensor:
        """The rows of all ranks, on every rank and on the CPU.

        Args:
            reduce: sums a tensor on ``device`` over all ranks; it gets a stretch of rows at a time.
        """
        return torch.cat([reduce(part.to(device)).cpu() for part in self._rows.split(ROWS_AT_ONCE)])


class Tally(Table):
    """Loss and rank of the true class of every image of a data set; an image missed or seen twice is an error."""

    def __init__(self, num_images: int, device: torch.device):
        super().__init__(num_images, 3, device)  # loss, rank of the true class, times seen

    def update(self, indices: Tensor, weights: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Enter a batch.

        Args:
            indices: [B] int64 rows; weights: [B], 0 for images that only fill up the batch;
            logits: [B, num_classes]; targets: [B] int64.
        """
        logits = logits.float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        scores = torch.stack([losses, target_ranks(logits, targets).float(), torch.ones_like(losses)], dim=1)
        self.add(indices, weights, scores)

    def result(self, reduce: Reduce = lambda rows: rows) -> Metrics:
        """Add the ranks up and divide.

        Args:
            reduce: sums a tensor over all ranks.

        Raises:
            TrainingError: an image was counted twice or not at all.
        """
        losses, ranks, seen = self.sum(reduce, self._rows.device).double().unbind(1)
        if not bool((seen == 1).all()):
            missed, twice = int((seen == 0).sum()), int((seen > 1).sum())
            raise TrainingError(
                f"evaluation of {len(seen)} images: {missed} were missed and {twice} counted more than once; "
                "this is a bug in flowers, please report it"
            )
        count = len(seen)
        return Metrics(
            loss=math.fsum(losses.tolist()) / count,
            top1=int((ranks == 0).sum()) / count,
            top5=int((ranks < 5).sum()) / count,
            images=count,
        )
