"""A photo's answer: decoded, looked at and classified by the same code as in bulk prediction."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowers.data.classes import display_names
from flowers.data.images import decode_image
from flowers.demo.occlusion import occlusion_map
from flowers.engines.engine import Engine
from flowers.engines.exported import open_model
from flowers.engines.exported_engine import open_engine
from flowers.prediction.rows import best_classes

TOPK = 5
_BATCH_SIZE = 32


class Guess(NamedTuple):
    """A class and how probable it is: display name, folder's name, 0 to 1."""

    label: str
    class_name: str
    prob: float


class Answer(NamedTuple):
    """The content of the page.

    Attributes:
        guesses: best first, at most ``TOPK``.
        view: uint8 [S, S, 3], what the network saw.
        evidence: float32 [n, n], of the best guess; see ``occlusion_map``.
        size: width and height of the photo as decoded, upright.
        damage: what is missing or wrong in the file, or None.
    """

    guesses: list[Guess]
    view: np.ndarray
    evidence: np.ndarray
    size: tuple[int, int]
    damage: str | None = None


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
        self._engine: Engine = open_engine(model, engine=engine, precision=precision, batch_size=_BATCH_SIZE)

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
        probs = self._engine.submit(view[None]).result().probs
        best = best_classes(probs, min(TOPK, len(self.folders)))[0]
        guesses = [Guess(self.labels[index], self.folders[index], float(probs[0, index])) for index in best]
        fill = tuple(round(255 * min(max(value, 0), 1)) for value in preprocessing.mean)
        evidence = occlusion_map(self._engine, view, int(best[0]), guesses[0].prob, fill)
        return Answer(guesses, view, evidence, (image.shape[1], image.shape[0]), damage)

    def close(self) -> None:
        """Free the network."""
        self._engine.close()
