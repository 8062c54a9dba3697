"""Flags of ``jobs/status.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from flowers.flags import Flag


@dataclass(frozen=True)
class StatusConfig:
    """Tell how far a bulk prediction has come: shards done, speed, time left, errors so far.

    Only files are read, so that it works from any machine that sees them, and while the job runs.
    """

    output: Annotated[Path, Flag(positional=True, takes="the --output of a prediction")]
    """The --output of the prediction job, such as predictions.csv."""
    json: bool = False
    """Print one JSON object, for other programs."""
