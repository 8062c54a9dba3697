"""The evaluation job: a saved model on a split, to figures, a report and, with ``--calibrate``, a calibrated model."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from flowers import console, distributed, environment
from flowers.config.evaluate import EvaluateConfig
from flowers.data.choice import Choice, refuse_unreadable_folders, said_left_out
from flowers.data.classes import renamed
from flowers.data.corrections import CORRECTIONS_FILE, Corrections, read_corrections
from flowers.data.folders import Samples, load_split, warn_of_missing_classes
from flowers.data.formats import limits
from flowers.data.loaders import Batch
from flowers.engines.engine import KeyedNetwork, build_engine
from flowers.errors import DataError, NoSplitError, OutputError
from flowers.files import claim, write_json
from flowers.models.bundle import Bundle, load_bundle
from flowers.parsing import read_mapping
from flowers.reports.answers import Answers
from flowers.reports.metrics import Metrics
from flowers.reports.model_report import Background, write_model_report
from flowers.training.bad_images import find_bad, leave_out, listing_bad_images, warn_of_damaged
from flowers.training.batches import AUTOCAST, ENGINE_PRECISION, eval_loader, through_engine
from flowers.training.evaluation import AnswerTables, calibrate, evaluate, learn_unfamiliar, show_figures
from flowers.training.final_report import can_gather, can_report, data_findings, device_name, or_warn
from flowers.training.run_stages import HEAD_STAGE, NETWORK_STAGE


def evaluate_bundle(config: EvaluateConfig) -> int:
    """Measure a saved model with the evaluation used in training; with --calibrate, fit its temperature and thresholds.

    Returns:
        0.

    Raises:
        FlowersError: no such model or split, images that cannot be read, an output that cannot be written or that
            holds figures of other data.
    """
    environment.join_step()
    limits.allow_pixels(config.max_pixels)
    bundle = load_bundle(config.checkpoint)
    trained = as_trained(bundle)
    classes = renamed(bundle.classes, config.class_names)
    config, samples, corrections = _find_samples(config, bundle)
    output = config.output or _default_output(config, bundle)
    accelerator = distributed.start(config.mixed_precision, default_precision=precision_in_training(trained))
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
    figures = {
        "split": config.split,
        "data_dir": str(config.data_dir),
        "model_hash": bundle.hash,
        **metrics.to_dict(),
        **(answers.details() if answers is not None else {}),
        "computed_by": computed_by,
        "left_out": [path for found in bad.values() for path, _ in found],
        "damaged": damaged,
    }
    if corrections is not None:
        figures["corrections"] = corrections.digest
    if config.max_images is not None:
        figures["max_images"] = config.max_images
    distributed.from_main(lambda: write_json(output, figures))
    results, splits = {config.split: metrics.to_dict()}, {config.split: samples}
    show_figures(f"{bundle.model} on {config.data_dir}", results)
    written = [("figures", output)]
    if reports and accelerator.is_main_process:
        page = output.with_name(f"report-{_result_name(config, bundle)}.html")
        facts = [("device", device_name(accelerator)), ("computed by", computed_by)]
        facts.append(("evaluation", f"{images_per_s:,.1f} images/s"))
        is_valid = config.split in ("valid", "val")
        with or_warn():
            run, found = next(iter(_runs_of(bundle)), None), data_findings(bundle.classes, splits)
            background = Background(
                results, run, splits, found, facts=facts, data_dir=config.data_dir, left_out=bad
            )  # fmt: skip
            write_model_report(page, bundle, answers, background, answers if is_valid else None)
            written.append(("report", page))
    photos = ("--input", "PHOTOS", "--output", "predictions.csv")
    console.done("evaluated", written, [console.job_command("predict", "--checkpoint", config.checkpoint, *photos)])
    return 0


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
    head = classifier.head if config.calibrate else None
    tables = AnswerTables(config.split, samples, bundle, head) if keep_logits else None
    engine = None
    if trained.get("finetune") == "head" and trained.get("feature_cache") is True and config.mixed_precision is None:
        engine = build_engine(
            KeyedNetwork(bundle.model, classifier.backbone),
            bundle.preprocessing,
            precision=ENGINE_PRECISION.get(precision_in_training(trained) if trained.get("mixed_precision") else None),
            batch_size=config.batch_size,
            device=accelerator.device,
        )
    module = classifier if engine is None else classifier.head
    network = accelerator.prepare_model(module, evaluation_mode=True)
    batches = loader if engine is None else through_engine(loader, engine)
    computed_by = engine.description if engine is not None else f"torch, precision {accelerator.mixed_precision}"
    console.say(f"measured by {computed_by}")

    def inputs(batch: Batch) -> Tensor:
        return bundle.preprocessing.normalize(batch.images, dtype) if engine is None else batch.images

    with console.progress(f"evaluate {config.split}", len(samples)) as meter:
        metrics = evaluate(accelerator, network, inputs, batches, len(samples), meter, tables)
    if engine is not None:
        engine.close()
    of_ranks = distributed.from_all(lambda: loader.damaged)
    damaged = [samples.paths[index] for index in sorted({place for found in of_ranks for place in found})]
    return metrics, tables and tables.answers(accelerator), computed_by, damaged


def as_trained(bundle: Bundle) -> Mapping[str, object]:
    """The flags that a model was trained with; empty where its model.json does not tell them."""
    flags = bundle.made.get("config")
    return flags if isinstance(flags, dict) else {}


def precision_in_training(trained: Mapping[str, object]) -> str | None:
    """The precision of the network in training; None: the fastest one, as the default for whole networks is."""
    asked = trained.get("mixed_precision")
    if isinstance(asked, str) and asked in AUTOCAST and (asked != "fp16" or torch.cuda.is_available()):
        return asked
    return None if trained.get("finetune") in ("full", "staged") else "no"


def _find_samples(config: EvaluateConfig, bundle: Bundle) -> tuple[EvaluateConfig, Samples, Corrections | None]:
    """The images to measure on, with the name of their split in the config, and the corrections of their labels.

    Raises:
        DataError: there are none.
    """
    choice, corrections = Choice(exclude=config.exclude), _corrections(config, bundle)
    split_file, where = _file_of_run(bundle, "split.json"), console.plain(config.data_dir)
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
    if (config.on_bad_image or as_trained(bundle).get("on_bad_image")) != "skip":
        refuse_unreadable_folders(choice)
    if choice.left_out:
        console.say(console.plain(f"{config.data_dir}: {said_left_out(choice.left_out)}"))
    warn_of_missing_classes(f"{where}, {split}", samples, bundle.classes)
    samples = samples.at_most(config.max_images, 0, split)
    return dataclasses.replace(config, split=split), samples, corrections


def _corrections(config: EvaluateConfig, bundle: Bundle) -> Corrections | None:
    """Those that are given, else those of the run, as far as they fit the images."""
    if config.corrections is not None:
        return read_corrections(config.corrections)
    own = _file_of_run(bundle, CORRECTIONS_FILE)
    return None if own is None else read_corrections(own, of_other_data=True)


def _runs_of(bundle: Bundle) -> list[Path]:
    """The folders of the run that made a model, the nearest first, if the model still lies in one.

    It may lie as deep as checkpoints/step-00000123/, which has a history of its own, or network/head/best/ of a run of
    several stages.
    """
    folder = bundle.folder.resolve()
    runs = [above for above in (folder, *folder.parents[:2]) if (above / "history.jsonl").exists()]
    return runs + [run.parent for run in runs if run.name in (HEAD_STAGE, NETWORK_STAGE)]


def _file_of_run(bundle: Bundle, name: str) -> Path | None:
    """A file that belongs to a run, such as the split that it drew.

    Not any file of that name counts: people keep corrections beside their run folders, too.
    """
    return next((run / name for run in _runs_of(bundle) if (run / name).exists()), None)


def _claim(output: Path, config: EvaluateConfig) -> None:
    """Make the output's folder; refuse a file there that holds anything but figures of the same data and split.

    Raises:
        OutputError: it does.
    """
    claim(output)
    if config.overwrite or not output.exists():
        return
    found = read_mapping(output)
    split, data_dir, most = (found.get(name) for name in ("split", "data_dir", "max_images"))
    if not (isinstance(split, str) and isinstance(data_dir, str)):
        what = "is no file of figures"
    elif (split, most) == (config.split, config.max_images) and _is_same_data(Path(data_dir), config.data_dir):
        return
    else:
        what = f"holds the figures of {console.plain(data_dir)}, {split}" + (f", {most} images" if most else "")
    raise OutputError(f"{console.plain(output)} {what}; choose another --output, or pass --overwrite to replace it")


def _default_output(config: EvaluateConfig, bundle: Bundle) -> Path:
    """Beside the model."""
    place = config.checkpoint if config.checkpoint.is_dir() else bundle.folder  # the former may be a model.json
    return place / f"metrics-{_result_name(config, bundle)}.json"


def _result_name(config: EvaluateConfig, bundle: Bundle) -> str:
    """The split; before it the data where it is not the run's, behind it the number of images where it is a choice."""
    data = "" if _is_of_run(config, bundle) else f"{_name(config.data_dir)}-"
    return f"{data}{config.split}" + (f"-{config.max_images}-images" if config.max_images else "")


def _is_of_run(config: EvaluateConfig, bundle: Bundle) -> bool:
    """True if the data is what the model was trained on, or nobody knows what that was."""
    trained_on = as_trained(bundle).get("data_dir")
    return not isinstance(trained_on, str) or "\0" in trained_on or _is_same_data(Path(trained_on), config.data_dir)


def _is_same_data(one: Path, other: Path) -> bool:
    """True for one place; or for one name where the first place is gone: data moves from a cluster to a laptop."""
    return one.resolve() == other.resolve() or (not one.exists() and _name(one) == _name(other))


def _name(data_dir: Path) -> str:
    return data_dir.resolve().stem
