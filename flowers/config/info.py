"""Flags of ``jobs/info.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from flowers.flags import Flag


@dataclass(frozen=True)
class InfoConfig:
    """Say what a model is: network, classes, accuracy, how it was made, size, hash.

    It is read as every job reads it, so what is told here also loads.
    """

    path: Annotated[Path, Flag(positional=True, takes="a model folder or an exported file")]
    """Model bundle, checkpoint, run folder (its best model), or exported file (.onnx or .xml)."""
    json: bool = False
    """Print one JSON object instead, for other programs."""
