"""Comparison of an exported file with its bundle on real photos."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flowers import console
from flowers.engines.engine import build_engine
from flowers.engines.exported import as_input, load_exported
from flowers.engines.exported_engine import build_exported_engine
from flowers.errors import ModelError
from flowers.exports.photos import BATCH_SIZE, Photos
from flowers.models.bundle import Bundle

Infer = Callable[[np.ndarray], np.ndarray]
"""From pictures uint8 [B, S, S, 3] to probs."""


@dataclass(frozen=True)
class Agreement:
    """Bundle and export on the same photos.

    Attributes:
        images: photos compared.
        unreadable: files that gave no picture.
        same_top1: share of photos with the same best class.
        max_prob_difference: largest difference of a probability.
        labelled: photos in class folders, of which the accuracies are; these are None where there are none.
    """

    photos: str
    images: int
    unreadable: int
    same_top1: float
    max_prob_difference: float
    labelled: int
    bundle_top1: float | None
    export_top1: float | None


def compare(bundle: Bundle, infer: Infer, photos: Photos) -> Agreement:
    """Run both on the photos: the bundle in PyTorch in float32, and the export.

    Raises:
        DataError: none of the photos gives a picture.
        ModelError: the export gives what is no number.
    """
    images = same = labelled = 0
    bundle_hits = export_hits = 0
    largest = 0.0
    reference = build_engine(bundle, engine="torch", precision="float32", batch_size=BATCH_SIZE)
    with contextlib.closing(reference), console.progress("compare", len(photos.paths)) as meter:
        for views, targets in photos.views(bundle.preprocessing):
            expected = reference.submit(views).result().probs
            probs = infer(views)
            if not np.isfinite(probs).all():  # fp16 that overflowed: its argmax is a class like any other
                raise ModelError(
                    "the export gives probabilities that are no numbers: nothing was written; use another --precision "
                    "or --format"
                )
            wanted, got = expected.argmax(1), probs.argmax(1)
            known = targets >= 0
            images += len(views)
            labelled += int(known.sum())
            same += int((wanted == got).sum())
            bundle_hits += int((wanted == targets)[known].sum())
            export_hits += int((got == targets)[known].sum())
            largest = max(largest, float(np.abs(expected - probs).max()))
            meter.advance(len(views), agree=same / images)
    accuracies = (bundle_hits / labelled, export_hits / labelled) if labelled else (None, None)
    return Agreement(photos.said, images, len(photos.paths) - images, same / images, largest, labelled, *accuracies)


@contextlib.contextmanager
def running(path: Path, format: str) -> Iterator[Infer]:
    """An exported file as others will run it.

    Raises:
        ModelError: it cannot be run.
    """
    if format == "torch-export":
        yield _torch_runner(path)
        return
    exported = load_exported(path)
    precision = "auto" if exported.precision == "int8" or format == "onnx" else "float32"
    engine = build_exported_engine(exported, precision=precision, batch_size=BATCH_SIZE)
    with contextlib.closing(engine):
        yield lambda images: engine.submit(images).result().probs


def _torch_runner(path: Path) -> Infer:
    program = torch.export.load(path)
    network = program.module()
    (example,), _ = program.example_inputs
    input_type = str(example.dtype).removeprefix("torch.")
    layout = "NHWC" if example.shape[-1] == 3 else "NCHW"

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(as_input(images, input_type, layout)))[0].numpy()

    return run
