"""Confidence intervals, calibration, temperature, and coverage against accuracy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 15
MAX_FITTED = 20_000
"""A temperature is fitted on so many images at most, spread evenly over the split; one number needs no more."""

TEMPERATURES = (0.02, 50.0)


class Bin(NamedTuple):
    """Images whose confidence lies in one stretch: how many, how sure on average, how often right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class Rule(NamedTuple):
    """Answering only above a probability: the share of images answered, and of these the share that is right."""

    above: float
    coverage: float
    accuracy: float | None


def wilson_interval(hits: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the confidence interval of a share of hits in ``count`` trials; within [0, 1], and sound near its ends.

    Args:
        z: normal quantile; the default is that of 95%.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).
    """
    share, weight = hits / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def reliability(confidences: np.ndarray, hits: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Images by how sure the model was, in stretches of equal width, (low, high]; empty ones are left out.

    Args:
        confidences: [N] probability of the answer given.
        hits: [N] bool, whether it was right.
    """
    places = np.clip(np.ceil(confidences.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    sure = np.bincount(places, confidences, bins)
    right = np.bincount(places, hits, bins)
    return [
        Bin(i / bins, (i + 1) / bins, int(counts[i]), sure[i] / counts[i], right[i] / counts[i])
        for i in range(bins)
        if counts[i]
    ]


def calibration_error(confidences: np.ndarray, hits: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: |accuracy - confidence| of the stretches, weighted by their images.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.
    """
    parts = reliability(confidences, hits, bins)
    return sum(part.count * abs(part.accuracy - part.confidence) for part in parts) / len(hits)


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float | None:
    """Fit the T for which softmax(logits / T) has the smallest cross-entropy; above 1 the model is overconfident.

    The cross-entropy is convex in 1 / T, so halving the range by its slope finds the one minimum.

    Args:
        logits: [N, num_classes].
        targets: [N] class indices.

    Returns:
        T, within ``TEMPERATURES``; None where no T is best. Where every answer is right, a smaller T always is
        better, and would make a model that claims to be sure of everything.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    step = math.ceil(len(targets) / MAX_FITTED)
    logits, targets = logits[::step].astype(np.float64), targets[::step]
    own = logits[np.arange(len(targets)), targets]
    low, high = (math.log(value) for value in TEMPERATURES)
    for _ in range(50):
        middle = (low + high) / 2
        expected = (softmax(logits / math.exp(middle)) * logits).sum(1)
        if np.mean(expected - own) > 0:  # the slope by 1 / T: it falls as T grows
            low = middle
        else:
            high = middle
    temperature = math.exp((low + high) / 2)
    return temperature if 1.001 * TEMPERATURES[0] < temperature < TEMPERATURES[1] / 1.001 else None


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits [N, num_classes] to probs, float64."""
    powers = np.exp((logits - logits.max(1, keepdims=True)).astype(np.float64))
    return powers / powers.sum(1, keepdims=True)


def rules(confidences: np.ndarray, hits: np.ndarray, thresholds: Sequence[float]) -> list[Rule]:
    """Compute coverage and accuracy of answering only above each threshold."""
    found = []
    for threshold in thresholds:
        answered = confidences > threshold
        accuracy = float(hits[answered].mean()) if answered.any() else None
        found.append(Rule(threshold, float(answered.mean()), accuracy))
    return found


def coverage_curve(confidences: np.ndarray, hits: np.ndarray, points: int = 200) -> list[tuple[float, float]]:
    """(coverage, accuracy) of answering the surest images first, from few to all of them."""
    order = np.argsort(-confidences, kind="stable")
    counts = np.unique(np.linspace(max(1, len(hits) // 50), len(hits), min(points, len(hits))).astype(int))
    right = np.cumsum(hits[order])
    return [(count / len(hits), right[count - 1] / count) for count in counts.tolist()]
