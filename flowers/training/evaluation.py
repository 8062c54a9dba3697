"""One evaluation job: a trained model, a split, its figures as a table, a JSON file and a page."""

import dataclasses
import json
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from flowers import console, distributed
from flowers.config.evaluate import EvaluateConfig
from flowers.data.folders import Samples, load_split
from flowers.errors import DataError
from flowers.files import make_folder, write_atomically
from flowers.models.bundle import Bundle, load_bundle
from flowers.models.temperature import store, with_temperature
from flowers.reports.answers import Answers
from flowers.reports.calibration import calibration_error, fit_temperature
from flowers.reports.metrics import LogitTable, Metrics
from flowers.reports.model_report import Background, write_model_report
from flowers.training.batches import AUTOCAST, eval_loader
from flowers.training.loop import evaluate
from flowers.training.reporting import can_report, data_findings, device_name, or_warn


def evaluate_bundle(config: EvaluateConfig) -> int:
    """Measure a model on a split with the training loop's own evaluation; on request make its probs calibrated.

    Returns:
        0.

    Raises:
        FlowersError: no such model or split, images that cannot be read, an output that cannot be written.
    """
    bundle = load_bundle(config.checkpoint)
    samples = load_split(config.data_dir, config.split, bundle.classes, drawn_split(bundle))
    place = config.checkpoint if config.checkpoint.is_dir() else bundle.folder  # the former may be a model.json
    output = config.output or place / f"metrics-{config.split}.json"
    if console.is_main_process():
        make_folder(output.parent)  # before the work, not after it
    accelerator = distributed.start(config.mixed_precision, default_precision="no")
    start_s = time.monotonic()
    reports = config.report and can_report(len(samples), len(bundle.classes))
    metrics, answers = measure(config, accelerator, bundle, samples, keep_logits=reports or config.calibrate)
    images_per_s = len(samples) / (time.monotonic() - start_s)
    if config.calibrate:
        bundle, answers = calibrate(accelerator, bundle, answers)
        metrics = answers.metrics
    figures = {"split": config.split, "data_dir": str(config.data_dir), "model_hash": bundle.hash}
    figures |= dataclasses.asdict(metrics)

    def write() -> None:
        with write_atomically(output) as file:
            json.dump(figures, file, indent=1)

    distributed.from_main(write)
    row = (config.split, metrics.images, f"{metrics.loss:.4f}", f"{metrics.top1:.4f}", f"{metrics.top5:.4f}")
    console.table(f"{bundle.model} on {config.data_dir}", ("split", "images", "loss", "top1", "top5"), [row])
    written = [("figures", output)]
    if reports and accelerator.is_main_process:
        page = output.with_name(f"report-{config.split}.html")
        facts = [("device", device_name(accelerator)), ("data", config.data_dir)]
        facts.append(("evaluation", f"{images_per_s:,.1f} images/s"))
        is_valid = config.split in ("valid", "val")
        with or_warn():
            results, splits = {config.split: metrics.to_dict()}, {config.split: samples}
            findings = data_findings(bundle.classes, splits)
            background = Background(results, run_folder(bundle), splits, findings, facts=facts)
            write_model_report(page, bundle, answers, background, answers if is_valid else None)
            written.append(("report", page))
    photos = ("--input", "PHOTOS", "--output", "predictions.csv")
    console.done("evaluated", written, [console.job_command("predict", "--checkpoint", config.checkpoint, *photos)])
    return 0


def measure(
    config: EvaluateConfig, accelerator: Accelerator, bundle: Bundle, samples: Samples, keep_logits: bool
) -> tuple[Metrics, Answers | None]:
    """Run the model over the split, every image once; all ranks get the same."""
    classifier = bundle.build().to(accelerator.device, memory_format=torch.channels_last)
    dtype = AUTOCAST[accelerator.mixed_precision]
    loader = eval_loader(config, accelerator, samples, bundle.preprocessing)
    network = accelerator.prepare_model(classifier, evaluation_mode=True)
    table = LogitTable(len(samples), len(bundle.classes)) if keep_logits else None
    with console.progress(f"evaluate {config.split}", len(samples)) as meter:
        metrics = evaluate(
            accelerator,
            network,
            lambda batch: bundle.preprocessing.normalize(batch.images, dtype),
            loader,
            len(samples),
            lambda count: meter.advance(count * accelerator.num_processes),
            table,
        )
    if table is None:
        return metrics, None
    return metrics, Answers(config.split, samples, bundle.classes, table.result(accelerator.reduce, accelerator.device))


def calibrate(accelerator: Accelerator, bundle: Bundle, answers: Answers) -> tuple[Bundle, Answers]:
    """Fit a temperature, store it in the model's folder, and say what it did.

    Returns:
        The model and its answers as they are now.

    Raises:
        DataError: none fits best, since every answer is right, say.
    """
    temperature = fit_temperature(answers.logits, answers.targets)
    if temperature is None:
        raise DataError(
            f"--calibrate: {int(answers.hits.sum())} of {len(answers.hits)} answers are right, which no temperature "
            "fits best; nothing was stored. Calibrate on more images, some of them hard ones"
        )
    calibrated = with_temperature(bundle, temperature)
    after = dataclasses.replace(answers, logits=(answers.logits / temperature).astype(answers.logits.dtype))
    distributed.from_main(lambda: store(calibrated))
    errors = [calibration_error(found.confidences, found.hits) for found in (answers, after)]
    console.say(
        f"temperature {temperature:.4f} stored in {console.plain(bundle.folder)}: calibration error {errors[0]:.4f} -> "
        f"{errors[1]:.4f}, loss {answers.metrics.loss:.4f} -> {after.metrics.loss:.4f}, the same answers"
    )
    return calibrated, after


def run_folder(bundle: Bundle) -> Path | None:
    """The folder of the run that made a model, where it still lies in one."""
    return next(
        (folder for folder in (bundle.folder, bundle.folder.parent) if (folder / "history.jsonl").exists()), None
    )


def drawn_split(bundle: Bundle) -> Path | None:
    """The split that a run without valid/ drew for itself, where the model still lies in the run's folder.

    It may lie as deep as checkpoints/step-00000123/, or head/best/ of a staged run.
    """
    folder = bundle.folder.resolve()
    files = (above / "split.json" for above in (folder, *folder.parents[:2]))
    return next((file for file in files if file.exists()), None)
