"""Checkpoints: written whole or not at all; the newest sound one is loaded, damaged ones are passed over.

A checkpoint is a folder ``checkpoints/step-00000123`` in the run folder: a model bundle, ``optimizer.pt`` (tensors
only, read with ``weights_only=True``), a copy of ``history.jsonl`` and ``state.json``, which also holds size and
SHA-256 of the other files and the SHA-256 of its own values, so that damage is detected before anything is used.
Checkpoints of earlier versions have neither the copy nor the SHA-256 of ``state.json``; they load.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import pickle
import re
import shutil
import typing
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from flowers.console import warn
from flowers.errors import CheckpointError, FlowersError, ModelError
from flowers.files import file_digest, remove, replace_folder, restore_folder
from flowers.locks import refuse_others
from flowers.models.bundle import Bundle, load_bundle, write_bundle
from flowers.parsing import read_json
from flowers.retries import retries

FORMAT_VERSION = 1
STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.pt"
HISTORY_FILE = "history.jsonl"
_NAME = re.compile("step-[0-9]{8}")


@dataclass
class Progress:
    """Progress of training: ``step_in_epoch`` updates of ``epoch`` are done, ``step`` in all."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_step: int | None = None
    best_top1: float | None = None
    best_loss: float | None = None
    history_bytes: int = 0
    rank_sums: list[list[float]] = field(default_factory=list)
    """For each rank, of the epoch so far: summed loss, hits, images."""
    validated: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Summed loss and images of the epoch, over all ranks, when it was last validated."""
    finished: bool = False
    """All epochs are done, or ``--patience`` has run out."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read.

    Attributes:
        tensors: the states of optimizer, scaler and weight average (if in use).
        history: the run's ``history.jsonl`` at its step; None if an earlier version wrote it.
    """

    path: Path
    progress: Progress
    fingerprint: dict
    bundle: Bundle
    tensors: dict
    history: bytes | None = None


def save_checkpoint(
    run_dir: Path, *, bundle: Bundle, tensors: dict, progress: Progress, fingerprint: dict, keep: int
) -> Path:
    """Write the checkpoint of this step, with a copy of the run's history, then remove the oldest beyond ``keep``.

    Raises:
        FlowersError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    path = run_dir / "checkpoints" / f"step-{progress.step:08d}"
    with replace_folder(path) as folder:
        write_bundle(bundle, folder)
        torch.save(tensors, folder / OPTIMIZER_FILE)
        if (run_dir / HISTORY_FILE).exists():
            shutil.copyfile(run_dir / HISTORY_FILE, folder / HISTORY_FILE)
        state = {
            "format_version": FORMAT_VERSION,
            "progress": asdict(progress),
            "fingerprint": fingerprint,
            "files": {file.name: file_digest(file) for file in sorted(folder.iterdir())},
        }
        state["sha256"] = _digest(state)
        (folder / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    for old in list_checkpoints(run_dir)[keep:]:
        gone = old.with_name(f".{old.name}")  # no half a checkpoint bears a final name, see ``remove_leftovers``
        with contextlib.suppress(OSError):
            os.rename(old, gone)
        shutil.rmtree(gone, ignore_errors=True)
    return path


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Folders that bear a checkpoint's final name, newest first.

    Raises:
        OSError: the disk does not say which there are; none would mean to begin anew.
    """
    folder = run_dir / "checkpoints"
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = retries.read(lambda: os.listdir(folder))
        return sorted((folder / name for name in names if _NAME.fullmatch(name)), reverse=True)
    return []


def newest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """Read the newest sound checkpoint of a run; a damaged one is passed over with a warning.

    Raises:
        CheckpointError: there are checkpoints, and none of them is sound.
    """
    paths = list_checkpoints(run_dir)
    for path in paths:
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            warn(f"{error}; trying the one before")
    if paths:
        raise CheckpointError(
            f"{run_dir}: none of its {len(paths)} checkpoints can be read; start anew with another --output-dir"
        )
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint; nothing in it is run, and a disk's hiccup is waited for.

    Raises:
        CheckpointError: something is missing, damaged, newer than this version, or not plain tensors.
    """
    try:
        return retries.read(lambda: _read_checkpoint(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {Path(error.filename).name} is missing") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {OPTIMIZER_FILE} holds more than plain tensors; refused") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}: {reason})") from error
    except ModelError as error:
        raise CheckpointError(str(error)) from error


def _read_checkpoint(path: Path) -> Checkpoint:
    state = read_json(path / STATE_FILE)
    written = state.pop("sha256", None)
    if written is not None and _digest(state) != written:
        raise CheckpointError(f"{path}: {STATE_FILE} is damaged (its SHA-256 is not what was written)")
    version = state["format_version"]
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {version}, this flowers reads {FORMAT_VERSION}")
    for name, digest in state["files"].items():
        if Path(name).name != name:
            raise CheckpointError(f"{path}: {STATE_FILE} names {name!r}, expected a file of the checkpoint itself")
        if file_digest(path / name) != digest:
            raise CheckpointError(f"{path}: {name} is damaged (its size or SHA-256 is not what was written)")
    progress = _read_progress(state["progress"])
    fingerprint = dict(state["fingerprint"])
    history = (path / HISTORY_FILE).read_bytes() if HISTORY_FILE in state["files"] else None
    tensors = torch.load(path / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    return Checkpoint(path, progress, fingerprint, load_bundle(path), tensors, history)


def _read_progress(values: dict) -> Progress:
    """Take the values of ``Progress``, each of its own type.

    Raises:
        ValueError: one is of another type, or below 0 or not finite.
        TypeError: a name is unknown.
    """
    progress = Progress(**values)
    for name, kind in typing.get_type_hints(Progress).items():
        if not _is_of(getattr(progress, name), kind):
            raise ValueError(f"{name} is {str(values[name])[:80]!r}")
    return progress


def _is_of(value: object, kind: object) -> bool:
    """True if a value read from JSON is of a type as a field of ``Progress`` has."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of(item, inner[0]) for item in value)
    if inner:  # int | None
        return any(_is_of(value, one) for one in inner)
    if kind in (int, float):
        is_number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        return is_number and 0 <= value < math.inf
    return isinstance(value, kind)


def _digest(values: dict) -> str:
    """SHA-256 (hex) of the content of ``state.json``, whatever its layout."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def lock_run(run_dir: Path) -> AbstractContextManager[None]:
    """Hold the run folder inside the block; a second job on it is refused with an InUseError."""
    return refuse_others(run_dir / ".lock", run_dir, "wait for it, stop it, or give another --output-dir")


def remove_leftovers(run_dir: Path) -> None:
    """Clear half-written files and folders of a killed job. Call only with the run's lock held.

    Raises:
        OSError: a model that had stepped aside cannot be put back.
    """
    for name in ("best", "last"):
        restore_folder(run_dir / name)
    patterns = ("checkpoints/.step-*", ".best.tmp-*", ".last.tmp-*", ".*.tmp", "features/.*.tmp")
    for path in itertools.chain.from_iterable(map(run_dir.glob, patterns)):
        with contextlib.suppress(FlowersError):
            remove(path)
