"""Where the files of a job go: refused before the work begins, not after it."""

import contextlib
import json
import os
from collections.abc import Collection
from pathlib import Path

from flowers.config.predict import PredictConfig
from flowers.data.paths import readable
from flowers.errors import OutputError, UsageError
from flowers.prediction.table import sidecar_path

_SIDECAR_BYTES = 1 << 20  # more than any of ours has


def check_outputs(config: PredictConfig, extensions: Collection[str]) -> None:
    """Refuse what would fail when all is done, or be input the next time.

    Args:
        extensions: endings of the files that are taken for photos.

    Raises:
        UsageError: an output is a folder, or lies in the input folder and ends like a photo.
    """
    for flag, path in (("--output", config.output), ("--embeddings", config.embeddings)):
        if path is None:
            continue
        if os.path.isdir(path):
            raise UsageError(f"{flag} {readable(path)}: this is a folder, a file name was expected")
        inside = os.path.isdir(config.input) and path.resolve().is_relative_to(config.input.resolve())
        if inside and path.name.lower().endswith(tuple(extensions)):
            raise UsageError(f"{flag} {readable(path)} lies in the input folder, and --ext makes it input")


def check_free(output: Path, embeddings: Path | None) -> None:
    """See that what a new job writes beside its output replaces nothing but what an earlier such job left.

    Raises:
        OutputError: it would.
    """
    sidecar = sidecar_path(output)
    facts = _earlier_facts(sidecar)
    if facts is None and sidecar.exists():
        raise _refusal(sidecar, "--output")
    if embeddings is not None and embeddings.exists():
        known = (facts or {}).get("embeddings") or {}
        if known.get("bytes") != embeddings.stat().st_size:
            raise _refusal(embeddings, "--embeddings")


def _earlier_facts(sidecar: Path) -> dict | None:
    """What a sidecar says; None if there is none, or the file is something else."""
    with contextlib.suppress(OSError, ValueError):
        if sidecar.stat().st_size <= _SIDECAR_BYTES:
            facts = json.loads(sidecar.read_bytes())
            return facts if isinstance(facts, dict) and "settings" in facts else None
    return None


def _refusal(place: Path, flag: str) -> OutputError:
    return OutputError(
        f"{readable(place)} was there before, and is not known to be this job's; "
        f"choose another {flag}, or pass --overwrite to replace it"
    )
