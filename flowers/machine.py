"""The machine's share for one process: CPUs, memory, threads, bf16."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

MAX_BATCH_SIZE = 65536
"""Images per process; a larger number is a slip of the finger that would fill the memory before anything is said."""


def available_cpus() -> int:
    """CPUs that this process may run on: its affinity, cut by Slurm's allocation where there is one."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cpus = os.cpu_count() or 1
    allocated = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return max(1, min(cpus, int(allocated))) if allocated.isdigit() else cpus


def most_processes() -> int:
    """Processes that make sense on this machine; more are a slip of the finger that would stop it."""
    return max(32, 4 * available_cpus())


def available_memory_bytes() -> int | None:
    """Memory that can still be taken: the machine's, cut by the control groups (Slurm's, a container's) above us.

    Returns:
        None where it cannot be told, as on other systems than Linux.
    """
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
        group = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].split("\n")[0]
        for folder in (Path("/sys/fs/cgroup") / group, *(Path("/sys/fs/cgroup") / group).parents):
            limit = folder / "memory.max"
            if limit.exists() and limit.read_text().strip() != "max":
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text()) - int(statistics["inactive_file"])
                limits.append(max(0, int(limit.read_text()) - used))
    except (OSError, ValueError, KeyError):
        pass
    return min(limits, default=None)


def local_world_size() -> int:
    """Processes of this job on this machine, by the environment that launchers set."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cpus_per_process() -> int:
    """This process's fair share of the CPUs, so that N processes do not fight over the cores."""
    return max(1, available_cpus() // local_world_size())


def threads_per_process() -> int:
    """Threads to compute with: OMP_NUM_THREADS where somebody chose it, else this process's share of the CPUs.

    torch's own launcher sets it to 1 for every process of several, whatever the machine; that is no choice.
    """
    chosen = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2": of nested regions, too
    by_launcher = chosen == "1" and "TORCHELASTIC_RUN_ID" in os.environ and local_world_size() > 1
    return int(chosen) if chosen.isdigit() and int(chosen) > 0 and not by_launcher else cpus_per_process()


def cpu_has_bf16() -> bool:
    """True if the CPU multiplies bfloat16 natively (AVX512-BF16, AMX, or ARM's); elsewhere bf16 is slower."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    except OSError:  # not Linux
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())


def keep_freed_memory() -> None:
    """Make the C library keep what tensors on the CPU free for the next ones.

    glibc hands blocks of megabytes back to the kernel at once, and every activation of a network is such a block:
    half the time of a step went into clearing pages that had just been given up. Other C libraries are left alone.
    """
    if sys.platform == "linux":
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
        with contextlib.suppress(AttributeError):  # musl has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(mmap_max, 0)
            mallopt(trim_threshold, 2**31 - 1)
