"""What launchers, Slurm and MPI tell a process in its environment: its place among others, and how to compute."""

import os
import re
from pathlib import Path

from flowers import console
from flowers.errors import ProcessError, UsageError
from flowers.machine import available_cpus, threads_per_process

_SPLITTERS = {
    "FSDP": "FSDP",
    "DEEPSPEED": "DeepSpeed",
    "MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG": "parallelism",
}
"""Ways to split a network that `accelerate launch` offers, by the end of their variable's name; none is of use here."""
HONOURED = (
    "USE_CPU", "MIXED_PRECISION", "CPU_AFFINITY", "DEBUG_MODE", "DEBUG_RDV_FILE", "ENABLE_RICH", "LOG_LEVEL",
    "NUM_PROCESSES",
)  # fmt: skip
"""What may stay of ``ACCELERATE_*``: the launcher's choice of device and precision, and what changes no result."""
_ARITHMETIC = re.compile(
    r"(OMP|GOMP|KMP|MKL|CUBLAS|CUBLASLT|ONEDNN|DNNL|PYTORCH|TORCH|TORCHINDUCTOR|TORCHDYNAMO|ATEN_CPU)_\w+"
    r"|NVIDIA_TF32_OVERRIDE"
)
"""Variables by which torch and its libraries compute otherwise, or use memory; left as they are, and shown."""
_NO_ARITHMETIC = re.compile(
    r"OMP_NUM_THREADS|TORCH_(NCCL_\w+|HOME|LOGS\w*|CPP_LOG_LEVEL)|\w+_DIR|KMP_(DUPLICATE_LIB_OK|INIT_AT_FORK)"
)
"""Set by launchers and by scikit-learn, or of places and messages; the number of threads is shown in any case."""
_OF_A_TASK = ("STEP_NUM_TASKS", "JOB_ID", "STEP_ID", "NODEID", "PROCID", "LOCALID")
"""What srun tells each of several tasks, as SLURM_NAME: a number each."""
_BY_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNTASKS", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_SIZE")
"""Where MPI's launchers say how many processes they started; none of them says where the processes can meet."""
_UNSET = ("", "1", "no", "none", "false", "default")
"""What `accelerate launch` writes for a choice that nobody made; left out without a word."""


def staged(path: Path) -> Path:
    """Where to read a data set: the copy on this node's disk, if ``slurm/common.sh --stage`` made one, else its path.

    The copy goes with the job, so that what a run remembers is the path that it was given.
    """
    given, copy = (os.environ.get(name) for name in ("FLOWERS_STAGED", "FLOWERS_STAGED_COPY"))
    return Path(copy) if given and copy and path.absolute() == Path(given) else path


def check_group() -> None:
    """Check what launchers tell a process in its environment; what is left of a group that is gone is taken away.

    Raises:
        UsageError: a number that is none, or one without the others that belong to it.
    """
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "FLOWERS_WORLD_SIZE"):
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isdigit() and (int(value) > 0 or name.endswith("RANK"))):
            os.environ.pop(name, None)
            if value:
                raise UsageError(f"{name}: got {value!r}, expected a number as launchers set it: unset it")
    if "WORLD_SIZE" not in os.environ:  # alone, with a number that would make it silent
        os.environ.pop("RANK", None)
        os.environ.pop("LOCAL_RANK", None)
    missing = [name for name in ("RANK", "MASTER_ADDR") if name not in os.environ]
    if are_several() and missing:
        raise UsageError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that this is one of several processes, without "
            f"{', '.join(missing)}: start with flowers-launch, or unset WORLD_SIZE"
        )
    is_launched = not {"WORLD_SIZE", "FLOWERS_WORLD_SIZE"}.isdisjoint(os.environ)
    is_task = os.environ.get("SLURM_STEP_NUM_TASKS", "") not in ("", "1") and not is_launched
    told = {f"SLURM_{name}": os.environ.get(f"SLURM_{name}", "") for name in _OF_A_TASK}
    if is_task and (odd := [f"{name}={value}" for name, value in told.items() if not value.isdecimal()]):
        raise UsageError(
            f"{', '.join(odd)}: expected a number each, as srun sets them for one of several tasks: start with srun, "
            "or unset SLURM_STEP_NUM_TASKS"
        )
    threads, most = threads_per_process(), max(1024, available_cpus())
    if threads > most:  # OpenMP would end in a segmentation fault
        raise UsageError(f"OMP_NUM_THREADS: got {threads}, expected at most {most}")


def are_several() -> bool:
    """True if a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or "1") > 1


def rank() -> int:
    """The number of this process among those of the job, by the environment that launchers set."""
    return int(os.environ["RANK"]) if are_several() else 0


def first_rank_here() -> int:
    """The number of the first process on this machine; launchers count machine by machine."""
    return rank() - int(os.environ.get("LOCAL_RANK", "0")) if are_several() else 0


def join_step() -> None:
    """Take this process's number and meeting point from a plain ``srun -n N``, as a launcher would have set them.

    srun tells each task its number and the step's hosts, which is all that a process group needs. A shell of
    ``salloc`` or of a batch script has the job's SLURM_NTASKS but is no step of several tasks: it runs alone.

    Raises:
        ProcessError: MPI started several processes; each of them would do all the work.
    """
    if "WORLD_SIZE" in os.environ or "FLOWERS_WORLD_SIZE" in os.environ:  # by a launcher
        return
    tasks = tasks_of_step()
    if tasks == 1:
        return
    job, step, node = (int(os.environ[f"SLURM_{name}"]) for name in ("JOB_ID", "STEP_ID", "NODEID"))
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(_tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])[node]),
        "MASTER_ADDR": _first_host(os.environ["SLURM_STEP_NODELIST"]),
    }
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):  # the task may be bound to them: no share of the node's
        os.environ.setdefault("OMP_NUM_THREADS", cpus)
    # Below the ports that the kernel gives to outgoing connections; another one for every step of a job.
    os.environ.setdefault("MASTER_PORT", str(10_000 + (job + 7919 * step) % 20_000))


def tasks_of_step() -> int:
    """Tasks that srun started with this one; 1 outside a step.

    Raises:
        ProcessError: MPI started several processes and srun did not.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or "1")  # set by srun, not in a shell of salloc
    by_mpi = [(name, os.environ[name]) for name in _BY_MPI if os.environ.get(name, "1") != "1"]
    if tasks == 1 and by_mpi:
        name, number = by_mpi[0]
        raise ProcessError(
            f"MPI started {number} processes ({name}) that cannot find one another, so each would do all the work: "
            f"start with `flowers-launch --num-processes {number} jobs/NAME.py ...`, or with srun on a Slurm cluster"
        )
    return tasks


def _tasks_per_node(counts: str) -> list[int]:
    """What Slurm writes as "2(x3),1": 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(tasks) for tasks, nodes in found for _ in range(int(nodes or 1))]


def _first_host(nodes: str) -> str:
    """The first of what Slurm writes as "node[07-09,12],login": node07."""
    head, number, tail = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\])?([^,]*)", nodes).groups()
    return head + (number or "") + tail


def check_world_size(seen: int) -> None:
    """Refuse a launch whose processes did not find each other.

    Raises:
        ProcessError: the group has another size than its launcher's WORLD_SIZE, or the FLOWERS_WORLD_SIZE that a
            cluster script asked for, says; or `accelerate launch --cpu` started one process instead of several.
    """
    launched = max(int(os.environ.get(name) or "1") for name in ("WORLD_SIZE", "FLOWERS_WORLD_SIZE"))
    advice = "start with `flowers-launch --num-processes N jobs/NAME.py ...`"
    if seen != launched:
        raise ProcessError(
            f"{launched} processes were asked for but {seen} found each other: each would do all the work alone; "
            + advice
        )
    # Asked for several CPU processes without a config file, accelerate names a meeting point, then starts one process.
    by_accelerate = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys()
    if by_accelerate and "WORLD_SIZE" not in os.environ:
        raise ProcessError(f"`accelerate launch --cpu` starts one process whatever its --num_processes says; {advice}")


def told_to_use_cpu() -> bool:
    """True if `accelerate launch`, or its config file, said that a GPU is to be left alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "y", "t")  # as it reads it


def ignore_other_settings() -> None:
    """Remove from the environment what would change a job behind its flags, and say so.

    Accelerate reads dozens of variables, and prefers some to the arguments it is given: gradient accumulation divides
    every gradient. One left by another job, a profile or a container is not meant for this one.

    Raises:
        UsageError: a network is to be split over devices.
    """
    for name, what in _SPLITTERS.items():
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise UsageError(
                f"accelerate's configuration asks for {what}, which splits a network over devices, here each has all "
                "of it: give `accelerate launch` a --config_file of launch/, or start with flowers-launch"
            )
    names = sorted(name for name in os.environ if name.startswith("ACCELERATE_"))
    others = {name: os.environ.pop(name) for name in names if name.removeprefix("ACCELERATE_") not in HONOURED}
    meant = [f"{name}={value}" for name, value in others.items() if value.lower() not in _UNSET]
    if meant:
        console.warn(f"ignored, flags say it here: {', '.join(meant)}")
    shown = [f"{name}={value}" for name, value in variables_of_arithmetic().items()]
    if shown:
        console.say(console.plain(f"arithmetic as the environment says: {', '.join(shown)}"))


def variables_of_arithmetic() -> dict[str, str]:
    """The variables in this process's environment by which torch and its libraries compute otherwise."""
    names = sorted(name for name in os.environ if _ARITHMETIC.fullmatch(name) and not _NO_ARITHMETIC.fullmatch(name))
    return {name: os.environ[name] for name in names}
