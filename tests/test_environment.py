"""What launchers, Slurm and MPI tell a process: taken where it is meant, ignored or refused where it is not."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch

from flowers import distributed, environment, machine
from flowers.environment import first_rank_here
from flowers.errors import ProcessError, UsageError

STEP = {"JOB_ID": 7, "STEP_ID": 2, "STEP_NUM_TASKS": 2, "STEP_TASKS_PER_NODE": "2", "STEP_NODELIST": "127.0.0.1"}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of launchers, with nothing of the surrounding ones in them; ``os.environ`` is this."""
    own: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", own)
    return own


def test_a_process_alone_on_its_machine_need_not_be_told_so(environ: dict[str, str]):
    """Kubeflow's PyTorchJob sets no LOCAL_RANK where a pod has one process."""
    environ |= {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "first"}
    environment.check_group()
    assert first_rank_here() == 1


def test_a_number_left_over_from_another_group_silences_nobody(environ: dict[str, str]):
    environ |= {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": ""}
    environment.check_group()
    assert environ.keys() <= {"PYTEST_CURRENT_TEST"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: got 'two', expected a number as launchers set it"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE: got '0', expected"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK: got '-1', expected"),
        ({"OMP_NUM_THREADS": "100000"}, "OMP_NUM_THREADS: got 100000, expected at most 1024"),
        ({"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS=two, SLURM_JOB_ID=, .*: expected a number each"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_LOCALID=: .* unset SLURM_STEP_NUM_TASKS"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 says .* without MASTER_ADDR: start with flowers-launch"),
    ],
)
def test_what_no_launcher_sets_is_refused(variables: dict, message: str, environ: dict[str, str]):
    environ |= variables
    with pytest.raises(UsageError, match=message):
        environment.check_group()


def test_place_in_a_step_over_nodes(environ: dict[str, str]):
    environ |= {f"SLURM_{name}": str(value) for name, value in STEP.items()}
    environ |= {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_CPUS_PER_TASK": "3"}
    environ |= {"SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "2(x2),3"}
    environ["SLURM_STEP_NODELIST"] = "gpu[07-09,12],login"
    environment.join_step()
    found = {name: value for name, value in environ.items() if not name.startswith(("SLURM_", "PYTEST_"))}
    assert found == {
        "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "7", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(10_000 + 7 + 2 * 7919), "OMP_NUM_THREADS": "3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("n[1-2]", "n1"),
        ("n[03,5]-ib,m", "n03-ib"),
        ("x-1.site.org,x-2.site.org", "x-1.site.org"),
    ],
)
def test_first_host_of_a_step(nodes: str, first: str):
    assert environment._first_host(nodes) == first


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"},  # a shell of salloc
        {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "PMI_SIZE": "1"},  # salloc's shell as a step of its own
        {"SLURM_STEP_NUM_TASKS": "4", "FLOWERS_WORLD_SIZE": "1"},  # srun started launchers
    ],
)
def test_a_job_runs_alone_outside_a_step_of_several_tasks(variables: dict[str, str], environ: dict[str, str]):
    environ |= variables
    environment.join_step()
    assert "RANK" not in environ
    assert "WORLD_SIZE" not in environ


@pytest.mark.parametrize("name", environment._BY_MPI)
def test_processes_of_mpi_are_refused(name: str, environ: dict[str, str]):
    environ[name] = "4"
    for start in (environment.join_step, lambda: distributed.take_place(1)):
        with pytest.raises(
            ProcessError, match=f"MPI started 4 processes \\({name}\\).*flowers-launch --num-processes 4"
        ):
            start()


def variables_of_accelerate() -> set[str]:
    """Every ACCELERATE_* that the installed accelerate mentions."""
    sources = Path(accelerate.__file__).parent.rglob("*.py")
    return {name for file in sources for name in re.findall(r"ACCELERATE_[A-Z0-9_]*[A-Z0-9]", file.read_text())}


def start_with(**variables: str) -> subprocess.CompletedProcess:
    lines = "from flowers import distributed; print(distributed.start('no').gradient_accumulation_steps)"
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", **variables}
    return subprocess.run([sys.executable, "-c", lines], env=env, capture_output=True, text=True, timeout=120)


def test_variables_of_accelerate_change_no_job():
    """All at once, as found in its source: what a new version reads is removed, too."""
    honoured = {f"ACCELERATE_{name}" for name in environment.HONOURED}
    splitting = {name for name in variables_of_accelerate() if name.startswith("ACCELERATE_USE_")} - honoured
    splitting -= {"ACCELERATE_USE_XPU", "ACCELERATE_USE_IPEX"}  # devices, in versions before 1.8
    others = variables_of_accelerate() - honoured - splitting
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in others
    assert honoured <= variables_of_accelerate()
    assert splitting <= {
        f"ACCELERATE_USE_{name}" for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")
    }, "a new way to split a network: refuse it"
    done = start_with(
        **dict.fromkeys(others, "auto") | {"ACCELERATE_USE_SAGEMAKER": "true", "ACCELERATE_TORCH_DEVICE": "cuda"}
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    said = [line for line in done.stderr.splitlines() if "ignored" in line]
    assert all(f"{name}=" in " ".join(done.stderr.split()) for name in others), done.stderr
    assert len(said) == 1


@pytest.mark.parametrize("steps", ["4", "0", "auto"])
def test_gradient_accumulation_of_another_job_is_ignored_and_said(monkeypatch, capsys, steps: str):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
    environment.ignore_other_settings()
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in os.environ
    assert f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps}" in capsys.readouterr().err


def test_what_a_launcher_writes_by_default_is_no_warning(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    environment.ignore_other_settings()
    written = capsys.readouterr()
    assert "DYNAMO" not in written.out + written.err


def test_what_the_environment_says_of_arithmetic_is_shown_and_kept(monkeypatch, capsys):
    said = {
        "NVIDIA_TF32_OVERRIDE": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTORCH_CUDA_ALLOC_CONF": "backend:native",
        "ONEDNN_DEFAULT_FPMATH_MODE": "BF16", "MKL_CBWR": "COMPATIBLE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    }  # fmt: skip
    for name, value in {**said, "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "TORCH_HOME": "/x"}.items():
        monkeypatch.setenv(name, value)
    environment.ignore_other_settings()
    line = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}={value}" in line for name, value in said.items())
    assert "NCCL" not in line
    assert "TORCH_HOME" not in line
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), mixed_precision="bf16", num_processes=2, autocast_handler=None
    )
    found = distributed.arithmetic(accelerator)
    assert said.items() <= found.items()
    assert (found["precision"], found["threads"], found["tf32_convolutions"]) == (
        "bf16", torch.get_num_threads(), False,
    )  # fmt: skip


def test_other_variables_that_accelerate_reads_are_known():
    """Those that are not its own; a new version's must be looked at: honour it, remove it, or refuse it."""
    asks = r"(?:environ(?:\.get\(|\[)|getenv\(|parse_(?:flag|choice)_from_env\()\s*[\"']([A-Z][A-Z0-9_]+)[\"']"
    package = Path(accelerate.__file__).parent
    sources = [file for file in package.rglob("*.py") if "test_utils" not in file.parts]
    names = {name for file in sources for name in re.findall(asks, file.read_text())}
    known = re.compile(
        r"ACCELERATE_\w+"
        r"|(FSDP|MEGATRON_LM|PARALLELISM_CONFIG|DEEPSPEED)_\w+"  # read only where a network is split, which is refused
        r"|(AWS|CLEARML|MLFLOW)_\w+"  # of trackers and of a cloud's launcher
        r"|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|NODE_RANK|PMI_SIZE|OMPI_\w+|MPI_\w+"
        r"|OMP_NUM_THREADS|KMP_\w+|FORK_LAUNCHED|NPROC|CUDA_VISIBLE_DEVICES|ZE_AFFINITY_MASK|CCL_\w+"
        r"|(TPU|XLA|PJRT|PT_HPU|TORCHXLA|USE_TORCH_XLA|HABANA)\w*"  # of devices that jobs here do not use
        r"|HF_HOME|XDG_CACHE_HOME|PYTORCH_ENABLE_MPS_FALLBACK|FOO"
    )
    assert {"OMP_NUM_THREADS", "FORK_LAUNCHED"} & names
    assert not {name for name in names if not known.fullmatch(name)}


@pytest.mark.parametrize(("chosen", "threads"), [("3", 3), ("4,2", 4), ("abc", 2), ("0", 2), ("", 2)])
def test_threads_are_those_that_somebody_chose(monkeypatch, chosen: str, threads: int):
    monkeypatch.setattr(machine, "available_cpus", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert machine.threads_per_process() == threads
