"""Advice on the next steps with a model: up to three sentences derived from its figures, each with a command."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowers import console
from flowers.data.folders import Samples
from flowers.reports.answers import Answers
from flowers.reports.calibration import wilson_interval

MOST = 3
OVERFIT = 0.08
"""From this difference of top1 on, training and validation, the model is said to overfit."""
SMALL = 0.5
"""A class with less than this share of the median class's training images is small."""
UNCALIBRATED = 0.05
"""From this calibration error on, a temperature is advised."""


class Advice(NamedTuple):
    """One sentence or two, and the command that does it."""

    text: str
    command: str


@dataclass(frozen=True)
class Known:
    """Facts about a model that advice follows from; what is unknown is left out.

    Attributes:
        model: folder of the model.
        run_dir: its run folder, if it lies in one that holds a config.yaml.
        config: the flags it was trained with.
        data_dir: where the images are.
        splits: those of the data set that were loaded.
        left_out: by split, paths and reasons of the images that could not be read.
        findings: as ``datasets.check_report.findings``.
        top1: of the best epoch, by "train" and "valid".
        calibrated_error: calibration error that a temperature would leave; None if none was fitted.
        error: calibration error as it is.
    """

    model: Path | None
    run_dir: Path | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    data_dir: Path | str | None = None
    splits: Mapping[str, Samples] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    findings: Sequence[Sequence[object]] | None = None
    top1: Mapping[str, float] = field(default_factory=dict)
    error: float = 0.0
    calibrated_error: float | None = None


def advise(answers: Answers, known: Known) -> list[Advice]:
    """Say what stands out, the most serious first; where nothing does, how to use the model."""
    checks = (
        _unreadable(known), _leaked(known), _unlearned(answers, known), _overfit(known), _small(answers, known),
        _uncalibrated(known),
    )  # fmt: skip
    found = [advice for advice in checks if advice is not None]
    if not found:
        words = ("--checkpoint", known.model or "MODEL", "--input", "PHOTOS", "--output", "predictions.csv")
        found = [Advice("Nothing in these figures stands out. Use the model on photos:", _command("predict", *words))]
    return found[:MOST]


def _unreadable(known: Known) -> Advice | None:
    count = sum(map(len, known.left_out.values()))
    if not count:
        return None
    images = console.counted(count, "image cannot be read and was", "images cannot be read and were")
    return Advice(f"{images} left out. Replace the files, or remove them:", check_command(known))


def _leaked(known: Known) -> Advice | None:
    for what, count, examples in known.findings or ():
        text = str(what)
        if text.endswith("that are in train, too"):
            split = text.removeprefix("images of ").split(" ")[0]
            return Advice(
                f"Images of {split} that are in train, too: {count} ({examples}). The figures of {split} are better "
                "than they should be. Remove one of the two copies:", check_command(known),
            )  # fmt: skip
        if text in ("same picture in two classes", "exact duplicates"):
            return Advice(
                f"{text.capitalize()}: {count} ({examples}). Keep one of them, in its class:", check_command(known)
            )
    return None


def _unlearned(answers: Answers, known: Known) -> Advice | None:
    counts = np.bincount(answers.targets)
    always = int(counts.max())
    low, _ = wilson_interval(int(answers.hits.sum()), len(answers.hits))
    if low > always / len(answers.hits) or np.count_nonzero(counts) < 2:
        return None
    random = known.config.get("weights") == "none"
    remedy = "start from pre-trained weights" if random else "train longer"
    flags = ("--weights", "default") if random else ("--epochs", 2 * int(known.config.get("epochs") or 20))
    return Advice(
        f"The model is not better than always giving the most frequent class ({always / len(answers.hits):.1%}). Check "
        f"that the folders hold what their names say, and {remedy}:", _retrain(known, *flags),
    )  # fmt: skip


def _overfit(known: Known) -> Advice | None:
    train, valid = known.top1.get("train"), known.top1.get("valid")
    if train is None or valid is None or train - valid < OVERFIT:
        return None
    if known.config.get("finetune") == "head" and known.config.get("feature_cache"):
        flags = ("--views", max(8, 2 * int(known.config.get("views") or 1)))
        remedy = "more augmented views of each image"
    else:
        flags, remedy = ("--auto-augment", "trivial", "--mixup-alpha", 0.2), "stronger augmentation"
    return Advice(
        f"The model overfits: top1 is {train:.1%} on the training images and {valid:.1%} on the validation images. "
        f"More photos help most, then {remedy}:", _retrain(known, *flags),
    )  # fmt: skip


def _small(answers: Answers, known: Known) -> Advice | None:
    if "train" not in known.splits or known.config.get("balance") == "classes":
        return None
    counts = np.bincount(known.splits["train"].targets, minlength=len(answers.classes))
    smallest, middle = int(counts.argmin()), float(np.median(counts))
    recall = answers.by_class()[smallest].recall
    if counts[smallest] >= SMALL * middle or recall is None or recall >= answers.metrics.top1:
        return None
    images = console.counted(int(counts[smallest]), "training image")
    return Advice(
        f"The smallest class, {answers.label(smallest)}, has {images} (the median is "
        f"{middle:g}), and {recall:.0%} of its {answers.split} images are recognised. Add photos of it, or draw all "
        "classes equally often:", _retrain(known, "--balance", "classes"),
    )  # fmt: skip


def _uncalibrated(known: Known) -> Advice | None:
    if known.error < UNCALIBRATED or known.calibrated_error is None or known.calibrated_error > known.error / 2:
        return None
    return Advice(
        f"The probabilities are not calibrated: they differ from the share of right answers by {known.error:.1%} on "
        f"average; a temperature would leave {known.calibrated_error:.1%}:", calibrate_command(known),
    )  # fmt: skip


def check_command(known: Known) -> str:
    """The command that looks for all faults of the data set."""
    return _command("prepare", "check", "--data-dir", known.data_dir or "DATA")


def calibrate_command(known: Known) -> str:
    """The command that stores the temperature in the model."""
    data = known.data_dir or "DATA"
    return _command(
        "evaluate", "--checkpoint", known.model or "MODEL", "--data-dir", data, "--split", "valid", "--calibrate"
    )


def _retrain(known: Known, *flags: object) -> str:
    run_dir = known.run_dir
    if run_dir is None:
        return _command("train", "--data-dir", known.data_dir or "DATA", "--output-dir", "RUN", *flags)
    words = ("--config", run_dir / "config.yaml", "--output-dir", run_dir.with_name(f"{run_dir.name}-2"), *flags)
    return _command("train", *words)


def _command(job: str, *words: object) -> str:
    return shlex.join(console.job_command(job, *words))
