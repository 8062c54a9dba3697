"""Answers of a model on a split: right and wrong, by class, by pair of classes, by image."""

import functools
import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from flowers.data.classes import ClassIndex
from flowers.data.folders import Samples
from flowers.reports.calibration import softmax
from flowers.reports.metrics import Metrics, Tally


class ClassRow(NamedTuple):
    """One class: its images, and shares as fractions; None where they would divide by nothing."""

    index: int
    support: int
    precision: float | None
    recall: float | None
    f1: float | None


class Confusion(NamedTuple):
    """Images of one class that were taken for another."""

    target: int
    answer: int
    images: list[int]


@dataclass(frozen=True, eq=False)
class Answers:
    """The logits of a split, and the figures that follow from them.

    Attributes:
        split: its name.
        samples: N images.
        classes: what the logits stand for.
        logits: float32 [N, num_classes], in the order of the samples.
    """

    split: str
    samples: Samples
    classes: ClassIndex
    logits: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """[N] int64 class indices."""
        return self.samples.targets

    @functools.cached_property
    def metrics(self) -> Metrics:
        """Loss and hits by the same code that measures while training."""
        tally = Tally(len(self.samples), torch.device("cpu"))
        targets = torch.from_numpy(np.asarray(self.targets))
        tally.update(torch.arange(len(targets)), torch.ones(len(targets)), torch.from_numpy(self.logits), targets)
        return tally.result()

    @functools.cached_property
    def probs(self) -> np.ndarray:
        """float64 [N, num_classes]."""
        return softmax(self.logits)

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """[N] the class answered; of equal logits the lower index, as in the predictions table."""
        return self.logits.argmax(1)

    @functools.cached_property
    def confidences(self) -> np.ndarray:
        """float64 [N] probability of the answer."""
        return self.probs[np.arange(len(self.predicted)), self.predicted]

    @property
    def hits(self) -> np.ndarray:
        """[N] bool."""
        return self.predicted == self.targets

    def by_class(self) -> list[ClassRow]:
        """Support, precision, recall and F1 of each class, in index order."""
        size = len(self.classes)
        support = np.bincount(self.targets, minlength=size)
        answered = np.bincount(self.predicted, minlength=size)
        right = np.bincount(self.targets[self.hits], minlength=size)
        return [
            ClassRow(
                index,
                int(support[index]),
                _share(right[index], answered[index]),
                _share(right[index], support[index]),
                _share(2 * right[index], answered[index] + support[index]),
            )
            for index in range(size)
        ]

    def confusions(self, most: int) -> list[Confusion]:
        """Return the confused pairs (true, predicted class) with the most images, most confident first."""
        pairs: dict[tuple[int, int], list[int]] = {}
        for image in self.mistakes():
            pairs.setdefault((int(self.targets[image]), int(self.predicted[image])), []).append(image)
        ranked = sorted(pairs.items(), key=lambda item: -len(item[1]))
        return [Confusion(*pair, images) for pair, images in ranked[:most]]

    def mistakes(self) -> list[int]:
        """Images answered wrongly, the most confident first."""
        wrong = np.flatnonzero(~self.hits)
        return wrong[np.argsort(-self.confidences[wrong], kind="stable")].tolist()

    def example(self, index: int) -> int | None:
        """Return the most confident image of a class; None if the class has no image."""
        images = np.flatnonzero(self.targets == index)
        if not len(images):
            return None
        return int(images[np.argmax(self.probs[images, index])])

    def label(self, index: int) -> str:
        """Return the display name of a class."""
        return self.classes.labels[index]

    def path(self, image: int) -> str:
        """Return the path of an image within the data folder."""
        return os.fspath(self.samples.paths[image])


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
