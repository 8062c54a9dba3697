"""Stop on request without losing finished work: a signal, a stop file or a time limit.

Launchers and clusters differ in what reaches a process: a terminal sends SIGINT to every process, `accelerate
launch` forwards SIGTERM, Slurm's USR1 reaches only the batch shell. A stop file works everywhere: whoever can
write `RUN/stop` stops the run.
"""

import contextlib
import signal
import threading
import time
from pathlib import Path

from flowers.distributed import rows_of_ranks
from flowers.errors import StoppedError
from flowers.files import remove

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
LOOK_EVERY_S = 0.5  # the stop file may lie on a network file system


class StopRequest:
    """A request to save and stop, noted inside the block. A second Ctrl-C raises KeyboardInterrupt at once."""

    def __init__(self, stop_file: Path | None = None, max_hours: float | None = None):
        """Start counting the hours.

        Args:
            stop_file: a file whose presence asks to stop.
            max_hours: time limit, from now on.
        """
        self._stop_file = stop_file
        self._started_s = time.time()
        self._max_s = None if max_hours is None else max_hours * 3600
        self._signal: str | None = None
        self._looked_s = 0.0
        self._saw_file = False
        self._earlier: dict = {}

    def __enter__(self) -> "StopRequest":
        is_main = threading.current_thread() is threading.main_thread()
        for name in STOP_SIGNALS if is_main else ():  # no other thread hears signals
            number = getattr(signal, name, None)
            if number is not None:
                self._earlier[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and self._signal == "SIGINT":  # what is on disk is whole
            raise KeyboardInterrupt
        self._signal = name

    def reason(self) -> str | None:
        """The name of what asks to stop, or None. Cheap enough for every step."""
        if self._signal:
            return self._signal
        now_s = time.time()
        if self._max_s is not None and now_s - self._started_s > self._max_s:
            return "--max-hours"
        if self._stop_file is not None and now_s - self._looked_s > LOOK_EVERY_S:
            self._looked_s = now_s
            with contextlib.suppress(OSError):  # a disk that does not tell is asked again at the next look
                self._saw_file = self._stop_file.exists()
        return "stop file" if self._saw_file else None

    def check(self) -> None:
        """Stop here if asked to, in a process that need not agree with others.

        Raises:
            StoppedError: exit code 75.
        """
        if reason := self.reason():
            raise StoppedError(f"stopped by {reason}: finished work is kept, the same command resumes")

    def clear(self) -> None:
        """Remove the stop file once it has been obeyed, so that the next start does not stop again."""
        self._saw_file = False
        if self._stop_file is not None:
            remove(self._stop_file)


def agree_to_stop(accelerator, stop: StopRequest) -> bool:
    """Tell all ranks if any of them was asked to stop; all ranks call this at the same point of their work."""
    return any(asked for (asked,) in rows_of_ranks(accelerator, [float(stop.reason() is not None)]))
