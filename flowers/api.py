"""The Python API, which ``import flowers`` shows: ``load``, ``train``, ``predict_folder`` and what they return.

    import flowers

    with flowers.load("runs/a") as model:
        print(model.predict("photo.jpg").label)
        for prediction in model.predict(Path("photos").glob("*.jpg")):
            print(prediction.label or prediction.error)

It uses the decoder, engines and rules of ``jobs/predict.py``: the same machine and photo give the same probabilities.
"""

import collections
import itertools
import json
import numbers
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowers.config.predict import PredictConfig
from flowers.config.train import TrainConfig
from flowers.data.images import as_rgb, is_one_picture
from flowers.data.preprocessing import Preprocessing
from flowers.engines.engine import Engine, Outputs
from flowers.engines.exported import ExportedModel, open_model
from flowers.engines.exported_engine import open_engine
from flowers.errors import FlowersError, ImageError, UsageError
from flowers.machine import cpus_per_process
from flowers.prediction.rows import Guess, best_classes

_IN_FLIGHT = 2  # batches in the engine while the next one is decoded


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture: the values of a row of the predictions table.

    Attributes:
        topk: the most probable classes, best first; empty where there is an error.
        error: the short reason why the picture could not be read, or None.
        unfamiliar: the picture is like none of the classes; always False of a model that cannot tell.
        damage: what is missing or wrong in a file that was answered all the same, or None.
    """

    topk: tuple[Guess, ...]
    error: str | None = None
    unfamiliar: bool = False
    damage: str | None = None

    @property
    def label(self) -> str | None:
        """Display name of the best class; None where there is an error."""
        return self.topk[0].label if self.topk else None

    @property
    def class_name(self) -> str | None:
        """Folder name of the best class; None where there is an error."""
        return self.topk[0].class_name if self.topk else None

    @property
    def prob(self) -> float | None:
        """Probability of the best class; None where there is an error."""
        return self.topk[0].prob if self.topk else None


class _Flaw(NamedTuple):
    """A fault of a picture: the reason why it could not be read, or its damage."""

    error: str | None = None
    damage: str | None = None


class Model:
    """A trained model that is ready to answer; made by ``load``. Its methods may be called from several threads.

    Attributes:
        classes: folder name of each class, in index order.
        labels: display name of each class, in the same order.
        preprocessing: size, crop and normalisation of its input.
        hash: SHA-256 (hex) of everything that decides its answers.
        description: the engine, precision and device in use.
    """

    def __init__(self, path: str | os.PathLike, *, engine: str, precision: str, batch_size: int):
        batch_size = _count("batch_size", batch_size)
        model = open_model(Path(path))
        self.classes: tuple[str, ...] = tuple(model.classes.folders)
        self.labels: tuple[str, ...] = tuple(model.classes.labels)
        self.preprocessing: Preprocessing = model.preprocessing
        self.hash: str = model.hash
        self._width = None if isinstance(model, ExportedModel) else model.head.in_features
        self._familiarity = None if self._width is None else model.familiarity
        self._is_closed = False
        self._process = os.getpid()
        self._engine: Engine = open_engine(
            model, engine=engine, precision=precision, batch_size=batch_size, features=True
        )
        self.description: str = self._engine.description
        self._decoders = ThreadPoolExecutor(cpus_per_process(), thread_name_prefix="decode")

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<flowers.Model of {len(self.classes)} classes, {self.description}>"

    def close(self) -> None:
        """Stop the threads and free the network."""
        self._is_closed = True
        if os.getpid() != self._process:  # a fork has none of the threads, and would wait for them
            return
        self._decoders.shutdown(cancel_futures=True)
        self._engine.close()

    def predict(self, x: Any, topk: int = 5) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Classify one picture or many.

        Args:
            x: one picture (path, bytes of an image file, open binary file, Pillow image, or numpy array: grey [H, W],
                RGB [H, W, 3] or RGBA [H, W, 4]; uint8, uint16, or float from 0 to 1), an array [N, H, W, C], or any
                collection or iterator of pictures.
            topk: how many classes to return, at most all.

        Returns:
            A ``Prediction`` for one picture, a list for a collection or an array of four dimensions, an iterator for
            an iterator, which is read as the answers are taken. In lists and iterators a picture that cannot be read
            has its reason in ``error``. A file that decodes only in part has its guesses, and says so in ``damage``.

        Raises:
            ImageError: one picture was given and it cannot be read.
            UsageError: ``topk`` is below 1, or the model is closed, or was loaded in a process that forked this one.
        """
        topk = min(_count("topk", topk), len(self.classes))
        if is_one_picture(x):
            return self._predictions(*self._of_one(x), topk)[0]
        answers = (answer for outputs, flaws in self._batches(x) for answer in self._predictions(outputs, flaws, topk))
        return answers if isinstance(x, Iterator) else list(answers)

    def embed(self, x: Any) -> np.ndarray:
        """Compute the features that the head sees.

        Args:
            x: as for ``predict``.

        Returns:
            float32 [D] for one picture, else [N, D]; the row of a picture that cannot be read is NaN.

        Raises:
            ImageError: one picture was given and it cannot be read.
            UsageError: the model is an exported file, which has no features; or as for ``predict``.
        """
        if self._width is None:
            raise UsageError("embed: an exported file gives probabilities only; load the model that it was made from")
        if is_one_picture(x):
            outputs, _ = self._of_one(x)
            return outputs.features[0]
        rows = []
        for outputs, flaws in self._batches(x):
            features = outputs.features
            features[[flaw.error is not None for flaw in flaws]] = np.nan
            rows.append(features)
        return np.concatenate(rows) if rows else np.empty((0, self._width), np.float32)

    def _batches(self, pictures: Iterable) -> Iterator[tuple[Outputs, list[_Flaw]]]:
        """Decode and infer, overlapped: while the engine computes, the next batch is decoded."""
        pictures, waiting = iter(pictures), collections.deque()
        while batch := list(itertools.islice(pictures, self._engine.batch_size)):
            views, flaws = self._views(batch)
            waiting.append((self._engine.submit(views), flaws))
            if len(waiting) > _IN_FLIGHT:
                handle, flaws = waiting.popleft()
                yield handle.result(), flaws
        for handle, flaws in waiting:
            yield handle.result(), flaws

    def _of_one(self, picture: Any) -> tuple[Outputs, list[_Flaw]]:
        """The same for one picture.

        Raises:
            ImageError: it cannot be read.
        """
        [(outputs, flaws)] = self._batches([picture])
        if flaws[0].error is not None:
            raise ImageError(flaws[0].error)
        return outputs, flaws

    def _views(self, batch: list) -> tuple[np.ndarray, list[_Flaw]]:
        """Evaluation views uint8 [n, S, S, 3], black where a picture could not be read, and what is wrong with each."""
        if self._is_closed:
            raise UsageError("this model is closed: use it inside its `with` block, or load it again")
        if os.getpid() != self._process:
            raise UsageError("this model was loaded before this process was forked: load it in each process")
        found = list(self._decoders.map(self._view, batch)) if len(batch) > 1 else [self._view(batch[0])]
        black = np.zeros((*[self.preprocessing.crop] * 2, 3), np.uint8)
        return np.stack([black if view is None else view for view, _ in found]), [flaw for _, flaw in found]

    def _view(self, picture: Any) -> tuple[np.ndarray | None, _Flaw]:
        try:
            how = self.preprocessing
            image, damage = as_rgb(picture, how.min_short_side, how.to_srgb)
            return how.view(image), _Flaw(damage=damage)
        except FlowersError as error:
            return None, _Flaw(str(error))
        except Exception as error:  # of a file object that is closed, say; the pictures beside it have their answers
            return None, _Flaw(f"{type(error).__name__}: {error}")

    def _predictions(self, outputs: Outputs, flaws: list[_Flaw], topk: int) -> list[Prediction]:
        best = best_classes(outputs.probs, topk)
        unfamiliar = np.zeros(len(flaws), bool)
        if self._familiarity is not None:
            unfamiliar = self._familiarity.unfamiliar(outputs.probs, outputs.features)
        found = []
        for (error, damage), classes, probs, is_unfamiliar in zip(flaws, best, outputs.probs, unfamiliar, strict=True):
            if error is None and not np.isfinite(probs).all():
                error = "the model gave no finite probabilities"
            if error is not None:
                found.append(Prediction((), error))
                continue
            guesses = tuple(Guess(self.labels[index], self.classes[index], float(probs[index])) for index in classes)
            found.append(Prediction(guesses, None, bool(is_unfamiliar), damage))
        return found


def load(path: str | os.PathLike, *, engine: str = "auto", precision: str = "auto", batch_size: int = 32) -> Model:
    """Load a trained model and get it ready to run on this machine.

    Args:
        path: a run folder (its best model), a model bundle, a checkpoint, or an exported .onnx or .xml file.
        engine: "auto", "torch", "compile", "openvino" or, for .onnx files, "onnxruntime".
        precision: "auto", "float32", "bf16" or "fp16".
        batch_size: pictures computed at a time; the answers do not depend on it.

    Raises:
        ModelError: there is no model, or it is damaged.
        UsageError: an engine or precision that this machine does not have.
    """
    return Model(path, engine=engine, precision=precision, batch_size=batch_size)


def _count(name: str, value: Any) -> int:
    if not isinstance(value, numbers.Integral) or value < 1:
        raise UsageError(f"{name}: got {value!r}, expected a whole number of at least 1")
    return int(value)


class TrainResult(NamedTuple):
    """The result of a training run.

    Attributes:
        run_dir: the run folder; ``load`` takes it.
        metrics: figures by split, as in metrics.json.
    """

    run_dir: Path
    metrics: dict


def train(config: TrainConfig) -> TrainResult:
    """Train as ``jobs/train.py`` does, or resume.

    Args:
        config: ``flowers.TrainConfig(data_dir=..., ...)``; its fields are the flags.

    Raises:
        FlowersError: anything that the user can mend; StoppedError after a stop on request.
    """
    from flowers.training.train import train as run

    _forget_launch()
    run(config)
    run_dir = config.run_dir
    return TrainResult(run_dir, json.loads((run_dir / "metrics.json").read_text(encoding="utf-8")))


class FolderResult(NamedTuple):
    """The result of a bulk prediction.

    Attributes:
        output: the table.
        counts: files by status; none while processes or tasks beside this one have shards to do.
    """

    output: Path
    counts: dict[str, int]


def predict_folder(config: PredictConfig) -> FolderResult:
    """Classify a folder into a table as ``jobs/predict.py`` does, or resume.

    Args:
        config: ``flowers.PredictConfig(checkpoint=..., input=..., output=...)``; its fields are the flags.

    Raises:
        FlowersError: anything that the user can mend; StoppedError after a stop on request.
    """
    from flowers.data.formats import limits
    from flowers.prediction.predict import predict
    from flowers.prediction.table import finished_facts

    if config.from_table is not None:
        raise UsageError("from_table: predict_folder runs a model; start jobs/predict.py --from for a finished table")
    allowed_pixels = limits.allowed_pixels()
    try:
        predict(config)
    finally:
        limits.allow_pixels(allowed_pixels)  # for the models in use
    return FolderResult(config.output, (finished_facts(config.output, None) or {"counts": {}})["counts"])


def _forget_launch() -> None:
    """Let a notebook train a second time with another precision: Accelerate keeps the first one for the process."""
    from accelerate.state import AcceleratorState, PartialState

    if PartialState._shared_state.get("num_processes", 1) == 1:
        AcceleratorState._reset_state()
