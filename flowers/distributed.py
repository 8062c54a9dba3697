"""The processes of one job: started as one group on any machine, and what they tell one another."""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from flowers import console, environment
from flowers.errors import FlowersError, PeerError, ProcessError, UsageError
from flowers.machine import cpu_has_bf16, keep_freed_memory, local_world_size, threads_per_process

Result = TypeVar("Result")

PRECISIONS = ("no", "fp16", "bf16")


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

    environment.ignore_other_settings()
    has_gpu = torch.cuda.is_available()
    cpu_only = environment.told_to_use_cpu() or not (has_gpu or torch.backends.mps.is_available())
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
    environment.check_world_size(accelerator.num_processes)
    return accelerator


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


def compute_in_float32(accelerator) -> None:
    """Let networks that are prepared from now on compute in float32, whatever precision the processes started in."""
    from accelerate.utils import AutocastKwargs

    accelerator.autocast_handler = AutocastKwargs(enabled=False)


def precision_of(accelerator) -> str:
    """The precision of networks that are prepared now: "no", "fp16" or "bf16"."""
    handler = accelerator.autocast_handler
    return "no" if handler is not None and not handler.enabled else accelerator.mixed_precision


def arithmetic(accelerator) -> dict[str, object]:
    """The settings beside the flags that a job computes with now: for the log and the record of a model."""
    import torch

    return {
        "device": accelerator.device.type,
        "precision": precision_of(accelerator),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "tf32_convolutions": accelerator.device.type == "cuda" and torch.backends.cudnn.allow_tf32,
        "deterministic_kernels": torch.are_deterministic_algorithms_enabled(),
        **environment.variables_of_arithmetic(),
    }


def from_main(find_out: Callable[[], Result]) -> Result:
    """Do something on the main process while the others wait, and hand its result to all of them.

    One process alone, started by no launcher, needs neither torch nor Accelerate for it.

    Args:
        find_out: called on rank 0 only; several processes get a pickled copy of what it returns.

    Raises:
        FlowersError: what ``find_out`` raised, on the main process.
        PeerError: on the other processes then, with the same exit code.
    """
    if not environment.are_several():
        return find_out()
    from accelerate.utils import broadcast_object_list

    outcome, failure = _try(find_out) if environment.rank() == 0 else (None, None)
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
    if not environment.are_several():
        return [find_out()]
    from accelerate.utils import gather_object

    outcome, failure = _try(find_out)
    return _fail_together(gather_object([outcome]), failure)


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


def sums_of_ranks(accelerator, row: list[float]) -> list[float]:
    """The numbers of a row, each summed over the ranks."""
    return [sum(column) for column in zip(*rows_of_ranks(accelerator, row), strict=True)]


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
    if environment.are_several():
        return Place(environment.rank(), int(os.environ["WORLD_SIZE"]), str(start(timeout_s=timeout_s).device))
    environment.check_world_size(1)
    device = "cpu" if environment.told_to_use_cpu() else None
    tasks = 1 if "WORLD_SIZE" in os.environ else environment.tasks_of_step()
    if tasks == 1:
        return Place(0, 1, device)
    number = int(os.environ["SLURM_PROCID"])
    os.environ["RANK"] = str(number)  # the console lets rank 0 speak
    import torch

    if device is None and torch.cuda.device_count() > 1:  # a step that was given no GPU for each task sees all of them
        device = f"cuda:{int(os.environ['SLURM_LOCALID']) % torch.cuda.device_count()}"
    return Place(number, tasks, device, f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}")
