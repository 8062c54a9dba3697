"""``report.html`` of a trained model: what it was measured to be, where it errs, how it came about."""

import base64
import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flowers import console
from flowers.data.corrections import CORRECTIONS_FILE
from flowers.data.folders import Samples
from flowers.models.bundle import Bundle
from flowers.parsing import read_json
from flowers.reports import calibration
from flowers.reports.advice import Known, advise, calibrate_command, check_command
from flowers.reports.answers import Answers
from flowers.reports.label_errors import LabelCheck
from flowers.reports.page import write_page
from flowers.reports.photos import ViewRow, photos
from flowers.reports.plots import Line, Plot, lay_out
from flowers.reports.run_record import RunRecord

PAIRS, PHOTOS_A_PAIR = 12, 2
MISTAKES, PICTURED, AT_FIRST = 1000, 240, 24
"""Mistakes that the page holds, those of them with a photo, and those that are shown before anything is chosen."""
MATRIX = 30
"""Of more classes than this the confusion matrix shows the most confused ones."""
MANY_CLASSES = 10
"""With no more classes than this, top5 is no headline: a guess would reach half of it."""
LEFT_OUT = 200
SUSPECTS = 24
"""Labels to check that the page shows; the audit has all of them."""
CALIBRATED = ("valid_ece_uncalibrated", "valid_ece_out_of_fold")
"""Figures of a model that was calibrated at the end of its training."""
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Background:
    """Background of a report beside the answers; unknown fields are left out of the page.

    Attributes:
        results: figures of each split that was measured, as in metrics.json.
        run_dir: folder with history.jsonl, timing.jsonl, tuning.json, lr_finder.png.
        splits: the data set's splits by name.
        findings: what the check of the data set found, see ``datasets.check_report.findings``; None: it was not made.
        views: what training images looked like.
        facts: names and what they are: device, time, ...
        data_dir: where the images are, as the user named it.
        left_out: by split, paths and reasons of the images that could not be read.
        labels: what was found about those of the training images.
    """

    results: Mapping[str, Mapping[str, float]]
    run_dir: Path | None = None
    splits: Mapping[str, Samples] = field(default_factory=dict)
    findings: Sequence[Sequence[object]] | None = None
    views: Sequence[ViewRow] = ()
    facts: Sequence[tuple[str, object]] = ()
    data_dir: Path | str | None = None
    left_out: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    labels: LabelCheck | None = None


def write_model_report(
    path: Path, bundle: Bundle, answers: Answers, background: Background, valid: Answers | None = None
) -> None:
    """Write the page.

    Args:
        answers: of the split that the details are about.
        valid: of the validation split, to fit a temperature on; may be ``answers``.

    Raises:
        FlowersError: the file cannot be written.
    """
    run_dir = background.run_dir
    record = RunRecord.read(run_dir) if run_dir is not None else RunRecord()
    best = record.best_epoch(bundle.metrics)
    confusions, mistakes = answers.confusions(PAIRS), answers.mistakes()
    examples = {pair.answer: answers.example(pair.answer) for pair in confusions}
    shown = {image for pair in confusions for image in pair.images[:PHOTOS_A_PAIR]} | set(mistakes[:PICTURED])
    shown |= {image for image in examples.values() if image is not None}
    error = calibration.calibration_error(answers.confidences, answers.hits)
    fits = valid is not None and "temperature" not in bundle.made
    temperature = _temperature(answers, valid) if fits else None
    config = bundle.made.get("config", {})
    known = Known(
        bundle.folder, _trained_in(run_dir), config, background.data_dir, background.splits,
        background.left_out, background.findings, _top1_at(record, best),
        error, temperature["error"] if temperature else None,
    )  # fmt: skip
    data = [("data", background.data_dir)] if background.data_dir is not None else []
    write_page(
        path,
        "report.html",
        title=f"{bundle.model}: {answers.split}, {len(answers.samples):,} images, {len(answers.classes)} classes",
        answers=answers,
        headlines=[_headline(split, values) for split, values in background.results.items()],
        has_top5=len(answers.classes) > MANY_CLASSES,
        best_epoch=best,
        epochs=max((line["epoch"] for line in record.history if "epoch" in line), default=None),
        advice=advise(answers, known),
        curves=[plot for plot in _curves(record, best) if plot],
        by_class=sorted(answers.by_class(), key=lambda row: (row.f1 is None, row.f1)),
        confusions=confusions,
        matrix=_matrix(answers),
        examples=examples,
        photos_a_pair=PHOTOS_A_PAIR,
        mistakes=mistakes[:MISTAKES],
        at_first=AT_FIRST,
        photos=photos({image: answers.samples.full_path(image) for image in sorted(shown)}),
        reliability=_reliability_plot(answers.confidences, answers.hits),
        calibration_error=error,
        bins=calibration.BINS,
        calibrated=[bundle.metrics[name] for name in CALIBRATED if name in bundle.metrics],
        temperature=temperature,
        coverage=_coverage_plot(answers),
        rules=calibration.rules(answers.confidences, answers.hits, THRESHOLDS),
        splits=_split_rows(background.splits, len(answers.classes)),
        left_out=[(split, path, why) for split, found in background.left_out.items() for path, why in found],
        most_left_out=LEFT_OUT,
        findings=background.findings,
        views=background.views,
        trials=_trials(run_dir),
        lr_finder=_lr_finder(run_dir),
        labels=background.labels,
        suspects=_suspects(background),
        audit=_audit_command(background, config),
        facts=[*_facts(bundle, record), *data, *background.facts],
        config=config,
        calibrate=calibrate_command(known),
        check=check_command(known),
    )


def _top1_at(record: RunRecord, epoch: float | None) -> dict[str, float]:
    """Top1 of train and valid at an epoch, as far as the history has it."""
    return {line["event"]: line["top1"] for line in record.history if line.get("epoch") == epoch and "top1" in line}


def _suspects(background: Background) -> list[dict]:
    """The labels to check that are shown: the photo, its path, the label, the suggested one, and why."""
    labels, train = background.labels, background.splits.get("train")
    if labels is None or train is None:
        return []
    shown = labels.suspicions[:SUSPECTS]
    pictures = photos({item.index: train.full_path(item.index) for item in shown})
    return [{"photo": pictures[item.index], "path": train.paths[item.index], "item": item} for item in shown]


def _audit_command(background: Background, config: Mapping[str, object]) -> str:
    """The command that finds all labels to check, with the features and the corrections that the run has."""
    words, run_dir = ["--data-dir", background.data_dir or "DATA", "--output-dir", "AUDIT"], background.run_dir
    if run_dir is not None and config.get("finetune") == "head" and config.get("feature_cache"):
        words += ["--checkpoint", run_dir]
    if run_dir is not None and (run_dir / CORRECTIONS_FILE).is_file() and not config.get("add"):
        words += ["--corrections", run_dir / CORRECTIONS_FILE]  # with --add some are of photos of other folders
    return shlex.join(console.job_command("audit", *words))


def _trained_in(run_dir: Path | None) -> Path | None:
    return run_dir if run_dir is not None and (run_dir / "config.yaml").is_file() else None


def _matrix(answers: Answers) -> dict:
    """Confusion matrix of up to ``MATRIX`` classes: for each row its class and the cells (answer, images, share)."""
    chosen = answers.most_confused(MATRIX)
    counts = answers.matrix(chosen)
    support = np.bincount(answers.targets, minlength=len(answers.classes))[chosen]
    shares = counts / np.maximum(support, 1)[:, None]
    rows = [zip(chosen, counts[row].tolist(), shares[row].tolist(), strict=True) for row in range(len(chosen))]
    return {"classes": chosen, "rows": list(zip(chosen, rows, strict=True))}


def _headline(split: str, values: Mapping[str, float]) -> dict:
    images = int(values["images"])
    low, high = calibration.wilson_interval(round(values["top1"] * images), images)
    return {"split": split, **values, "low": low, "high": high}


def _temperature(answers: Answers, valid: Answers) -> dict | None:
    """Effect on the calibration of dividing the logits by one number, fitted on the validation split."""
    fitted = calibration.fit_temperature(valid.logits, valid.targets)
    if fitted is None:
        return None
    probs = calibration.softmax(answers.logits / fitted)
    confidences, own = probs.max(1), probs[np.arange(len(probs)), answers.targets]
    return {
        "value": fitted,
        "split": valid.split,
        "loss": float(-np.log(np.maximum(own, 1e-300)).mean()),
        "error": calibration.calibration_error(confidences, answers.hits),
        "plot": _reliability_plot(confidences, answers.hits, f"Calibration at temperature {fitted:.3g}"),
    }


def _reliability_plot(confidences: np.ndarray, hits: np.ndarray, title: str = "Calibration, as it is") -> Plot | None:
    bins = calibration.reliability(confidences, hits)
    lines = [
        Line("perfect", [(0, 0), (1, 1)], "soft", dashed=True, marks=False),
        Line("share right", [(part.confidence, part.accuracy) for part in bins], "blue"),
    ]
    return lay_out(title, lines, x_label="confidence", x_range=(0, 1), y_range=(0, 1), percent=True, percent_x=True)


def _coverage_plot(answers: Answers) -> Plot | None:
    points = calibration.coverage_curve(answers.confidences, answers.hits)
    line = Line("top1 of the images answered", points, "green", marks=False)
    return lay_out(
        "Answering the surest images first",
        [line],
        x_label="share answered",
        x_range=(0, 1),
        percent=True,
        percent_x=True,
    )


def _curves(record: RunRecord, best: float | None) -> list[Plot | None]:
    """Loss, top1, learning rate, speed and waiting by epoch; the best epoch is marked where results are shown."""
    train, valid = record.of("train"), record.of("valid")

    def speed(name: str) -> list[tuple[float, float]]:
        return [(line["epoch"], line[name]) for line in record.epochs if name in line]

    marks = len(train) <= 40
    both = {name: [
        Line("train", record.points(name, train), "orange", dashed=True, marks=marks),
        Line("valid", record.points(name, valid), "blue", marks=marks),
    ] for name in ("loss", "top1")}  # fmt: skip
    mark = None if best is None else (best, f"best: epoch {best:.4g}")
    rates = Line("at an epoch's end", record.points("lr", train), "purple", marks=marks)
    return [
        lay_out("Loss", both["loss"], x_label="epoch", mark=mark),
        lay_out("Top1", both["top1"], x_label="epoch", percent=True, mark=mark),
        lay_out("Learning rate", [rates], x_label="epoch"),
        lay_out("Images a second", [Line("training", speed("images_per_s"), "green", marks=marks)], x_label="epoch"),
        lay_out(
            "Time spent waiting for data", [Line("share", speed("data_wait_share"), "vermillion", marks=marks)],
            x_label="epoch", percent=True,
        ),
    ]  # fmt: skip


def _facts(bundle: Bundle, record: RunRecord) -> list[tuple[str, object]]:
    made, view = bundle.made, bundle.preprocessing
    facts: list[tuple[str, object]] = [
        ("model", bundle.model),
        ("evaluation view", f"short side {view.resize} px, {view.crop} px from its middle, {view.interpolation}"),
        ("made", made.get("date")),
        ("git commit", made.get("git_commit")),
        ("versions", ", ".join(f"{name} {version}" for name, version in (made.get("versions") or {}).items())),
        ("model hash", bundle.hash),
    ]
    if record.seconds:
        epochs, speed = len(record.epochs), record.images_per_s
        facts.append(
            ("training time", f"{record.seconds:,.1f} s in {console.counted(epochs, 'epoch')}, {speed:,.1f} images/s")
        )
    return [(name, value) for name, value in facts if value]


def _split_rows(splits: Mapping[str, Samples], num_classes: int) -> list[dict]:
    rows = []
    for split, samples in splits.items():
        counts = np.bincount(samples.targets, minlength=num_classes)
        there = counts[counts > 0]
        missing = int((counts == 0).sum())
        row = {"split": split, "images": len(samples), "fewest": int(there.min()), "most": int(there.max())}
        rows.append({**row, "missing": missing})
    return rows


def _trials(run_dir: Path | None) -> list[dict]:
    """The trials of the search for a head; none if the file is damaged or missing."""
    for folder in (run_dir, run_dir / "head") if run_dir is not None else ():  # of a staged run it lies with the head
        with contextlib.suppress(OSError, ValueError):
            found = read_json(folder / "tuning.json")
            if isinstance(found, list) and all(isinstance(trial, dict) for trial in found):
                return found
    return []


def _lr_finder(run_dir: Path | None) -> str | None:
    """The curve of the learning-rate test, as the source of an image."""
    if run_dir is None or not (run_dir / "lr_finder.png").exists():
        return None
    return "data:image/png;base64," + base64.b64encode((run_dir / "lr_finder.png").read_bytes()).decode()
