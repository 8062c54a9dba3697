"""What must match for a run to be resumed: its flags, its data, its arithmetic; what differs is refused by name."""

import dataclasses
import hashlib
import os

import numpy as np

from flowers.config.train import TrainConfig
from flowers.data.corrections import CORRECTIONS_FILE
from flowers.data.folders import ImageFolders, Samples
from flowers.data.scan import file_stamps
from flowers.distributed import from_main
from flowers.errors import CheckpointError
from flowers.flags import spelled
from flowers.training.checkpoint import Checkpoint

FREE_FLAGS = {
    "data_dir", "output_dir", "recipe", "weights", "continue_from", "batch_size", "grad_accum_steps",
    "class_names", "exclude", "on_bad_image", "val_fraction", "cache", "workers", "eval_every", "save_every", "keep",
    "resume", "max_hours", "log_interval", "log_with", "project", "run_name", "report", "corrections",
    "add", "group", "max_pixels", "calibrate", "grad_checkpointing", "deterministic",
}  # fmt: skip
"""A resume may change these: they do not alter what is computed, or their effect is checked instead."""
DEFAULTS = {spelled(flag.name): flag.default for flag in dataclasses.fields(TrainConfig)}
SIZES_OF = "sizes in bytes of"
"""Begins the names of what earlier versions did not keep in a fingerprint; a run of theirs resumes without."""


def fingerprint(config: TrainConfig, data: ImageFolders, global_batch_size: int, precision: str) -> dict:
    """Everything that must match for a run to be resumed, keyed by the name shown in the error message.

    Args:
        precision: what is computed in; where no flag says, the machine and its launcher settle it.
    """
    flags = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    kept = {spelled(name): value for name, value in flags.items() if name not in FREE_FLAGS}
    return {
        "--corrections": data.corrections and data.corrections.digest,
        **data_digests(data),
        "global_batch_size": global_batch_size,  # of a head fitted at once it is the number of images
        **{name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()},
        "--mixed-precision": precision,
    }


def check_fingerprint(checkpoint: Checkpoint, fingerprint: dict, batch_arithmetic: str) -> None:
    """Refuse to resume a run with other settings or data.

    A flag that the run's version did not have yet had the effect of its present default.

    Args:
        batch_arithmetic: the factors of the present global batch.

    Raises:
        CheckpointError: the first thing that differs, by name, with both values.
    """
    for name, now in fingerprint.items():
        before = checkpoint.fingerprint.get(name, DEFAULTS.get(name))
        if before == now or (before is None and name.startswith(SIZES_OF)):
            continue
        if name == "global_batch_size":
            now = f"{now} ({batch_arithmetic})"
            hint = f"choose -b times processes times --grad-accum-steps to give {before}"
        elif name == "--corrections":
            own = checkpoint.path.parent.parent / CORRECTIONS_FILE
            hint = "leave it out" if before is None else f"give --corrections {own}, as this run was begun with"
        elif name in ("train images", "valid images", "classes"):
            hint = "the data or --add changed since" if name == "train images" else "the data changed since"
        elif name.startswith(SIZES_OF):
            hint = "photos were replaced since, under the same names"
        elif name == "--epochs":
            run = checkpoint.path.parent.parent
            hint = f"resume with the old value, or train its model further with --continue-from {run}"
        else:
            hint = "resume with the old value"
        raise CheckpointError(
            f"{checkpoint.path} cannot be resumed: {name} was {before}, is now {now}; {hint}, "
            "or start a new run with another --output-dir"
        )


def data_digests(data: ImageFolders) -> dict[str, str]:
    """Digests of the data that a run was trained on: classes, and images of train and valid by name, class and size.

    The main process looks at the files. Sizes are left out where one cannot be seen, on a disk that is away for a
    moment say.
    """

    def digests() -> dict[str, str]:
        found = {"classes": _digest(list(data.classes.folders), None)}
        for name in ("train", "valid"):
            if (samples := data.splits.get(name)) is not None:
                found[f"{name} images"] = images_digest(samples)
                sizes = file_stamps(samples.full_path, len(samples))[:, 0]
                if (sizes >= 0).all():
                    found[f"{SIZES_OF} {name} images"] = (
                        f"{sizes.sum()} ({hashlib.sha256(sizes.tobytes()).hexdigest()[:12]})"
                    )
        return found

    return from_main(digests)


def images_digest(samples: Samples) -> str:
    """Number of images, and a short hash of their names and classes."""
    return _digest(samples.paths, samples)


def _digest(names, samples: Samples | None) -> str:
    """Number and short hash of the names (and classes): equal only for the same images in the same order."""
    found = hashlib.sha256()
    for name in names:
        found.update(os.fsencode(name) + b"\0")
    if samples is not None:
        found.update(np.ascontiguousarray(samples.targets, dtype=np.int64).tobytes())
    return f"{len(names)} ({found.hexdigest()[:12]})"
