"""Comparison of an exported file with its bundle on real photos."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flowers import console
from flowers.engines.engine import build_engine
from flowers.engines.exported import as_input, load_exported
from flowers.engines.exported_engine import build_exported_engine
from flowers.errors import DataError, ModelError
from flowers.exports.photos import Photos
from flowers.models.bundle import Bundle

BATCH_SIZE = 32


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


def compare(bundle: Bundle, path: Path, format: str, photos: Photos) -> Agreement:
    """Run both on the photos: the bundle in PyTorch in float32, the file as others will.

    Raises:
        DataError: none of the photos gives a picture.
        ModelError: the file cannot be run, or gives what is no number.
    """
    infer, close = _runner(path, format)
    try:
        return compare_with(bundle, infer, photos)
    finally:
        close()


def compare_with(bundle: Bundle, infer: Callable[[np.ndarray], np.ndarray], photos: Photos) -> Agreement:
    """Run the bundle and a function from pictures uint8 [B, S, S, 3] to probs on the photos.

    Raises:
        DataError: none of the photos gives a picture.
        ModelError: the function gives what is no number.
    """
    reference = build_engine(bundle, engine="torch", precision="float32", batch_size=BATCH_SIZE)
    try:
        return _compare(bundle, reference, infer, photos)
    finally:
        reference.close()


def _compare(bundle: Bundle, reference, infer: Callable[[np.ndarray], np.ndarray], photos: Photos) -> Agreement:
    images = same = labelled = 0
    bundle_hits = export_hits = 0
    largest = 0.0
    with console.progress("compare", len(photos.paths)) as meter:
        for views, targets in photos.views(bundle.preprocessing, BATCH_SIZE):
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
    if not images:
        raise DataError(f"{photos.said}: none of {len(photos.paths)} files is a readable image")
    accuracies = (bundle_hits / labelled, export_hits / labelled) if labelled else (None, None)
    return Agreement(photos.said, images, len(photos.paths) - images, same / images, largest, labelled, *accuracies)


def _runner(path: Path, format: str) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[], None]]:
    """A function from pictures to probs, and what to call in the end."""
    if format == "torch-export":
        return _torch_runner(path), lambda: None
    exported = load_exported(path)
    engine = build_exported_engine(
        exported, precision="auto" if exported.precision == "int8" or format == "onnx" else "float32",
        batch_size=BATCH_SIZE,
    )  # fmt: skip
    return lambda images: engine.submit(images).result().probs, engine.close


def _torch_runner(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    program = torch.export.load(path)
    network = program.module()
    (example,), _ = program.example_inputs
    input_type = str(example.dtype).removeprefix("torch.")
    layout = "NHWC" if example.shape[-1] == 3 else "NCHW"

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(as_input(images, input_type, layout)))[0].numpy()

    return run
