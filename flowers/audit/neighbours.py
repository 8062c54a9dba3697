"""Neighbours by features, block by block: photos that show the same, and photos that are like no other."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from flowers import console
from flowers.reports.label_errors import BLOCK, TINY

SAME = 0.93
"""Cosine of standardised features from which two photos show the same. Of 2,858 photos of Oxford 102, the pairs above
it are one flower taken twice; those down to 0.9 are different flowers."""
NEAREST = 5
PLAIN_UP_TO = 20_000
"""For more photos, features are projected to few dimensions first, and close pairs confirmed with all of them."""
PROJECTED = 256
PROJECTION_ERROR = 0.1


class Neighbours(NamedTuple):
    """Found for N photos.

    Attributes:
        pairs: [M, 2] int64 indices of photos that show the same, the smaller first, sorted.
        closeness: [N] mean cosine to the nearest photos.
    """

    pairs: np.ndarray
    closeness: np.ndarray


def mean_and_spread(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature over all photos, float32 [D] each, in one pass of blocks."""
    total, squares, count = 0.0, 0.0, len(features)
    for first in range(0, count, BLOCK):
        block = features[first : first + BLOCK].astype(np.float64)
        total, squares = total + block.sum(axis=0), squares + (block**2).sum(axis=0)
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0)) + TINY
    return mean.astype(np.float32), spread.astype(np.float32)


def find_neighbours(
    features: np.ndarray, device: torch.device | str, check_stop: Callable[[], None] = lambda: None
) -> Neighbours:
    """Compare each photo with all others.

    Args:
        features: float32 [N, D]; read in blocks. A projected copy, or the features of a small set, are kept.
        check_stop: called before each block of photos; what it raises ends the comparison.
    """
    count, width = features.shape
    everything = np.arange(count)
    mean, spread = mean_and_spread(features)
    projection = None
    if count > PLAIN_UP_TO and width > PROJECTED:
        projection = np.random.default_rng(0).standard_normal((width, PROJECTED), np.float32) / PROJECTED**0.5

    def unit(rows: np.ndarray, projected: bool = True) -> np.ndarray:
        values = (features[rows] - mean) / spread
        if projected and projection is not None:
            values = values @ projection
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)

    block = BLOCK // 4
    cuts = [everything[first : first + block] for first in range(0, count, block)]
    units = torch.from_numpy(np.concatenate([unit(cut) for cut in cuts])).to(device)
    nearest = min(NEAREST, count - 1)
    least = SAME - (0.0 if projection is None else PROJECTION_ERROR)
    pairs, closeness = [np.empty((0, 2), np.int64)], np.ones(count, np.float32)
    with console.progress("comparing", count, "photos") as meter:
        for cut in cuts:
            check_stop()
            top = torch.full((len(cut), nearest), -1.0, device=device)
            for other in cuts:
                cosines = units[cut[0] : cut[-1] + 1] @ units[other[0] : other[-1] + 1].T
                if cut[0] == other[0]:
                    cosines.fill_diagonal_(-1.0)
                if other[0] >= cut[0]:
                    found = torch.nonzero(cosines >= least).cpu().numpy() + np.array([cut[0], other[0]])
                    pairs.append(found[found[:, 0] < found[:, 1]])
                top = torch.cat([top, cosines], dim=1).topk(nearest, dim=1).values
            closeness[cut] = top.mean(dim=1).cpu().numpy()
            meter.advance(len(cut))
    found = np.concatenate(pairs)
    if projection is not None:
        cosines = [(unit(part[:, 0], False) * unit(part[:, 1], False)).sum(axis=1) for part in _parts(found)]
        found = found[np.concatenate([np.empty(0), *cosines]) >= SAME]
    return Neighbours(np.unique(found, axis=0), closeness)


def _parts(pairs: np.ndarray) -> list[np.ndarray]:
    return [pairs[first : first + BLOCK] for first in range(0, len(pairs), BLOCK)]
