"""Confidence intervals, calibration, temperature, and coverage against accuracy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 15
MAX_FITTED = 20_000
"""A temperature is fitted on so many images at most, spread evenly over the split; one number needs no more."""

MIN_KEPT = 50
"""A share of fewer answers says little: 50 of 50 right is at least 93% with a confidence of 95%."""
TEMPERATURES = (0.02, 50.0)
CURVE_POINTS = 200


class Bin(NamedTuple):
    """Images whose confidence lies in one stretch: how many, how sure on average, how often right."""

    count: int
    confidence: float
    accuracy: float


class Rule(NamedTuple):
    """Answering only above a probability: the share of images answered, and of these the share that is right."""

    above: float
    coverage: float
    accuracy: float | None


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share of hits in ``count`` trials; within [0, 1], and sound near its ends.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).
    """
    z = 1.959963984540054  # the normal quantile of 95%
    share, weight = hits / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def reliability(confidences: np.ndarray, hits: np.ndarray) -> list[Bin]:
    """Images by how sure the model was, in stretches of equal width, (low, high]; empty ones are left out.

    Args:
        confidences: [N] probability of the answer given.
        hits: [N] bool, whether it was right.
    """
    places = np.clip(np.ceil(confidences.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    sure = np.bincount(places, confidences, BINS)
    right = np.bincount(places, hits, BINS)
    return [Bin(int(counts[i]), sure[i] / counts[i], right[i] / counts[i]) for i in np.flatnonzero(counts)]


def calibration_error(confidences: np.ndarray, hits: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence| of the stretches, weighted by their images.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.
    """
    parts = reliability(confidences, hits)
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


def out_of_fold(logits: np.ndarray, targets: np.ndarray, folds: int = 5) -> np.ndarray | None:
    """Divide each image's logits by the temperature that the other folds fit: what it is worth on images unseen.

    Args:
        logits: [N, num_classes], of images sorted by class, so that every fold has some of each.
        targets: [N] class indices.

    Returns:
        [N, num_classes] float64; None where some fold fits no temperature.
    """
    scaled = logits.astype(np.float64)
    place = np.arange(len(targets)) % folds
    for fold in range(folds):
        temperature = fit_temperature(logits[place != fold], targets[place != fold])
        if temperature is None:
            return None
        scaled[place == fold] /= temperature
    return scaled


def sure_above(confidences: np.ndarray, hits: np.ndarray, accuracy: float) -> float | None:
    """Find the probability from which on so large a share of the answers is right, leaving out as few as possible.

    Args:
        confidences: [N] probability of the answer given.
        hits: [N] bool, whether it was right.
        accuracy: share of the answers kept that must be right.

    Returns:
        The threshold, halfway between the least sure answer kept and the next; 0 if all can be kept, None if even the
        surest ``MIN_KEPT`` cannot.
    """
    order = np.argsort(-confidences, kind="stable")
    shares = np.cumsum(hits[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(shares >= accuracy)
    if not len(enough) or enough[-1] + 1 < MIN_KEPT:
        return None
    last = int(enough[-1])
    if last + 1 == len(order):
        return 0.0
    return float(confidences[order[last : last + 2]].mean())


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


def coverage_curve(confidences: np.ndarray, hits: np.ndarray) -> list[tuple[float, float]]:
    """(coverage, accuracy) of answering the surest images first, from few to all of them."""
    order = np.argsort(-confidences, kind="stable")
    counts = np.unique(np.linspace(max(1, len(hits) // 50), len(hits), min(CURVE_POINTS, len(hits))).astype(int))
    right = np.cumsum(hits[order])
    return [(count / len(hits), right[count - 1] / count) for count in counts.tolist()]
