"""A photo's answer: decoded and classified by the same code as in bulk prediction, with a map of what it stands on.

The map is an occlusion map: the drop of a class's score when a part of the picture is covered. That looks only at what
goes in and what comes out, so it is the same for every network (convolutions, transformers) and every engine (PyTorch,
OpenVINO, ONNX Runtime), and there is no feature map that a network would have to have.

Source: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901, section 4.2.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowers.data.classes import display_names
from flowers.data.images import decode_image
from flowers.engines.engine import Engine
from flowers.engines.exported import open_model
from flowers.engines.exported_engine import open_engine
from flowers.models.bundle import Bundle
from flowers.prediction.rows import Guess, best_classes

STEPS = 8
"""Covers a row; each is twice as wide as the step between them, so that every inner cell is covered four times."""
_SMALLEST_PROB = 1e-6


def occlusion_map(engine: Engine, view: np.ndarray, target: int, prob: float, fill: tuple[int, int, int]) -> np.ndarray:
    """Measure the evidence for a class in each part of a picture.

    Args:
        view: uint8 [S, S, 3], as the network sees it.
        target: index of the class.
        prob: its probability for the whole picture.
        fill: colour of the covers, RGB; the mean that the network was trained with says nothing to it.

    Returns:
        float32 [STEPS, STEPS]: mean fall of the class's log-odds over the covers that lie on a cell. Above 0 speaks for
        the class, below 0 against it.
    """
    edges = np.linspace(0, len(view), STEPS + 1).round().astype(int)
    # Covers begin one cell outside, so that those at the border are looked at as often as the others.
    places = [(row, column) for row in range(-1, STEPS) for column in range(-1, STEPS)]
    falls, covers = np.zeros((STEPS, STEPS), np.float32), np.zeros((STEPS, STEPS), np.float32)
    whole = _log_odds(np.float32(prob))
    for first in range(0, len(places), engine.batch_size):
        batch = places[first : first + engine.batch_size]
        images = np.repeat(view[None], len(batch), axis=0)
        for image, (row, column) in zip(images, batch, strict=True):
            top, left = edges[max(row, 0)], edges[max(column, 0)]
            image[top : edges[min(row + 2, STEPS)], left : edges[min(column + 2, STEPS)]] = fill
        probs = engine.submit(images).result().probs[:, target]
        for (row, column), fall in zip(batch, whole - _log_odds(probs), strict=True):
            cells = slice(max(row, 0), row + 2), slice(max(column, 0), column + 2)
            falls[cells] += fall
            covers[cells] += 1
    return falls / covers


def _log_odds(probs: np.ndarray) -> np.ndarray:
    """Not the probability itself, which hardly moves while it is near 1."""
    probs = np.clip(probs.astype(np.float64), _SMALLEST_PROB, 1 - _SMALLEST_PROB)
    return np.log(probs / (1 - probs))


TOPK = 5
_BATCH_SIZE = 32


class Answer(NamedTuple):
    """The content of the page.

    Attributes:
        guesses: best first, at most ``TOPK``.
        view: uint8 [S, S, 3], what the network saw.
        evidence: float32 [n, n], of the best guess; see ``occlusion_map``.
        size: width and height of the photo as decoded, upright.
        damage: what is missing or wrong in the file, or None.
        unfamiliar: the photo is like none of the classes; always False of a model that cannot tell.
    """

    guesses: list[Guess]
    view: np.ndarray
    evidence: np.ndarray
    size: tuple[int, int]
    damage: str | None = None
    unfamiliar: bool = False


class Oracle:
    """A model that is ready to be asked.

    Args:
        checkpoint: a bundle, a run folder or an exported file.
        class_names: JSON of class folder to display name; default: the names in the model.

    Raises:
        ModelError: there is no model, or none that runs here.
        UsageError: an engine or precision that this machine does not have.
        DataError: the class names cannot be read.
    """

    def __init__(
        self, checkpoint: Path, class_names: Path | None = None, engine: str = "auto", precision: str = "auto"
    ):
        model = open_model(checkpoint)
        self.name = model.model
        self.folders, self.labels = model.classes.folders, model.classes.labels
        if class_names is not None:
            self.labels = display_names(self.folders, Path(), class_names)
        self._preprocessing = model.preprocessing
        self._familiarity = model.familiarity if isinstance(model, Bundle) else None
        options = {"engine": engine, "precision": precision, "batch_size": _BATCH_SIZE}
        self._engine: Engine = open_engine(model, **options, features=self._familiarity is not None)

    @property
    def description(self) -> str:
        """Return the description of the engine, for the user."""
        return self._engine.description

    def ask(self, source: str | os.PathLike | bytes) -> Answer:
        """Classify one photo and find out what the answer stands on.

        Raises:
            ImageError: there is no picture in it; the short reason.
        """
        preprocessing = self._preprocessing
        how = {"min_short_side": preprocessing.min_short_side, "to_srgb": preprocessing.to_srgb}
        image, damage = decode_image(source, **how)
        view = preprocessing.view(image)
        probs, features = self._engine.submit(view[None]).result()
        best = best_classes(probs, min(TOPK, len(self.folders)))[0]
        guesses = [Guess(self.labels[index], self.folders[index], float(probs[0, index])) for index in best]
        fill = tuple(round(255 * min(max(value, 0), 1)) for value in preprocessing.mean)
        evidence = occlusion_map(self._engine, view, int(best[0]), guesses[0].prob, fill)
        unfamiliar = self._familiarity is not None and bool(self._familiarity.unfamiliar(probs, features)[0])
        return Answer(guesses, view, evidence, (image.shape[1], image.shape[0]), damage, unfamiliar)

    def close(self) -> None:
        """Free the network."""
        self._engine.close()
