"""The processes of one job: started as one group on any machine, and what they tell one another."""

import contextlib
import datetime
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from flowers import console
from flowers.errors import FlowersError, PeerError, ProcessError, UsageError
from flowers.machine import available_cpus, cpu_has_bf16, keep_freed_memory, local_world_size, threads_per_process

Result = TypeVar("Result")

PRECISIONS = ("no", "fp16", "bf16")
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


def start(
    mixed_precision: str | None = None,
    timeout_s: float | None = None,
    default_precision: str | None = None,
):
    """Start Accelerate on one process, on several CPU processes or on several GPUs.

    Without a GPU, the processes that Accelerate's multi-GPU launcher starts would each work alone; told to use
    the CPU they form one group. Where its config says `use_cpu`, a GPU is left alone. Threads are set to this
    process's share of the CPUs.

    Args:
        mixed_precision: "no", "fp16" or "bf16"; None takes what `accelerate launch` or its config file set.
        default_precision: what to compute in where neither says; None is "bf16" where the device has it, else "no".
        timeout_s: how long ranks wait for one another; PyTorch's own default is 10 or 30 minutes.

    Returns:
        accelerate.Accelerator

    Raises:
        ProcessError: the processes in the group are not those that were launched, or are more than the GPUs.
        UsageError: a precision that this machine cannot compute in; a network that is to be split over devices.
    """
    import torch

    ignore_other_settings()
    has_gpu = torch.cuda.is_available()
    cpu_only = told_to_use_cpu() or not (has_gpu or torch.backends.mps.is_available())
    if has_gpu and not cpu_only:
        _check_gpus(torch.cuda.device_count())
    if cpu_only:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        threads = threads_per_process()
        torch.set_num_threads(threads)
        if os.environ.get("MKL_NUM_THREADS", str(threads)) != str(threads):
            console.warn(
                f"MKL_NUM_THREADS={os.environ['MKL_NUM_THREADS']} has no effect, {threads} threads are used: set "
                "OMP_NUM_THREADS"
            )
        keep_freed_memory()
    from accelerate import Accelerator, InitProcessGroupKwargs

    handlers = [InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=timeout_s))] if timeout_s else []
    mixed_precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION")
    mixed_precision = mixed_precision or default_precision or _native_precision(cpu_only)
    if mixed_precision not in PRECISIONS:
        raise UsageError(f"--mixed-precision: got {mixed_precision!r}, expected one of {', '.join(PRECISIONS)}")
    if mixed_precision == "fp16" and cpu_only:
        raise UsageError("--mixed-precision fp16 needs a GPU; on a CPU use bf16 or no")
    try:
        accelerator = Accelerator(
            cpu=cpu_only,
            gradient_accumulation_steps=1,  # the trainer accumulates itself
            mixed_precision=mixed_precision,
            kwargs_handlers=handlers,
        )
    except ValueError as error:
        raise UsageError(f"cannot start on this machine: {error}") from error
    except RuntimeError as error:
        if type(error).__name__ not in ("DistNetworkError", "DistStoreError"):
            raise
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        said = str(error).partition("\n")[0].strip(" .")
        raise ProcessError(
            f"the processes do not meet at {place} ({said}): start all of them, at the address of the first machine, "
            "with a port that nobody else uses"
        ) from None
    check_world_size(accelerator.num_processes)
    return accelerator


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Inside the block, torch uses only kernels that give the same bits every time; CPUs have no others.

    To be entered before a GPU is used: cuBLAS reads its variable at the first product. An operation without such a
    kernel raises RuntimeError.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


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
    if _are_several() and missing:
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


def join_step() -> None:
    """Take this process's number and meeting point from a plain ``srun -n N``, as a launcher would have set them.

    srun tells each task its number and the step's hosts, which is all that a process group needs. A shell of
    ``salloc`` or of a batch script has the job's SLURM_NTASKS but is no step of several tasks: it runs alone.

    Raises:
        ProcessError: MPI started several processes; each of them would do all the work.
    """
    if "WORLD_SIZE" in os.environ or "FLOWERS_WORLD_SIZE" in os.environ:  # by a launcher
        return
    tasks = _tasks_of_step()
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


def _tasks_of_step() -> int:
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
    shown = [f"{name}={value}" for name, value in _variables_of_arithmetic().items()]
    if shown:
        console.say(console.plain(f"arithmetic as the environment says: {', '.join(shown)}"))


def _variables_of_arithmetic() -> dict[str, str]:
    names = sorted(name for name in os.environ if _ARITHMETIC.fullmatch(name) and not _NO_ARITHMETIC.fullmatch(name))
    return {name: os.environ[name] for name in names}


def arithmetic(accelerator) -> dict[str, object]:
    """The settings beside the flags that a job computes with now: for the log and the record of a model."""
    import torch

    return {
        "device": accelerator.device.type,
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "tf32_convolutions": accelerator.device.type == "cuda" and torch.backends.cudnn.allow_tf32,
        "deterministic_kernels": torch.are_deterministic_algorithms_enabled(),
        **_variables_of_arithmetic(),
    }


def told_to_use_cpu() -> bool:
    """True if `accelerate launch`, or its config file, said that a GPU is to be left alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "y", "t")  # as it reads it


def _check_gpus(gpus: int) -> None:
    """Check that each process of this machine has a GPU of its own, and that GPUs can talk to one another.

    Raises:
        ProcessError: there are more processes; Accelerate would put two on a GPU, where NCCL fails with a stack.
    """
    from accelerate.utils import check_cuda_p2p_ib_support

    by_launcher = not {"FLOWERS_WORLD_SIZE", "TORCHELASTIC_RUN_ID"}.isdisjoint(os.environ)  # all see the same GPUs
    if by_launcher and local_world_size() > gpus:
        raise ProcessError(
            f"{local_world_size()} processes on this machine, and torch sees {gpus} GPUs: start one for each, or set "
            "CUDA_VISIBLE_DEVICES= (empty) to compute on the CPU"
        )
    if not check_cuda_p2p_ib_support():  # consumer GPUs with an old driver: Accelerate refuses to start without these
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
        os.environ.setdefault("NCCL_IB_DISABLE", "1")


def _native_precision(cpu_only: bool) -> str:
    """The fastest precision that needs no care: bf16 where the device multiplies it natively."""
    import torch

    if torch.cuda.is_available() and not cpu_only:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if cpu_has_bf16() else "no"


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


def from_main(find_out: Callable[[], Result]) -> Result:
    """Do something on the main process while the others wait, and hand its result to all of them.

    One process alone, started by no launcher, needs neither torch nor Accelerate for it.

    Args:
        find_out: called on rank 0 only; several processes get a pickled copy of what it returns.

    Raises:
        FlowersError: what ``find_out`` raised, on the main process.
        PeerError: on the other processes then, with the same exit code.
    """
    if not _are_several():
        return find_out()
    from accelerate.utils import broadcast_object_list

    outcome, failure = _try(find_out) if rank() == 0 else (None, None)
    message = [outcome]
    broadcast_object_list(message)
    return _fail_together(message, failure)[0]


def from_all(find_out: Callable[[], Result]) -> list[Result]:
    """Do something on every process, and hand all results to all of them; nobody goes on before all have done it.

    Args:
        find_out: called on every rank; several processes get pickled copies of what it returns.

    Returns:
        The results by rank.

    Raises:
        FlowersError: what ``find_out`` raised, on the processes where it did.
        PeerError: on the other processes then, with the same exit code.
    """
    if not _are_several():
        return [find_out()]
    from accelerate.utils import gather_object

    outcome, failure = _try(find_out)
    return _fail_together(gather_object([outcome]), failure)


def rank() -> int:
    """The number of this process among those of the job, by the environment that launchers set."""
    return int(os.environ["RANK"]) if _are_several() else 0


def first_rank_here() -> int:
    """The number of the first process on this machine; launchers count machine by machine."""
    return rank() - int(os.environ.get("LOCAL_RANK", "0")) if _are_several() else 0


class Place(NamedTuple):
    """This process among those that share the work.

    Attributes:
        rank: its number.
        world_size: how many share the work.
        device: where to compute; None: wherever it is fastest.
        step: Slurm's name for the step of processes that know nothing of one another but their numbers, or None.
    """

    rank: int
    world_size: int
    device: str | None
    step: str | None = None


def take_place(timeout_s: float) -> Place:
    """Find this process among those of a launcher, or of plain ``srun``; else it is alone.

    Args:
        timeout_s: how long the processes of a launcher wait for their main one in ``from_main``.

    Raises:
        ProcessError: the processes in the group are not those that were launched.
    """
    if _are_several():
        return Place(rank(), int(os.environ["WORLD_SIZE"]), str(start(timeout_s=timeout_s).device))
    check_world_size(1)
    device = "cpu" if told_to_use_cpu() else None
    tasks = 1 if "WORLD_SIZE" in os.environ else _tasks_of_step()
    if tasks == 1:
        return Place(0, 1, device)
    number = int(os.environ["SLURM_PROCID"])
    os.environ["RANK"] = str(number)  # the console lets rank 0 speak
    import torch

    if device is None and torch.cuda.device_count() > 1:  # a step that was given no GPU for each task sees all of them
        device = f"cuda:{int(os.environ['SLURM_LOCALID']) % torch.cuda.device_count()}"
    return Place(number, tasks, device, f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}")


def _are_several() -> bool:
    return int(os.environ.get("WORLD_SIZE") or "1") > 1


def _try(find_out: Callable[[], Result]) -> tuple[tuple[Result | None, int | None], FlowersError | None]:
    """Call it and return (what to tell the others: result and exit code, the error to raise here)."""
    try:
        return (find_out(), None), None
    except FlowersError as error:
        return (None, error.exit_code), error


def _fail_together(outcomes: list[tuple[Result, int | None]], failure: FlowersError | None) -> list[Result]:
    """The results, if none of the processes failed."""
    if failure is not None:
        raise failure
    if failed := [exit_code for _, exit_code in outcomes if exit_code is not None]:
        raise PeerError(failed[0])
    return [result for result, _ in outcomes]


def rows_of_ranks(accelerator, row: list[float]) -> list[list[float]]:
    """A row of numbers from each rank, by rank, in double precision (which one process alone may lack a device for)."""
    if accelerator.num_processes == 1:
        return [row]
    import torch

    return accelerator.gather(torch.tensor([row], dtype=torch.float64, device=accelerator.device)).tolist()
