"""Flags of ``jobs/compare.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from flowers.errors import UsageError
from flowers.flags import Flag


@dataclass(frozen=True)
class CompareConfig:
    """Compare training runs: what differs in their flags, validation accuracy, time and speed.

    Runs that are still training, or that were stopped, are compared by what they have reached.
    """

    runs: Annotated[tuple[Path, ...], Flag(takes="two or more run folders", positional=True)]
    """Run folders, two or more."""
    output: Path = Path("compare.html")
    """Self-contained page with the tables and the curves of all runs."""

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise UsageError(f"compare: got {len(self.runs)} run folder, expected two or more; info.py describes one")
        places = [run.resolve() for run in self.runs]
        if twice := [str(run) for run, place in zip(self.runs, places, strict=True) if places.count(place) > 1]:
            raise UsageError(f"{twice[0]} is given twice; give each run once")
