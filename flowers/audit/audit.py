"""The audit job: features of all photos, a head per fold, verdicts on the labels, and the files to act on."""

import csv
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from flowers import console, distributed, environment
from flowers.audit.findings import Audited, all_suspicions, facts_of, summary_rows
from flowers.audit.held_out import FeatureRows, assign_folds, held_out_probs
from flowers.audit.neighbours import find_neighbours
from flowers.audit.page import write_audit_page
from flowers.config.audit import AuditConfig
from flowers.config.train import TrainConfig
from flowers.data.choice import Choice, refuse_unreadable_folders
from flowers.data.corrections import read_corrections
from flowers.data.folders import ImageFolders, load_image_folders
from flowers.data.grouping import group_images, groups
from flowers.data.paths import PathList, encode_path
from flowers.errors import DataError, OutputError
from flowers.files import explain_os_error, make_folder, remove, write_atomically
from flowers.models.bundle import load_bundle
from flowers.parsing import read_mapping
from flowers.reports.label_errors import Suspicion, judge
from flowers.retries import retries
from flowers.training.features import features_of_splits
from flowers.training.fingerprint import images_digest
from flowers.training.flags import check_flags
from flowers.training.session import open_run
from flowers.training.stage import Stage
from flowers.training.train import prepare_stage

FORMAT_VERSION = 1


def audit(config: AuditConfig) -> int:
    """Audit a data set as the config says.

    Returns:
        0.

    Raises:
        FlowersError: anything that the user can fix, in one line; a stop on request, after saving.
    """
    environment.join_step()
    features_config = _features_config(config)
    check_flags(features_config)
    corrections = read_corrections(config.corrections) if config.corrections else None
    with open_run(features_config, needs_valid=False) as session:
        labelled = session.data
        if corrections is not None:  # a second listing: wrong corrections are refused before hours of features
            choice = Choice(exclude=config.exclude)
            labelled = load_image_folders(
                config.data_dir, class_names=config.class_names, choice=choice, corrections=corrections
            )
            if config.on_bad_image == "fail":
                refuse_unreadable_folders(choice)
        stage = prepare_stage(features_config, session, None)
        features = features_of_splits(stage, config.checkpoint)
        audited = _audited(config, stage, features, labelled)
        together = (
            group_images(audited.paths, config.group, warns=True) if config.group else np.arange(len(audited.targets))
        )
        key = _key(config, stage, audited, together)
        if distributed.from_main(lambda: _is_finished(config.output_dir, key)):
            distributed.from_main(lambda: remove(config.output_dir / "folds"))  # where an earlier start could not
            console.say(f"{console.plain(config.output_dir)} is finished already; open audit.html in it")
            return 0
        device = stage.accelerator.device
        neighbours = distributed.from_main(lambda: find_neighbours(audited.features, device, session.stop.check))
        later = np.flatnonzero(together != np.arange(len(together)))
        links = np.stack([together[later], later], axis=1)
        same = groups(len(audited.targets), np.concatenate([neighbours.pairs, links]))
        folds = assign_folds(audited.targets, same, config.folds, config.seed)
        folder = config.output_dir / "folds"
        distributed.from_main(lambda: make_folder(folder))
        share = range(stage.accelerator.process_index, config.folds, stage.accelerator.num_processes)

        def judge_share() -> None:
            with console.progress("judging", config.folds, "folds") as meter:
                for fold in share:
                    _judge_fold(folder / f"{fold}.npz", key, audited, folds == fold, stage)
                    meter.advance(stage.accelerator.num_processes)

        distributed.from_all(judge_share)
        distributed.from_main(lambda: _write_results(config, audited, folds, neighbours, key))
    return 0


def _features_config(config: AuditConfig) -> TrainConfig:
    """The settings of a training of a head whose features are those of the audit."""
    settings = {"model": config.model, "weights": config.weights, "image_size": config.image_size}
    if config.checkpoint is not None:
        bundle = load_bundle(config.checkpoint)
        view = bundle.preprocessing
        settings = {"model": bundle.model, "weights": str(config.checkpoint), "image_size": view.crop}
        settings["resize"] = view.resize
        settings["color_profiles"] = "convert" if view.to_srgb else "ignore"
        if bundle.made.get("config", {}).get("finetune", "head") != "head":
            console.warn(
                f"{console.plain(config.checkpoint)}: its whole network was trained on labels; if on these, it has "
                "learnt the wrong ones, too, and fewer of them are found than with a frozen network"
            )
    return TrainConfig(
        data_dir=config.data_dir,
        output_dir=config.output_dir,
        class_names=config.class_names,
        exclude=config.exclude,
        on_bad_image=config.on_bad_image,
        val_fraction=0.0,
        batch_size=config.batch_size,
        workers=config.workers,
        mixed_precision=config.mixed_precision,
        max_hours=config.max_hours,
        report=False,
        **settings,
    )


def _audited(config: AuditConfig, stage: Stage, features: dict[str, np.ndarray], labelled: ImageFolders) -> Audited:
    """All photos of all splits in one row each, with their corrected labels; features are those of the plain listing.

    So an audit after some corrections needs no pass of the backbone.

    Args:
        labelled: the listing with corrections.

    Raises:
        DataError: there are too few photos.
    """
    kept, paths, targets, splits = [], [], [], []
    first = 0
    for number, (name, samples) in enumerate(stage.data.splits.items()):
        wanted = labelled.splits[name]
        new = dict(zip(wanted.paths, wanted.targets.tolist(), strict=True))
        for row, path in enumerate(samples.paths, first):
            if path in new:
                kept.append(row)
                paths.append(path)
                targets.append(new[path])
                splits.append(number)
        first += len(samples)
    if len(kept) < 2 * config.folds:
        raise DataError(f"{console.plain(config.data_dir)}: {len(kept)} photos are too few for --folds {config.folds}")
    parts = [part[:, 0] for part in features.values()]
    widths = getattr(stage.model.classifier.backbone, "widths", (parts[0].shape[1],))
    rows = FeatureRows(parts, np.array(kept, np.int64), widths)
    return Audited(
        stage.data.train.root, stage.data.classes, PathList(paths), tuple(stage.data.splits),
        np.array(splits, np.int8), np.array(targets, np.int64), rows, labelled.corrections,
    )  # fmt: skip


def _key(config: AuditConfig, stage: Stage, audited: Audited, together: np.ndarray) -> str:
    """Hash of all that the result depends on.

    Args:
        together: [N] int64, the first photo of the group of each.
    """
    digest = hashlib.sha256()
    for name, samples in stage.data.splits.items():
        digest.update(f"{name} {images_digest(samples)}".encode())
        for folder in (config.output_dir, config.checkpoint):
            file = folder and folder / "features" / f"{name}.json"
            digest.update(file.read_bytes() if file and file.is_file() else b"")
    digest.update(audited.targets.tobytes() + together.tobytes())
    digest.update(str((len(audited.paths), config.folds, config.seed, config.photos)).encode())
    digest.update((audited.corrections.digest if audited.corrections else "").encode())
    return distributed.from_main(digest.hexdigest)


def _is_finished(folder: Path, key: str) -> bool:
    is_same = read_mapping(folder / "audit.json").get("key") == key
    return is_same and all((folder / name).exists() for name in ("labels.csv", "audit.html"))


def _judge_fold(path: Path, key: str, audited: Audited, held_out: np.ndarray, stage: Stage) -> None:
    """Judge the photos of one fold, unless an earlier start has.

    Raises:
        StoppedError: on request; the folds that are finished are kept.
    """
    if _load_fold(path, key) is None:
        num_classes, device = len(audited.classes), stage.accelerator.device
        probs = held_out_probs(
            audited.features, audited.targets, held_out, num_classes, device, check_stop=stage.stop.check
        )
        with write_atomically(path, "wb") as file:
            np.savez(file, probs=probs, key=np.array(key))


def _load_fold(path: Path, key: str) -> np.ndarray | None:
    def load() -> np.ndarray | None:
        with np.load(path, allow_pickle=False) as file:
            return file["probs"] if str(file["key"]) == key else None

    try:
        return retries.read(load)
    except Exception:  # not there, or damaged in one of many ways: computed again
        return None


def _write_results(config: AuditConfig, audited: Audited, folds: np.ndarray, neighbours: object, key: str) -> None:
    """Write labels.csv, audit.html and, last, audit.json, which marks the audit as finished.

    Raises:
        FlowersError: a file cannot be written, or the verdicts of a fold cannot be read.
    """
    output = config.output_dir
    probs = _new_array(output / "folds" / "probs.npy", (len(folds), len(audited.classes)))
    for fold in range(config.folds):
        path = output / "folds" / f"{fold}.npz"
        if (found := _load_fold(path, key)) is None:
            raise OutputError(f"{console.plain(path)}: cannot be read; start the same command again")
        probs[folds == fold] = found
    verdicts = judge(probs, audited.targets)
    suspicions = all_suspicions(audited, verdicts, neighbours.pairs)
    facts = facts_of(audited, verdicts, neighbours, suspicions)
    remove(output / "audit.json")
    write_labels(output / "labels.csv", audited, suspicions)
    write_audit_page(output / "audit.html", audited, verdicts, suspicions[: config.photos], facts, key)
    with write_atomically(output / "audit.json") as file:
        json.dump({"format_version": FORMAT_VERSION, "key": key, **facts}, file, indent=1, ensure_ascii=False)
    del probs
    remove(output / "folds")
    console.table("Audit", ("what", "how many", "such as"), summary_rows(audited, facts, suspicions))
    console.done(
        "audited",
        [("to look at and fix", output / "audit.html"), ("labels to check", output / "labels.csv")],
        [console.job_command("train", "--data-dir", config.data_dir, "--corrections", "corrections.csv")],
    )


def _new_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array in a file, which has its room on the disk: a full one would end the process without a word.

    Raises:
        FlowersError: there is no room.
    """
    try:
        array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise explain_os_error(error, path) from error
    return array


def write_labels(path: Path, audited: Audited, suspicions: list[Suspicion]) -> None:
    """Write labels.csv, the most suspicious first; names as in every table of this project.

    Raises:
        FlowersError: the file cannot be written.
    """
    folders = audited.classes.folders
    with write_atomically(path) as file:
        rows = csv.writer(file)
        rows.writerow(("path", "given", "suggested", "score", "why"))
        for found in suspicions:
            given, suggested = (encode_path(folders[index]) for index in (found.given, found.suggested))
            rows.writerow((encode_path(audited.paths[found.index]), given, suggested, f"{found.score:.6f}", found.why))
