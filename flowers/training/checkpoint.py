"""Checkpoints: written whole or not at all; the newest sound one is loaded, one that does not fit is refused by name.

A checkpoint is a folder ``checkpoints/step-00000123`` in the run folder: a model bundle, ``optimizer.pt`` (tensors
only, read with ``weights_only=True``) and ``state.json``, which also holds size and SHA-256 of the other files, so
that a damaged file is detected before it is used.
"""

import hashlib
import json
import pickle
import shutil
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from flowers.console import warn
from flowers.errors import CheckpointError
from flowers.files import replace_folder
from flowers.locks import refuse_others
from flowers.models.bundle import Bundle, load_bundle, write_bundle

FORMAT_VERSION = 1
STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.pt"


@dataclass
class Progress:
    """How far training has come: ``step_in_epoch`` updates of ``epoch`` are done, ``step`` in all."""

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
    """A checkpoint as read: ``tensors`` holds the states of optimizer, scaler and weight average (if in use)."""

    path: Path
    progress: Progress
    fingerprint: dict
    bundle: Bundle
    tensors: dict


def save_checkpoint(
    run_dir: Path, *, bundle: Bundle, tensors: dict, progress: Progress, fingerprint: dict, keep: int
) -> Path:
    """Write the checkpoint of this step, then remove the oldest beyond ``keep``.

    Raises:
        FlowersError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    path = run_dir / "checkpoints" / f"step-{progress.step:08d}"
    with replace_folder(path) as folder:
        write_bundle(bundle, folder)
        torch.save(tensors, folder / OPTIMIZER_FILE)
        state = {
            "format_version": FORMAT_VERSION,
            "progress": asdict(progress),
            "fingerprint": fingerprint,
            "files": {file.name: _digest(file) for file in sorted(folder.iterdir())},
        }
        (folder / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    for old in list_checkpoints(run_dir)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Folders that bear a checkpoint's final name, newest first."""
    return sorted((run_dir / "checkpoints").glob("step-" + "[0-9]" * 8), reverse=True)


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
    """Read one checkpoint; nothing in it is run.

    Raises:
        CheckpointError: something is missing, damaged, newer than this version, or not plain tensors.
    """
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        version = state["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{path}: format version {version}, this flowers reads {FORMAT_VERSION}")
        for name, digest in state["files"].items():
            if _digest(path / name) != digest:
                raise CheckpointError(f"{path}: {name} is damaged (its size or SHA-256 is not what was written)")
        progress = Progress(**state["progress"])
        fingerprint = state["fingerprint"]
        tensors = torch.load(path / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {Path(error.filename).name} is missing") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {OPTIMIZER_FILE} holds more than plain tensors; refused") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}: {reason})") from error
    return Checkpoint(path, progress, fingerprint, load_bundle(path), tensors)


def check_fingerprint(checkpoint: Checkpoint, fingerprint: dict, batch_arithmetic: str) -> None:
    """Refuse to resume a run with other settings or data.

    Args:
        batch_arithmetic: the factors of the present global batch.

    Raises:
        CheckpointError: the first thing that differs, by name, with both values.
    """
    for name, now in fingerprint.items():
        before = checkpoint.fingerprint.get(name)
        if before == now:
            continue
        if name == "global_batch_size":
            now = f"{now} ({batch_arithmetic})"
            hint = f"choose -b times processes times --grad-accum-steps to give {before}"
        elif name in ("train images", "valid images", "classes"):
            hint = "the data changed since"
        else:
            hint = "resume with the old value"
        raise CheckpointError(
            f"{checkpoint.path} cannot be resumed: {name} was {before}, is now {now}; {hint}, "
            "or start a new run with another --output-dir"
        )


def lock_run(run_dir: Path) -> AbstractContextManager[None]:
    """Hold the run folder inside the block; a second job on it is refused with an InUseError."""
    return refuse_others(run_dir / ".lock", run_dir, "wait for it, stop it, or give another --output-dir")


def remove_leftovers(run_dir: Path) -> None:
    """Clear half-written files and folders of a killed job. Call only with the run's lock held."""
    for pattern in ("checkpoints/.step-*", ".best.tmp-*", ".last.tmp-*"):
        for folder in run_dir.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
    for pattern in (".*.tmp", "features/.*.tmp"):  # see flowers.files.write_atomically
        for file in run_dir.glob(pattern):
            file.unlink(missing_ok=True)


def _digest(path: Path) -> dict:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
