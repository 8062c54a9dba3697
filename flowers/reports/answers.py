"""Answers of a model on a split: right and wrong, by class, by pair of classes, by image."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from flowers.data.classes import ClassIndex
from flowers.data.folders import Samples
from flowers.reports.calibration import calibration_error, softmax, wilson_interval
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
        features: float32 [M, D], what the head saw of every ``models.familiarity.step_of(N)``-th image; or None.
    """

    split: str
    samples: Samples
    classes: ClassIndex
    logits: np.ndarray
    features: np.ndarray | None = None

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

    def confusions(self, most: int | None = None) -> list[Confusion]:
        """Return confused pairs (true, predicted class), those with the most images first, at most ``most`` of them."""
        pairs: dict[tuple[int, int], list[int]] = {}
        for image in self.mistakes():
            pairs.setdefault((int(self.targets[image]), int(self.predicted[image])), []).append(image)
        ranked = sorted(pairs.items(), key=lambda item: -len(item[1]))
        return [Confusion(*pair, images) for pair, images in ranked[:most]]

    def most_confused(self, most: int) -> list[int]:
        """Return all classes in index order if there are no more than ``most``, else those in the most mistakes."""
        size = len(self.classes)
        if size <= most:
            return list(range(size))
        wrong = ~self.hits
        counts = np.bincount(self.targets[wrong], minlength=size) + np.bincount(self.predicted[wrong], minlength=size)
        return sorted(np.argsort(-counts, kind="stable")[:most].tolist())

    def matrix(self, chosen: Sequence[int]) -> np.ndarray:
        """Count answers among the chosen classes, int64 [chosen, chosen]: row the true class, column the answer."""
        place = np.full(len(self.classes), -1)
        place[list(chosen)] = np.arange(len(chosen))
        rows, columns = place[self.targets], place[self.predicted]
        both = (rows >= 0) & (columns >= 0)
        counts = np.bincount(rows[both] * len(chosen) + columns[both], minlength=len(chosen) ** 2)
        return counts.reshape(len(chosen), len(chosen))

    def details(self) -> dict:
        """Figures beyond loss, top1 and top5, for JSON.

        Returns:
            top1_interval: 95% (Wilson); ece: expected calibration error; classes: images, precision, recall and F1 of
            each, null where they would divide by nothing; confusions: images of one class answered as another, the
            most frequent first.
        """
        folders = self.classes.folders
        return {
            "top1_interval": list(wilson_interval(int(self.hits.sum()), len(self.hits))),
            "ece": calibration_error(self.confidences, self.hits),
            "classes": [
                {
                    "class": folders[row.index], "label": self.label(row.index), "images": row.support,
                    "precision": row.precision, "recall": row.recall, "f1": row.f1,
                }
                for row in self.by_class()
            ],
            "confusions": [
                {"class": folders[pair.target], "answer": folders[pair.answer], "images": len(pair.images)}
                for pair in self.confusions()
            ],
        }  # fmt: skip

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
