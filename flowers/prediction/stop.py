"""A polite request to end becomes an exception at the next batch; shards that are done stay done."""

import signal

from flowers.errors import StoppedError

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")


class StopRequest:
    """Use as a context manager; ``check`` raises once a signal has asked to stop. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._earlier: dict = {}

    def __enter__(self) -> "StopRequest":
        for name in SIGNALS:
            if number := getattr(signal, name, None):
                self._earlier[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise if asked to stop.

        Raises:
            StoppedError: exit code 75.
        """
        if self._signal:
            raise StoppedError(f"stopped by {self._signal}: what is done is kept, the same command goes on from there")

    def _on_signal(self, number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and self._signal == "SIGINT":
            raise KeyboardInterrupt
        self._signal = name
