"""Stop on request without losing a step: a signal, a stop file or a time limit raises a flag, all ranks agree.

Launchers and clusters differ in what reaches a worker: a terminal sends SIGINT to every process, `accelerate
launch` forwards SIGTERM, Slurm's USR1 reaches only the batch shell. The stop file works everywhere: whoever can
write `RUN/stop` stops the run.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

from accelerate import Accelerator

from flowers.distributed import rows_of_ranks

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
LOOK_EVERY_S = 0.5  # the stop file may lie on a network file system


class StopRequest:
    """Whether somebody asked this process to save and stop. Use as a context manager around training."""

    def __init__(self, stop_file: Path, max_hours: float | None = None):
        self._stop_file = stop_file
        self._started_s = time.time()
        self._max_s = None if max_hours is None else max_hours * 3600
        self._signal: str | None = None
        self._looked_s = 0.0
        self._saw_file = False
        self._earlier: dict = {}

    def __enter__(self) -> "StopRequest":
        for name in STOP_SIGNALS:
            number = getattr(signal, name, None)
            if number is not None:
                self._earlier[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and self._signal == "SIGINT":  # a second Ctrl-C: at once; what is on disk is whole
            raise KeyboardInterrupt
        self._signal = name

    def reason(self) -> str | None:
        """Why to stop, or None. Cheap enough for every step."""
        if self._signal:
            return self._signal
        now_s = time.time()
        if self._max_s is not None and now_s - self._started_s > self._max_s:
            return "--max-hours"
        if now_s - self._looked_s > LOOK_EVERY_S:
            self._looked_s = now_s
            self._saw_file = self._stop_file.exists()
        return "stop file" if self._saw_file else None

    def clear(self) -> None:
        """Take the stop file away, once it has been obeyed, so that the next start goes on."""
        self._saw_file = False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._stop_file)


def agree_to_stop(accelerator: Accelerator, stop: StopRequest) -> bool:
    """Whether any rank was asked to stop; all ranks call this at the same moment of their work."""
    return any(asked for (asked,) in rows_of_ranks(accelerator, [float(stop.reason() is not None)]))
