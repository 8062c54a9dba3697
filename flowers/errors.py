"""The errors that a user's mistake, or a bad file or machine, leads to.

Each is raised with one line that says what, where, got against expected, and
what to do next. ``flowers.cli.run`` prints that line and exits with the class's
``exit_code``; a traceback is shown only for our own bugs.
"""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STRICT = 3
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: saved, start me again


class FlowersError(Exception):
    """Base of all expected failures."""

    exit_code = EXIT_FAILED


class UsageError(FlowersError):
    """A flag or config value that cannot be: wrong type, out of range, contradicting another."""

    exit_code = EXIT_USAGE


class DataError(FlowersError):
    """The images, their folders or their lists are not what the job needs."""


class ImageError(DataError):
    """One file that gives no picture; the message is the short reason, without the path."""


class ModelError(FlowersError):
    """An unknown model, weights that do not fit, a bundle that is broken."""


class CheckpointError(FlowersError):
    """A checkpoint that is broken, or that belongs to another run."""


class ProcessError(FlowersError):
    """The processes that run are not the processes that were asked for."""


class TrainingError(FlowersError):
    """Training cannot go on: a loss that is not finite, an evaluation that missed images."""


class InUseError(FlowersError):
    """A run folder or an output that another process is working on."""


class OutputError(FlowersError):
    """An output, finished or not, that belongs to another job, or is not whole yet."""


class StoppedError(FlowersError):
    """Stopped on request, all progress saved: the same command goes on from here."""

    exit_code = EXIT_STOPPED


class PeerError(FlowersError):
    """Another rank failed and says why; this one only stops too, silently, with the same exit code."""

    def __init__(self, exit_code: int = EXIT_FAILED):
        super().__init__()
        self.exit_code = exit_code
