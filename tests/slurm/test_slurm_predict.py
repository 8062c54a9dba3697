"""Prediction arrays on a real Slurm: the same file, byte for byte, whatever happens to a task."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cluster import ROOT, Cluster, ClusterJob, send

from flowers.data.folders import ClassIndex
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle, save_bundle
from flowers.models.heads import Classifier, HeadSpec, build_head

pytestmark = pytest.mark.slurm

PHOTOS = 900
HOW = ("--engine", "torch", "--topk", "2", "-b", "2", "-j", "1", "--shard-size", "20")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights."""
    torch.manual_seed(0)
    classes = ClassIndex(("1", "2", "3"), ("rose", "iris", "lily"))
    backbone = build_backbone("shufflenet_v2_x0_5", "none", 32)
    head = HeadSpec(3, backbone.num_features)
    classifier = Classifier(backbone.network, build_head(head))
    folder = tmp_path_factory.mktemp("model") / "bundle"
    state = classifier.state_dict()
    save_bundle(Bundle("shufflenet_v2_x0_5", head, classes, backbone.preprocessing, {}, {}, state), folder)
    return folder


@pytest.fixture(scope="module")
def photos(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough photos that a task takes seconds; a broken one among them."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    folder.mkdir()
    drawn = sorted(sample_set.rglob("*.jpg"))
    for number in range(PHOTOS):
        os.link(drawn[number % len(drawn)], folder / f"{number:04}.jpg")
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def local(bundle: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file as one process on this machine writes it."""
    output = tmp_path_factory.mktemp("local") / "predictions.csv"
    flags = ("--checkpoint", bundle, "--input", photos, "--output", output, *HOW)
    one_cpu = os.environ | {
        "SLURM_CPUS_ON_NODE": "1"
    }  # as in the tasks: the number of threads is part of the arithmetic
    subprocess.run([sys.executable, ROOT / "jobs" / "predict.py", *flags], env=one_cpu, check=True, timeout=120)
    return output.read_bytes()


Submit = Callable[..., tuple[list[ClusterJob], ClusterJob]]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the array's output goes."""
    return tmp_path / "out" / "predictions.csv"


@pytest.fixture
def submit(cluster: Cluster, bundle: Path, photos: Path, output: Path) -> Submit:
    """Submits an array of three tasks and its merge; returns the tasks, and the merge."""

    def submit(*own: str) -> tuple[list[ClusterJob], ClusterJob]:
        flags = ("--checkpoint", bundle, "--input", photos, "--output", output, *HOW)
        command = ("bash", ROOT / "slurm" / "submit.sh", "predict", "--array=0-2", "--cpus-per-task=1")
        done = cluster.run(*command, "--", *own, *flags)
        array = re.search(r"predict is job (\d+)", done.stderr)[1]
        return [cluster.job(f"{array}_{task}") for task in range(3)], cluster.job(done.stdout)

    return submit


def has_part(output: Path, task: int) -> bool:
    """Whether one of three tasks has finished a shard."""
    parts = output.with_name(f"{output.name}.parts").glob("*/parts/*")
    return any(int(part.name) % 3 == task for part in parts if part.name.isdigit())


def test_array_survives_a_killed_and_a_warned_task(
    submit: Submit, cluster: Cluster, local: bytes, output: Path
) -> None:
    tasks, merge = submit("--stage")
    tasks[1].freeze_when(lambda: has_part(output, 1), "finish a shard")
    warned = tasks[2].freeze_when(lambda: has_part(output, 2), "finish a shard")
    assert len(list((cluster.folder / "local").glob("flowers-*/photos/0000.jpg"))) == 1  # once for all, on this node
    cluster.run("scontrol", "requeue", tasks[1].number)
    cluster.run("scancel", "--batch", "--signal=USR1", tasks[2].number)
    send(warned, signal.SIGCONT)
    for task, restarts in zip(tasks, ("0", "1", "1"), strict=True):
        facts = task.wait()
        assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", restarts), task.log
    assert merge.wait()["JobState"] == "COMPLETED", merge.log
    for task in tasks[1:]:
        assert re.search(r"shards, [1-9]\d* done before", task.log.partition("start 2")[2]), task.log
    assert "stopped and saved; requeueing" in tasks[2].log
    assert output.read_bytes() == local
    assert not list((cluster.folder / "local").glob("*/"))


def test_failed_task_cancels_the_merge(submit: Submit, output: Path) -> None:
    tasks, merge = submit()
    workers = tasks[0].freeze_when(lambda: has_part(output, 0), "finish a shard")
    send(workers, signal.SIGKILL)
    assert tasks[0].wait()["JobState"] == "FAILED"
    assert "was ended by SIGKILL" in tasks[0].log
    assert merge.wait()["JobState"] == "CANCELLED"


def test_plain_srun_shares_the_work(cluster: Cluster, bundle: Path, photos: Path, output: Path, local: bytes) -> None:
    flags = ("--checkpoint", bundle, "--input", photos, "--output", output, *HOW)
    step = ("srun", "--ntasks=2", "--nodes=1", "--cpus-per-task=1", "--label", "--unbuffered")
    done = cluster.run(*step, sys.executable, ROOT / "jobs" / "predict.py", "--log", "plain", *flags)
    assert output.read_bytes() == local
    assert not output.with_name(f"{output.name}.parts").exists()
    images = int(re.search(r"0: (\d+) images in", done.stdout)[1])
    assert (PHOTOS + 1) // 5 < images < (PHOTOS + 1) * 4 // 5, "each takes its share"
    assert not re.search(r"^1: .*rows \(", done.stdout, re.M), "one process speaks"
