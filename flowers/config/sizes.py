"""Sizes that are a slip of the finger on any machine, refused before they fill its memory or stop it."""

from flowers.errors import UsageError
from flowers.machine import MAX_BATCH_SIZE, most_processes


def check_sizes(batch_size: int, loader_processes: int | None = None) -> None:
    """Refuse a batch or a number of loader processes that no machine, or not this one, can hold.

    Args:
        loader_processes: what ``--workers`` says where it starts processes; None where it is left to the job.

    Raises:
        UsageError: the flag, what it got, what is expected.
    """
    if batch_size > MAX_BATCH_SIZE:
        raise UsageError(f"--batch-size: got {batch_size}, expected at most {MAX_BATCH_SIZE}")
    if loader_processes is not None and loader_processes > (most := most_processes()):
        raise UsageError(f"--workers: got {loader_processes}, expected at most {most} on this machine, by its CPUs")
