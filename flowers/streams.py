"""Standard streams that a job outlives: writing to a closed, full or broken one loses the text, not the job."""

import io
import os
import sys

from flowers.errors import OutputError, system_reason


class Screen(io.FileIO):
    """A standard stream whose failures do not reach the job.

    Args:
        descriptor: 1 or 2.
        essential: what is written is what the job is for: then failures do reach it.
    """

    def __init__(self, descriptor: int, essential: bool):
        super().__init__(descriptor, "w", closefd=False)
        self._essential = essential

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self._essential:
                _open_nowhere(self.fileno())  # what is still in buffers would fail again, at the very end
                if isinstance(error, BrokenPipeError):  # the reader has seen enough, as with `| head`
                    raise SystemExit(0) from None
                raise OutputError(f"cannot write to stdout: {system_reason(error)}") from None
            return len(data)


def make_safe(essential: bool) -> None:
    """Make stdout and stderr safe to write to for the whole job, by all libraries too, where they are those of Python.

    Args:
        essential: stdout is what the job is for, so an error in writing it is one of the job; see ``Screen``.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: else the next file that is opened would be taken for it
            _open_nowhere(descriptor)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):  # somebody captures it
            continue
        if stream is None:  # it was closed when Python started; by now the descriptor may be another file's
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
            continue
        screen = Screen(descriptor, essential and name == "stdout")
        safe = io.TextIOWrapper(
            io.BufferedWriter(screen),
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=name == "stderr" or screen.isatty(),
        )
        setattr(sys, name, safe)


def _open_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
