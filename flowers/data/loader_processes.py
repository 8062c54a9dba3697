"""Loader processes: their number, their start, the signals that they ignore, and the error when one dies."""

import contextlib
import copy
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing.context import BaseContext
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from flowers import console
from flowers.errors import ProcessError
from flowers.machine import cpus_per_process, local_world_size

Result = TypeVar("Result")

MAX_WORKERS = 16
"""No more by default: their output, over 10,000 images a second, is more than any one process consumes."""

SHARED_MEMORY = "/dev/shm"
_PREFETCH = 2  # batches that each loader process works ahead


def default_workers(requested: int | None) -> int:
    """Loader processes for this process: as many as asked for, else its share of the CPUs.

    With a single CPU it is 0: a process of its own would only compete with the training for that CPU.
    """
    if requested is not None:
        return requested
    cpus = cpus_per_process()
    return min(cpus, MAX_WORKERS) if cpus > 1 else 0


def make_loader(
    dataset: Dataset,
    batches: Iterable,
    workers: int,
    *,
    batch_bytes: int,
    persistent: bool = False,
    pin_memory: bool = False,
) -> DataLoader:
    """A torch loader whose dataset turns a whole batch of draws into its result, by ``__getitems__``.

    Args:
        dataset: pickles, for machines where processes are not forked.
        batches: gives, each time it is iterated, the batches of an epoch.
        workers: loader processes; fewer are started where shared memory is too small for their batches.
        batch_bytes: size of a result.
        persistent: the processes live on for the next epoch.
        pin_memory: for a GPU.
    """
    workers = fit_shared_memory(workers, batch_bytes)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # three lines at each start; -j is a choice
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_on_start,
        prefetch_factor=_PREFETCH if workers else None,
        persistent_workers=persistent and workers > 0,
        pin_memory=pin_memory and torch.cuda.is_available(),
        multiprocessing_context=_fork() if workers and sys.platform == "linux" else None,
        # The loader draws a seed at each start: from a generator of its own, not from the one that dropout uses.
        generator=torch.Generator(),
    )


def run_loader(loader: DataLoader) -> Iterator:
    """Iterate a loader of ``make_loader``.

    Raises:
        ProcessError: a loader process died, with the likely reason and what to do.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    try:
        with _sigterm_blocked():
            batches = iter(loader)
    except OSError as error:  # no memory or no process left to fork
        raise ProcessError(
            f"cannot start {loader.num_workers} loader processes: {error}; use fewer --workers"
        ) from error
    if before is not None and threading.current_thread() is threading.main_thread():
        # torch raises from its handler wherever the main process happens to be, in the middle of a step or a save.
        # Without it the death is noticed in next(), within five seconds.
        signal.signal(signal.SIGCHLD, before)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            dead = _dead(getattr(batches, "_workers", []))
            if not dead:
                raise
            raise ProcessError(_explain_death(dead)) from error
        yield batch


def fit_shared_memory(workers: int, batch_bytes: int) -> int:
    """Cut the number of loader processes to those whose batches fit in shared memory.

    Where it is full, a process dies of a bus error; containers often have only 64 MB.
    """
    if workers == 0 or not os.path.isdir(SHARED_MEMORY):
        return workers
    free_bytes = shutil.disk_usage(SHARED_MEMORY).free // local_world_size()
    batches = int(0.8 * free_bytes / max(batch_bytes, 1)) - 2  # two are with the main process
    fitting = max(0, min(workers, batches // _PREFETCH))
    if fitting < workers:
        console.warn(
            f"{SHARED_MEMORY} has {free_bytes / 1e6:.0f} MB for each process: {fitting} loader processes instead of "
            f"{workers}, for batches of {batch_bytes / 1e6:.0f} MB; in a container, start it with more (--shm-size)"
        )
    return fitting


class _Flag:
    """An event without a lock: a process killed at the wrong moment would never release it."""

    def __init__(self, context: BaseContext) -> None:
        self._flag = context.RawValue("b", 0)

    def is_set(self) -> bool:
        return bool(self._flag.value)

    def set(self) -> None:
        self._flag.value = 1


def _fork() -> BaseContext:
    """Start processes by fork: they are there in milliseconds; otherwise each imports torch first."""
    context = copy.copy(multiprocessing.get_context("fork"))
    context.Event = lambda: _Flag(context)  # where torch gets the event from that ends its processes
    return context


def _as_it_is(batch: Result) -> Result:
    return batch


def _on_start(_number: int) -> None:
    """Ignore signals in a new loader process: the main process stops at a step's end, then ends its loader processes.

    A cluster or a launcher signals every process of a job. SIGTERM must still work when it comes from the parent, so
    a thread waits for it and looks at the sender.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


@contextlib.contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Block SIGTERM in this thread, so that forked processes start with it blocked in all their threads.

    Delivered to any one of these, torch's handler would end the process.
    """
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(parent: int) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid in (parent, os.getpid()) or os.getppid() != parent:
            os._exit(0)


def _dead(processes: list) -> list:
    """Those that ended; a pipe may break a moment before its process has ended."""
    deadline = time.monotonic() + 2
    while processes and time.monotonic() < deadline:
        dead = [process for process in processes if not process.is_alive()]
        if dead:
            return dead
        time.sleep(0.02)
    return []


def _explain_death(processes: list) -> str:
    """Say why loader processes died, from their exit codes, and what to do about it."""
    codes = [process.exitcode for process in processes]
    signals = {-code for code in codes if code < 0}
    if signal.SIGBUS in signals:
        free_bytes = shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else 0
        return (
            f"a loader process died of a bus error: {SHARED_MEMORY} is full ({free_bytes / 1e6:.0f} MB free); use "
            "fewer --workers or a smaller --batch-size, or start the container with more (--shm-size)"
        )
    if signal.SIGKILL in signals:
        return (
            "a loader process was killed, most likely because memory ran out; use fewer --workers or a smaller "
            "--batch-size, or ask for more memory"
        )
    how = ", ".join(f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}" for code in codes)
    return f"a loader process died ({how}); start again with --workers 0 to see the error itself"
