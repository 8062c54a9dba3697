"""How, when and with what a file was made, as plain values for its description."""

import contextlib
import datetime
import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import flowers


def how_made(config: Mapping | None = None) -> dict:
    """When, with which versions, from which commit (where the code stands in a git tree) and which config."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    made = {"date": date, "versions": dict(versions()), "git_commit": _git_commit(Path(flowers.__file__).parents[1])}
    return made if config is None else {**made, "config": dict(config)}


@functools.cache
def versions() -> dict[str, str]:
    """Of Python, of this project and of the libraries that networks come from."""
    found = {"python": platform.python_version(), "flowers": flowers.__version__}
    for package in ("torch", "torchvision", "timm", "accelerate"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@functools.cache
def _git_commit(root: Path) -> str | None:
    """The commit that the process started from; asked once, as a run saves many bundles."""
    if not (root / ".git").exists():  # installed elsewhere: a commit of another project would be a lie
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
