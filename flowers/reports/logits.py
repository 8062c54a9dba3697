"""The logits of a whole split, gathered over ranks in the order of its images."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ROWS_AT_ONCE = 8192


class LogitTable:
    """A row an image. Every rank enters its own images, the others stay zero: adding up gives the whole table exactly.

    Args:
        num_images: N, of the whole split.
        num_classes: C.
    """

    def __init__(self, num_images: int, num_classes: int):
        self._rows = torch.zeros(num_images, num_classes)

    def update(self, indices: Tensor, weights: Tensor, logits: Tensor) -> None:
        """Enter a batch.

        Args:
            indices: [B] int64 rows; weights: [B], 0 for images that only fill up the batch; logits: [B, C].
        """
        real = (weights > 0).cpu()
        self._rows[indices.cpu()[real]] = logits.float().cpu()[real]

    def result(self, reduce: Callable[[Tensor], Tensor], device: torch.device) -> np.ndarray:
        """Add the ranks up, a stretch of rows at a time.

        Args:
            reduce: sums a tensor on ``device`` over all ranks.

        Returns:
            float32 [N, C], the same on every rank.
        """
        parts = [reduce(part.to(device)).cpu() for part in self._rows.split(ROWS_AT_ONCE)]
        return torch.cat(parts).numpy()
