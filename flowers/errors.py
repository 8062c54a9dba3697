"""Expected failures: a user's mistake, a bad file, a machine that cannot do what was asked.

Each is raised with one line that says what, where, got against expected, and
what to do next. ``flowers.cli.run`` prints that line and exits with the class's
``exit_code``; a traceback is shown only for our own bugs.
"""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STRICT = 3
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped with all state saved; the same command resumes


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
