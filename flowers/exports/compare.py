"""An export is kept only if it answers as its bundle does: written, compared on real photos, judged."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from flowers import console
from flowers.cli import to_plain
from flowers.config.export import LAYOUTS, ExportConfig
from flowers.engines.engine import build_engine
from flowers.engines.exported import as_input, files_of, load_exported
from flowers.engines.exported_engine import build_exported_engine
from flowers.errors import ModelError
from flowers.exports import graph
from flowers.exports.photos import BATCH_SIZE, Photos, photos_for
from flowers.made import how_made
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


def write_checked(config: ExportConfig, bundle: Bundle, path: Path) -> tuple[Agreement, str | None]:
    """Write the export to a temporary place and compare it with the bundle.

    Returns:
        how far they agree; the photos that int8 was calibrated on, for the user.

    Raises:
        ModelError: they agree too little.
    """
    photos = photos_to_compare(config, bundle)
    calibration, calibrated_on = None, None
    if config.precision == "int8":
        source = photos_for(bundle, config.calibration_images, "train", "--calibration-images")
        source = source.take(config.calibration_count)
        views = np.concatenate([images for images, _ in source.views(bundle.preprocessing)])
        calibration, calibrated_on = as_input(views, config.input_type, config.layout), source.said
    graph.write(config, bundle, calibration, path)
    with running(path, config.file_format()) as infer:
        size_bytes = sum(file.stat().st_size for file in files_of(path))
        return check(config, bundle, infer, photos, size_bytes, calibrated_on), calibrated_on


def photos_to_compare(config: ExportConfig, bundle: Bundle) -> Photos:
    """The photos of --check-images, or of the run's validation split."""
    return photos_for(bundle, config.check_images, "valid", "--check-images").take(config.check_count)


def check(
    config: ExportConfig, bundle: Bundle, infer: Infer, photos: Photos, size_bytes: int, calibrated: str | None = None
) -> Agreement:
    """Compare an export with its bundle, and tell how far they agree.

    Args:
        size_bytes: of the export, to be told.
        calibrated: the photos that int8 was calibrated on, to be told.

    Raises:
        DataError: none of the photos gives a picture.
        ModelError: they agree too little.
    """
    agreement = compare(bundle, infer, photos)
    _tell(config, bundle, agreement, calibrated, size_bytes)
    if agreement.same_top1 < config.threshold():
        raise ModelError(
            f"the export agrees with the bundle on {agreement.same_top1:.2%} of the photos, expected "
            f"{config.threshold():.2%}: nothing was written; "
            + ("calibrate on more photos, or use" if config.precision == "int8" else "use")
            + " another --precision or --format, or set --min-agreement"
        )
    return agreement


def how_checked(config: ExportConfig, bundle: Bundle, agreement: Agreement) -> dict:
    """What a file beside an export says of every format."""
    return {
        "format": config.format, "model_hash": bundle.hash, "agreement": asdict(agreement),
        "min_agreement": config.threshold(), "made": how_made(to_plain(config)),
    }  # fmt: skip


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


def _tell(config: ExportConfig, bundle: Bundle, agreement: Agreement, calibrated: str | None, size_bytes: int) -> None:
    side = bundle.preprocessing.crop
    shape = f"batch, {side}, {side}, 3" if config.layout == "NHWC" else f"batch, 3, {side}, {side}"
    rows = [
        ("input", f"images: {config.input_type} [{shape}], RGB, 0 to 255"),
        ("output", f"probs: float32 [batch, {len(bundle.classes)}]"),
    ] if config.format not in LAYOUTS else [
        ("input", f"images: float32 [batch, 3, {side}, {side}], RGB, normalised"),
        ("output", f"logits: float32 [batch, {len(bundle.classes)}]"),
    ]  # fmt: skip
    rows += [
        ("size", f"{size_bytes / 1e6:.1f} MB"),
        ("compared on", f"{console.counted(agreement.images, 'photo')}, {agreement.photos}"
                        + (f"; {agreement.unreadable} unreadable" if agreement.unreadable else "")),
        ("same top1", f"{agreement.same_top1:.2%}, largest difference of a probability "
                      f"{agreement.max_prob_difference:.1e}"),
    ]  # fmt: skip
    if calibrated:
        rows.insert(3, ("calibrated on", calibrated))
    if agreement.labelled:
        rows.append(("top1", f"{agreement.export_top1:.2%} of {agreement.labelled} photos in class folders, "
                             f"the bundle {agreement.bundle_top1:.2%}"))  # fmt: skip
    console.facts(f"{bundle.model}: {config.format} {config.precision}", rows)


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
