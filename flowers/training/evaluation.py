"""Evaluation of a network on a split, the evaluation job, and the reports of training and evaluation."""

import contextlib
import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowers import console, distributed
from flowers.config.evaluate import EvaluateConfig
from flowers.data.choice import Choice, said_left_out
from flowers.data.classes import ClassIndex, renamed
from flowers.data.corrections import Corrections, read_corrections
from flowers.data.folders import Samples, load_split, warn_of_missing_classes
from flowers.data.formats import limits
from flowers.data.loaders import Batch
from flowers.datasets.check import check_splits
from flowers.datasets.check_report import findings
from flowers.engines.engine import Engine, build_engine
from flowers.errors import DataError, FlowersError, NoSplitError, OutputError
from flowers.files import make_folder, write_atomically
from flowers.models.bundle import Bundle, load_bundle
from flowers.models.familiarity import MIN_FITTED, fit_familiarity, step_of
from flowers.models.temperature import store, with_temperature
from flowers.parsing import read_json
from flowers.reports.answers import Answers
from flowers.reports.calibration import calibration_error, fit_temperature, out_of_fold, softmax, sure_above
from flowers.reports.metrics import FeatureTable, LogitTable, Metrics, Tally
from flowers.reports.model_report import Background, write_model_report
from flowers.reports.photos import training_views
from flowers.training.bad_images import find_bad, leave_out, listing_bad_images, warn_of_damaged
from flowers.training.batches import AUTOCAST, eval_loader, to_device
from flowers.training.checkpoint import CORRECTIONS_FILE
from flowers.training.stage import Stage

ENGINE_PRECISION = {None: "auto", "no": "float32", "fp16": "fp16", "bf16": "bf16"}
IN_FLIGHT = 3  # batches that wait in the engine while the next one is read
MAX_LOGITS = 250_000_000
"""A larger table of logits (1 GB) is not gathered for a report."""
MIN_CALIBRATED, MIN_MISTAKES = 100, 5
"""Images, and wrong answers among them, from which on training stores a temperature."""
SURE = 0.99
"""Share of the answers that must be right at the threshold of ``--min-prob auto``."""
MAX_CHECKED = 10_000
"""For more images the report leaves the data check to ``prepare.py check``; these take about 15 s."""


@torch.inference_mode()
def evaluate(
    accelerator: Accelerator,
    network: nn.Module,
    inputs: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    num_images: int,
    meter: console.Meter | None = None,
    logits: LogitTable | None = None,
    features: FeatureTable | None = None,
) -> Metrics:
    """Measure a network on a split, every image exactly once over all ranks.

    Args:
        inputs: gives the network's input for a batch.
        batches: this rank's share; rows of weight 0 only pad the shape.
        num_images: of the whole split.
        meter: shows the progress of all ranks.
        logits: filled with the logits of this rank's images.
        features: filled with what the head sees of them.

    Raises:
        TrainingError: an image was missed or counted twice.
    """
    network.eval()
    tally = Tally(num_images, accelerator.device)
    with features.watching() if features is not None else contextlib.nullcontext():
        for batch in to_device(iter(batches), accelerator.device):
            scores = network(inputs(batch))
            tally.update(batch.indices, batch.weights, scores, batch.targets)
            if logits is not None:
                logits.update(batch.indices, batch.weights, scores)
            if features is not None:
                features.take(batch.indices, batch.weights)
            if meter is not None:
                meter.advance(len(batch.targets) * accelerator.num_processes)
    return tally.result(accelerator.reduce)


def evaluate_bundle(config: EvaluateConfig) -> int:
    """Measure a saved model with the evaluation used in training; with --calibrate, fit its temperature and thresholds.

    Returns:
        0.

    Raises:
        FlowersError: no such model or split, images that cannot be read, an output that cannot be written or that
            holds figures of other data.
    """
    distributed.join_step()
    limits.allow_pixels(config.max_pixels)
    bundle = load_bundle(config.checkpoint)
    trained = as_trained(bundle)
    classes = renamed(bundle.classes, config.class_names)
    config, samples, corrections = find_samples(config, bundle)
    output = config.output or _default_output(config, bundle)
    accelerator = distributed.start(config.mixed_precision, default_precision=_precision_in_training(trained))
    distributed.from_main(lambda: _claim(output, config))  # before the work, not after it
    bad: dict[str, list[tuple[str, str]]] = {}
    if (config.on_bad_image or trained.get("on_bad_image")) == "skip":
        bad = {config.split: find_bad(accelerator, samples, config.workers)[0]}
        samples = leave_out({config.split: samples}, bad)[config.split]
        if not len(samples):
            raise DataError(f"{console.plain(config.data_dir)}, {config.split}: no image of it can be read")
    start_s = time.monotonic()
    reports = config.report and can_report(len(samples), len(bundle.classes))
    keep_logits = config.calibrate or can_gather(len(samples), len(bundle.classes))
    with listing_bad_images({config.split: samples}, config.workers):
        metrics, answers, computed_by, damaged = measure(config, accelerator, bundle, samples, keep_logits)
    warn_of_damaged(len(damaged))
    images_per_s = len(samples) / (time.monotonic() - start_s)
    if config.calibrate:
        bundle, answers = calibrate(bundle, answers)
        bundle = learn_unfamiliar(bundle, answers)
        metrics = answers.metrics
    if answers is not None:
        answers = dataclasses.replace(answers, classes=classes)
    figures = {"split": config.split, "data_dir": str(config.data_dir), "model_hash": bundle.hash}
    figures |= dataclasses.asdict(metrics) | (answers.details() if answers is not None else {})
    figures |= {"computed_by": computed_by, "left_out": [path for found in bad.values() for path, _ in found]}
    figures["damaged"] = damaged
    if corrections is not None:
        figures["corrections"] = corrections.digest
    if config.max_images is not None:
        figures["max_images"] = config.max_images

    def write() -> None:
        with write_atomically(output) as file:
            json.dump(figures, file, indent=1)

    distributed.from_main(write)
    row = (config.split, metrics.images, f"{metrics.loss:.4f}", f"{metrics.top1:.4f}", f"{metrics.top5:.4f}")
    console.table(f"{bundle.model} on {config.data_dir}", ("split", "images", "loss", "top1", "top5"), [row])
    written = [("figures", output)]
    if reports and accelerator.is_main_process:
        page = output.with_name(f"report-{_result_name(config, bundle)}.html")
        facts = [("device", device_name(accelerator)), ("computed by", computed_by)]
        facts.append(("evaluation", f"{images_per_s:,.1f} images/s"))
        is_valid = config.split in ("valid", "val")
        with or_warn():
            results, splits = {config.split: metrics.to_dict()}, {config.split: samples}
            found = data_findings(bundle.classes, splits)
            background = Background(
                results, run_folder(bundle), splits, found, facts=facts, data_dir=config.data_dir, left_out=bad
            )
            write_model_report(page, bundle, answers, background, answers if is_valid else None)
            written.append(("report", page))
    photos = ("--input", "PHOTOS", "--output", "predictions.csv")
    console.done("evaluated", written, [console.job_command("predict", "--checkpoint", config.checkpoint, *photos)])
    return 0


def find_samples(config: EvaluateConfig, bundle: Bundle) -> tuple[EvaluateConfig, Samples, Corrections | None]:
    """The images to measure on, with the name of their split in the config, and the corrections of their labels.

    Raises:
        DataError: there are none.
    """
    choice, corrections = Choice(exclude=config.exclude), _corrections(config, bundle)
    split_file, where = file_of_run(bundle, "split.json"), console.plain(config.data_dir)
    try:
        split = config.split or "test"
        samples = load_split(config.data_dir, split, bundle.classes, split_file, corrections, choice)
    except NoSplitError as error:
        if config.split is not None:
            raise
        choice, split = Choice(exclude=config.exclude), "valid"
        try:
            samples = load_split(config.data_dir, split, bundle.classes, split_file, corrections, choice)
        except NoSplitError:
            raise error from None
        drawn = "as the run drew it from train, " if split_file is not None else ""
        console.say(f"{where}: there is no test split; measured on valid, {drawn}which the best model was chosen by")
    if choice.left_out:
        console.say(console.plain(f"{config.data_dir}: {said_left_out(choice.left_out)}"))
    warn_of_missing_classes(f"{where}, {split}", samples, bundle.classes)
    samples = samples.at_most(config.max_images, 0, split)
    return dataclasses.replace(config, split=split), samples, corrections


def as_trained(bundle: Bundle) -> Mapping[str, object]:
    """The flags that a model was trained with; empty where its model.json does not tell them."""
    flags = bundle.made.get("config")
    return flags if isinstance(flags, dict) else {}


def _precision_in_training(trained: Mapping[str, object]) -> str | None:
    """The precision of the network in training; None: the fastest one, as the default for whole networks is."""
    asked = trained.get("mixed_precision")
    if asked in AUTOCAST and (asked != "fp16" or torch.cuda.is_available()):
        return asked
    return None if trained.get("finetune") in ("full", "staged") else "no"


def _is_of_run(config: EvaluateConfig, bundle: Bundle) -> bool:
    """True if the data is what the model was trained on, or nobody knows what that was."""
    trained_on = as_trained(bundle).get("data_dir")
    return not isinstance(trained_on, str) or _is_same_data(Path(trained_on), config.data_dir)


def _is_same_data(one: Path, other: Path) -> bool:
    """True for one place; or for one name where the first place is gone: data moves from a cluster to a laptop."""
    return one.resolve() == other.resolve() or (not one.exists() and _name(one) == _name(other))


def _name(data_dir: Path) -> str:
    return data_dir.resolve().stem


def _default_output(config: EvaluateConfig, bundle: Bundle) -> Path:
    """Beside the model."""
    place = config.checkpoint if config.checkpoint.is_dir() else bundle.folder  # the former may be a model.json
    return place / f"metrics-{_result_name(config, bundle)}.json"


def _result_name(config: EvaluateConfig, bundle: Bundle) -> str:
    """The split; before it the data where it is not the run's, behind it the number of images where it is a choice."""
    data = "" if _is_of_run(config, bundle) else f"{_name(config.data_dir)}-"
    return f"{data}{config.split}" + (f"-{config.max_images}-images" if config.max_images else "")


def _claim(output: Path, config: EvaluateConfig) -> None:
    """Make the output's folder; refuse a file there that holds anything but figures of the same data and split.

    Raises:
        OutputError: it does.
    """
    make_folder(output.parent)
    if config.overwrite or not output.exists():
        return
    try:
        found = read_json(output)
        split, data_dir, most = found["split"], Path(found["data_dir"]), found.get("max_images")
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        what = "is no file of figures"
    else:
        if (split, most) == (config.split, config.max_images) and _is_same_data(data_dir, config.data_dir):
            return
        what = f"holds the figures of {console.plain(data_dir)}, {split}" + (f", {most} images" if most else "")
    raise OutputError(f"{console.plain(output)} {what}; choose another --output, or pass --overwrite to replace it")


def measure(
    config: EvaluateConfig, accelerator: Accelerator, bundle: Bundle, samples: Samples, keep_logits: bool
) -> tuple[Metrics, Answers | None, str, list[str]]:
    """Run the model over the split, every image once; all ranks get the same result.

    A head that was trained on cached features is measured on features of the same engine, as in training.

    Returns:
        The figures; the answers, unless the logits are too many; what computed them, for the user; the images that are
        damaged, but were measured as they decode.
    """
    trained = as_trained(bundle)
    classifier = bundle.build().to(accelerator.device, memory_format=torch.channels_last)
    dtype = AUTOCAST[accelerator.mixed_precision]
    loader = eval_loader(config, accelerator, samples, bundle.preprocessing)
    table = LogitTable(len(samples), len(bundle.classes)) if keep_logits else None
    seen = features_of_some(len(samples), bundle, classifier.head) if config.calibrate else None
    engine = None
    if trained.get("finetune") == "head" and trained.get("feature_cache") is True and config.mixed_precision is None:
        engine = build_engine(
            classifier.backbone,
            bundle.preprocessing,
            precision=ENGINE_PRECISION.get(_precision_in_training(trained) if trained.get("mixed_precision") else None),
            batch_size=config.batch_size,
            device=accelerator.device,
        )
    module = classifier if engine is None else classifier.head
    network = accelerator.prepare_model(module, evaluation_mode=True)
    batches = loader if engine is None else _with_features(loader, engine)
    computed_by = engine.description if engine is not None else f"torch, precision {accelerator.mixed_precision}"
    console.say(f"measured by {computed_by}")

    def inputs(batch: Batch) -> Tensor:
        return bundle.preprocessing.normalize(batch.images, dtype) if engine is None else batch.images

    with console.progress(f"evaluate {config.split}", len(samples)) as meter:
        metrics = evaluate(accelerator, network, inputs, batches, len(samples), meter, table, seen)
    if engine is not None:
        engine.close()
    of_ranks = distributed.from_all(lambda: loader.damaged)
    damaged = [samples.paths[index] for index in sorted({place for found in of_ranks for place in found})]
    if table is None:
        return metrics, None, computed_by, damaged
    logits, features = (found and found.result(accelerator.reduce, accelerator.device) for found in (table, seen))
    return metrics, Answers(config.split, samples, bundle.classes, logits, features), computed_by, damaged


def _with_features(batches: Iterable[Batch], engine: Engine) -> Iterator[Batch]:
    """The batches with features [B, D] in the place of their images; some are in the engine at a time."""
    waiting: deque = deque()
    for batch in batches:
        waiting.append((batch, engine.submit(batch.images.numpy())))
        if len(waiting) > IN_FLIGHT:
            batch, handle = waiting.popleft()
            yield batch._replace(images=torch.from_numpy(handle.result().features))
    for batch, handle in waiting:
        yield batch._replace(images=torch.from_numpy(handle.result().features))


def calibrate(bundle: Bundle, answers: Answers) -> tuple[Bundle, Answers]:
    """Fit a temperature and the threshold of ``--min-prob auto``, store them in the model's folder, and say so.

    Returns:
        The calibrated model and its answers.

    Raises:
        DataError: no temperature fits best, for example because every answer is correct.
    """
    temperature = fit_temperature(answers.logits, answers.targets)
    if temperature is None:
        raise DataError(
            f"--calibrate: cannot fit a temperature: {int(answers.hits.sum())} of {len(answers.hits)} answers are "
            "correct. Nothing was stored; calibrate on more, and harder, images"
        )
    after = dataclasses.replace(answers, logits=(answers.logits / temperature).astype(answers.logits.dtype))
    made = {name: value for name, value in bundle.made.items() if name != "min_prob"}
    min_prob = sure_above(after.confidences, after.hits, SURE)
    if min_prob is not None:
        made["min_prob"] = round(min_prob, 4)
    calibrated = with_temperature(dataclasses.replace(bundle, made=made), temperature)
    distributed.from_main(lambda: store(calibrated))
    errors = [calibration_error(found.confidences, found.hits) for found in (answers, after)]
    console.say(
        f"temperature {temperature:.4f} stored in {console.plain(bundle.folder)}: calibration error {errors[0]:.4f} -> "
        f"{errors[1]:.4f}, loss {answers.metrics.loss:.4f} -> {after.metrics.loss:.4f}, the same answers"
    )
    if min_prob:
        kept = after.confidences >= min_prob
        console.say(
            f"predict --min-prob auto: below {min_prob:.4f} an answer is unsure; {kept.mean():.1%} of the images are "
            f"not, and {after.hits[kept].mean():.1%} of these right"
        )
    return calibrated, after


def calibrate_trained(best: Bundle, answers: Answers) -> tuple[Bundle, Answers]:
    """Calibrate the best model of a run on the validation split, where that is reliable; else say why not.

    The calibration error is measured out of fold. It joins the model's figures as ``valid_ece_out_of_fold``, and what
    it was before as ``valid_ece_uncalibrated``. A start that was killed after it finds the model calibrated.

    Returns:
        The model and its answers, calibrated or as they were.
    """
    if "temperature" in best.made:
        return best, answers
    wrong = int((~answers.hits).sum())
    reason, scaled = None, None
    if len(answers.hits) < MIN_CALIBRATED:
        reason = f"{len(answers.hits)} validation images are too few, expected at least {MIN_CALIBRATED}"
    elif wrong < MIN_MISTAKES:
        reason = f"{wrong} of {len(answers.hits)} answers are wrong, too few to fit on"
    elif (scaled := out_of_fold(answers.logits, answers.targets)) is None:
        reason = "no temperature fits best"
    else:
        held_out = dataclasses.replace(answers, logits=scaled.astype(answers.logits.dtype))
        if held_out.metrics.loss >= answers.metrics.loss:
            reason = "it would not lower the loss on images that it was not fitted on"
    if reason is not None:
        console.say(f"not calibrated: {reason}; evaluate --calibrate fits a temperature on other images")
        return best, answers
    figures = {
        "valid_ece_out_of_fold": calibration_error(held_out.confidences, held_out.hits),
        "valid_ece_uncalibrated": calibration_error(answers.confidences, answers.hits),
    }
    best, answers = calibrate(dataclasses.replace(best, metrics={**best.metrics, **figures}), answers)
    console.say(
        f"calibration error on images that the temperature was not fitted on: {figures['valid_ece_out_of_fold']:.4f}"
    )
    return best, answers


def features_of_some(num_images: int, bundle: Bundle, head: nn.Module) -> FeatureTable:
    """An empty table for the features that ``learn_unfamiliar`` fits on, of a split that ``head`` is measured on."""
    return FeatureTable(num_images, bundle.head.in_features, step_of(num_images), head)


def learn_unfamiliar(bundle: Bundle, answers: Answers) -> Bundle:
    """Fit what tells photos of none of the classes, store it in the model's folder, and say so; or why it cannot be.

    Args:
        answers: with features, on images that the head was not trained on.

    Returns:
        The model, with its familiarity where that could be fitted.
    """
    probs = softmax(answers.logits[:: step_of(len(answers.logits))])
    found = fit_familiarity(probs, answers.features)
    if found is None:
        console.say(
            f"unfamiliar photos will not be marked: {len(probs)} validation images of {len(bundle.classes)} classes "
            f"are too few or too much alike, expected at least {MIN_FITTED} images and two classes"
        )
        return bundle
    bundle = dataclasses.replace(bundle, familiarity=found)
    distributed.from_main(lambda: store(bundle))
    console.say(f"predict marks photos of none of the classes as unfamiliar, and up to {1 - found.share:.0%} of others")
    return bundle


def run_folder(bundle: Bundle) -> Path | None:
    """The folder of the run that made a model, if the model still lies in it."""
    return next(
        (folder for folder in (bundle.folder, bundle.folder.parent) if (folder / "history.jsonl").exists()), None
    )


def _corrections(config: EvaluateConfig, bundle: Bundle) -> Corrections | None:
    """Those that are given, else those of the run, as far as they fit the images."""
    if config.corrections is not None:
        return read_corrections(config.corrections)
    own = file_of_run(bundle, CORRECTIONS_FILE)
    return None if own is None else read_corrections(own, of_other_data=True)


def file_of_run(bundle: Bundle, name: str) -> Path | None:
    """A file that belongs to a run, such as the split that it drew, if the model still lies in the run's folder.

    It may lie as deep as checkpoints/step-00000123/, or head/best/ of a staged run.
    """
    folder = bundle.folder.resolve()
    files = (above / name for above in (folder, *folder.parents[:2]))
    return next((file for file in files if file.exists()), None)


def can_gather(images: int, classes: int) -> bool:
    """Return True if the logits of a split may be gathered in one table."""
    return images * classes <= MAX_LOGITS


def can_report(images: int, classes: int) -> bool:
    """Return False, and say why, if the table of logits would be too large for a report."""
    if can_gather(images, classes):
        return True
    console.warn(f"no report: {images:,} images of {classes:,} classes are too many for one page")
    return False


def device_name(accelerator: Accelerator) -> str:
    """Number of processes, device and precision."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return f"{accelerator.num_processes} x {name}, precision {accelerator.mixed_precision}"


def data_findings(classes: ClassIndex, splits: Mapping[str, Samples]) -> list[list[object]] | None:
    """The findings of the data check; None if it would take too long at the end of another job."""
    if sum(map(len, splits.values())) > MAX_CHECKED:
        return None
    return findings(check_splits(classes, splits))


def write_training_report(
    stage: Stage, best: Bundle, results: Mapping[str, Mapping[str, float]], shown: Answers, valid: Answers
) -> None:
    """Write ``report.html`` of the best model into the run folder.

    Args:
        results: figures by split, as in metrics.json.
        shown: what the details are about.
        valid: answers on the validation split.
    """
    config, data = stage.config, stage.data
    drawn = range(1, config.views) if config.uses_features else range(config.epochs)  # cached view 0 is plain
    views = training_views(data.train, stage.augmentation, config.seed, drawn) if drawn else ()
    facts = [("device", device_name(stage.accelerator))]
    found = data_findings(data.classes, data.splits)
    background = Background(
        results, stage.run_dir, data.splits, found, views, facts, config.data_dir, data.left_out
    )  # fmt: skip
    write_model_report(stage.run_dir / "report.html", best, shown, background, valid)


@contextlib.contextmanager
def or_warn() -> Iterator[None]:
    """Turn any error inside the block into a one-line warning: a failed report must not fail the run."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, FlowersError) else f"{type(error).__name__}: {error}"
        console.warn(f"no report: {' '.join(reason.split())}")
