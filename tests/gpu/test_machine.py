"""Memory that runs out, and GPUs that are hidden, named or shared."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_job
import torch
from jobs_in_processes import Job
from test_training import CONVNET, SHORT, prepare

ROOT = Path(__file__).parents[2]


def take_little_memory() -> None:
    """Let this process have a hundredth of the GPU's memory."""
    torch.cuda.set_per_process_memory_fraction(0.01)


@pytest.mark.parametrize("job", ["train", "predict"])
def test_memory_that_runs_out_is_one_line(
    job: str, device: str, on_gpu: None, sample_set: Path, tmp_path: Path
) -> None:
    if job == "train":
        flags = [*CONVNET, *SHORT, "--data-dir", sample_set, "--finetune", "full", "--train-size", 1024, "-b", 32]
    else:
        tiny_job.make_bundle(tmp_path / "bundle")
        tiny_job.make_photos(tmp_path / "photos", 8)
        flags = ["--checkpoint", "bundle", "--input", "photos", "--output", "out.csv", "-b", 65536]
    trap = (device, take_little_memory)
    failed = Job(job, flags, folder=tmp_path, before=prepare, arguments=trap)
    assert failed.wait() == [1], failed.output
    assert "memory is full" in failed.output
    assert "smaller --batch-size" in failed.output
    assert "Traceback" not in failed.output


def test_a_hidden_gpu_is_left_alone(device: str, sample_set: Path, tmp_path: Path) -> None:
    flags = [*CONVNET, *SHORT, "--data-dir", sample_set, "--output-dir", "run", "--finetune", "full"]
    job = Job("train", flags, folder=tmp_path, before=prepare, arguments=(device, show, ""))
    assert job.wait() == [0], job.output
    assert re.search(r"device +cpu", job.output)


def show(gpus: str) -> None:
    """Let the process see these GPUs only."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus


def test_a_gpu_or_a_slice_of_one_is_taken_by_its_name(
    device: str, on_gpu: None, sample_set: Path, tmp_path: Path
) -> None:
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"UUID: (\S+?)\)", listed)  # those of slices (MIG) come after their GPU's
    job = Job("train", [*CONVNET, *SHORT, "--data-dir", sample_set, "--output-dir", "run"], folder=tmp_path,
              before=prepare, arguments=(device, show, names[-1]))  # fmt: skip
    assert job.wait() == [0], job.output
    assert re.search(r"device +cuda", job.output)


def test_more_processes_than_gpus_are_refused(device: str, on_gpu: None, sample_set: Path, tmp_path: Path) -> None:
    several = 2 * torch.cuda.device_count()
    command = [sys.executable, "-m", "flowers.launch", "--num-processes", several, ROOT / "jobs" / "train.py"]
    command += ["--data-dir", sample_set, "--output-dir", tmp_path / "run", *CONVNET]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "start one for each" in done.stderr
    assert done.stderr.count("\n") == 1
