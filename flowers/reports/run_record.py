"""The record of a run: what its history.jsonl and timing.jsonl hold, and figures of it over epochs."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowers.parsing import parse_json


@dataclass(frozen=True)
class RunRecord:
    """A run as it was recorded.

    Attributes:
        history: losses, rates and measurements; each line has an "event".
        timing: seconds, speed and waiting of each epoch.
    """

    history: Sequence[Mapping] = ()
    timing: Sequence[Mapping] = ()

    @classmethod
    def read(cls, run_dir: Path) -> "RunRecord":
        """Read the files of a run folder; what is missing is empty.

        Raises:
            OSError: one cannot be read.
        """
        return cls(*(_read_lines(run_dir / name) for name in ("history.jsonl", "timing.jsonl")))

    def of(self, event: str) -> list[Mapping]:
        """The lines of an event, "train" or "valid", in order."""
        return [line for line in self.history if line.get("event") == event]

    @property
    def epochs(self) -> list[Mapping]:
        """Time and speed of each epoch."""
        return [line for line in self.timing if line.get("event") == "epoch"]

    @property
    def seconds(self) -> float:
        """Time spent in epochs."""
        return sum(line["seconds"] for line in self.epochs)

    @property
    def images_per_s(self) -> float:
        """Mean speed of the epochs; 0 where there is none."""
        return sum(line["seconds"] * line["images_per_s"] for line in self.epochs) / (self.seconds or 1.0)

    def points(self, name: str, lines: Sequence[Mapping]) -> list[tuple[float, float]]:
        """A figure of some lines of the history over epochs; a validation within an epoch stands between two."""
        epochs = {line["step"]: line["epoch"] for line in self.of("train")}
        steps_per_epoch = max(epochs, default=0) / max(len(epochs), 1) or 1

        def epoch(line: Mapping) -> float:
            return epochs.get(line.get("step"), line.get("step", 0) / steps_per_epoch)

        return [(epoch(line), line[name]) for line in lines if name in line]

    def best_epoch(self, metrics: Mapping[str, object]) -> float | None:
        """Return the epoch after which a model was measured to be what its metrics say; None if the history lacks it.

        A validation within an epoch gives a fraction.
        """
        wanted = metrics.get("valid_top1"), metrics.get("valid_loss")
        same = [line for line in self.of("valid") if "top1" in line and (line["top1"], line.get("loss")) == wanted]
        return self.points("top1", same[:1])[0][0] if same else None


def _read_lines(path: Path) -> list[dict]:
    """JSON lines; one that a crash cut short or that is damaged is left out."""
    lines = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            lines.append(parse_json(line))
    return [line for line in lines if isinstance(line, dict)]
