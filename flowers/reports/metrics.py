"""Figures that add up exactly: each image is scored once, by its own row, and the division happens last."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers.errors import TrainingError


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
    """How many classes stand before the true one, image by image; 0 is a top-1 hit, below 5 a top-5 hit.

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


class Tally:
    """Scores of one data set, a row an image: a second look at an image, or a missed one, cannot hide.

    Every rank fills the rows of its own images; the others stay zero, so adding the ranks' tables gives the
    whole one, exactly, in any order and for any number of ranks.
    """

    def __init__(self, num_images: int, device: torch.device):
        self._rows = torch.zeros(num_images, 3, device=device)  # loss, rank of the true class, times seen

    def update(self, indices: Tensor, weights: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Enter a batch.

        Args:
            indices: [B] int64 rows; weights: [B], 0 for images that only fill up the batch;
            logits: [B, num_classes]; targets: [B] int64.
        """
        real = weights > 0
        logits = logits.float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        scores = torch.stack([losses, target_ranks(logits, targets).float(), torch.ones_like(losses)], dim=1)
        self._rows.index_add_(0, indices, torch.where(real[:, None], scores, 0.0))

    def result(self, reduce: Callable[[Tensor], Tensor] = lambda rows: rows) -> Metrics:
        """Add the ranks up and divide.

        Args:
            reduce: sums a tensor over all ranks.

        Raises:
            TrainingError: an image was counted twice or not at all.
        """
        losses, ranks, seen = reduce(self._rows).cpu().double().unbind(1)
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
