"""Expected failures: a user's mistake, a bad file, a machine that cannot do what was asked.

Each is raised with one line that says what, where, got against expected, and
what to do next. ``flowers.cli.run`` prints that line and exits with the class's
``exit_code``; a traceback is shown only for our own bugs, which ``explain`` tells
from what else the machine and the libraries raise.
"""

import errno
import os
import sys
import traceback
from pathlib import Path

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STRICT = 3
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped with all state saved; the same command resumes

_TRANSIENT = (
    "EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "EAGAIN", "EINTR", "EBUSY", "ENOMEM", "ENOBUFS", "EREMOTEIO",
    "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "EPIPE", "ENOLINK", "ECOMM", "EHOSTDOWN", "EHOSTUNREACH",
    "ENETDOWN", "ENETUNREACH", "ENETRESET", "EPROTO", "ESHUTDOWN",
)  # fmt: skip
TRANSIENT = frozenset(getattr(errno, name) for name in _TRANSIENT if hasattr(errno, name))
"""Errors of the disk or the system, not of the file; the same call may work later."""
_OF_THE_MACHINE = TRANSIENT | {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
"""Failures of a disk, a limit or a name, which are no bug of ours wherever they happen."""
_READ_AT_IMPORT = ("ACCELERATE_LOG_LEVEL", "TORCH_LOGS", "TORCHDYNAMO_", "TORCHINDUCTOR_", "PYTORCH_")
"""Beginnings of variables that torch and accelerate read while they are imported."""
_LOST_PEER = ("DistBackendError", "DistNetworkError")
"""Torch's errors of a collective one of whose processes died, on GPUs; on CPUs the message tells."""


class FlowersError(Exception):
    """Base of all expected failures."""

    exit_code = EXIT_FAILED


class UsageError(FlowersError):
    """An invalid flag or config value: wrong type, out of range, contradicting another."""

    exit_code = EXIT_USAGE


class DataError(FlowersError):
    """Images, folders or lists that the job cannot use."""


class NoSplitError(DataError):
    """A split that the data does not have."""


class ImageError(DataError):
    """A file that gives no picture; the message is the short reason, without the path."""


class ModelError(FlowersError):
    """An unknown model, weights that do not fit, a bundle that is broken."""


class CheckpointError(FlowersError):
    """A checkpoint that is broken, or that belongs to another run."""


class ProcessError(FlowersError):
    """A process group or a loader process that is not as it was asked for, or died."""


class TrainingError(FlowersError):
    """Training cannot continue: a loss that is not finite, an evaluation that missed images."""


class InUseError(FlowersError):
    """A run folder or an output that another process is working on."""


class OutputError(FlowersError):
    """An output that belongs to another job, or is not complete yet."""


class StoppedError(FlowersError):
    """Stopped on request, all progress saved: the same command resumes."""

    exit_code = EXIT_STOPPED


class PeerError(FlowersError):
    """Another rank failed and reports why; this one stops silently, with the same exit code."""

    def __init__(self, exit_code: int = EXIT_FAILED):
        super().__init__()
        self.exit_code = exit_code


def system_reason(error: OSError) -> str:
    """What the system says of an error, in lower case; the error's kind where it says nothing."""
    return (error.strerror or type(error).__name__).lower()


def explain(error: Exception) -> str | None:
    """The line for an error that is not our bug; None for any other."""
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        reason = system_reason(error)
        return f"{where}{reason}" if error.errno in _OF_THE_MACHINE else None
    kind, said = type(error).__name__, str(error)
    if kind in _LOST_PEER or "gloo/transport" in said:
        return "another process of this job is gone, see what it said; this one cannot continue alone"
    if kind == "OutOfMemoryError":  # torch's, of a GPU; torch itself is not imported here
        return (
            "the GPU's memory is full: give a smaller --batch-size; in training --grad-accum-steps makes up for it "
            "(-b 16 --grad-accum-steps 2 in the place of -b 32)"
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in said:  # Python's, torch's
        return "the machine's memory is full: pass a smaller --batch-size or fewer --workers"
    if "can't start new thread" in said:
        return "the system gives this job no more threads: pass fewer --workers"
    operation, found, _ = said.partition(" does not have a deterministic implementation")
    if found:
        kernel = operation.split()[-1]
        return f"--deterministic: {kernel} has no deterministic kernel on this device: leave the flag out"
    return _explain_import(error)


def _explain_import(error: Exception) -> str | None:
    """The line for a library that could not be imported, because of a variable in the environment say."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    for package in ("torch", "accelerate"):
        if package not in sys.modules and any(Path(file).parts[-2:] == (package, "__init__.py") for file in files):
            said = str(error).strip().partition("\n")[0]
            named = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(_READ_AT_IMPORT)]
            hint = f"; the environment has {', '.join(sorted(named))}" if named else ""
            return f"{package} cannot be imported ({type(error).__name__}: {said}){hint}"
    return None
