"""A cluster for the tests of this folder; where none can be started they are skipped, or fail if it was promised."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import NODES, ROOT, TRAIN, Cluster, ClusterJob, missing, rest


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm cluster of five nodes; FLOWERS_REQUIRE_SLURM=1 makes its absence a failure."""
    reason = missing()
    if reason is not None:
        if os.environ.get("FLOWERS_REQUIRE_SLURM"):
            pytest.fail(f"no Slurm: {reason}")
        pytest.skip(f"no Slurm: {reason}")
    # Not in pytest's folders: the unix sockets' paths must be short.
    with tempfile.TemporaryDirectory(prefix="flowers-slurm-", dir="/tmp") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.manage("start", str(NODES))
            yield cluster
        finally:
            cluster.manage("stop")


@pytest.fixture(scope="session")
def train_flags(sample_set: Path) -> list[str]:
    """Flags of a short training run that takes dozens of steps and touches everything that a resume must restore."""
    model = ["--model", "shufflenet_v2_x0_5", "--weights", "none", "--finetune", "full"]
    size = ["--image-size", "32", "--resize", "36", "-b", "4", "-j", "0"]
    precision = ["--mixed-precision", "no"]  # accelerate's launcher says so unasked, Slurm's scripts do not
    return ["--data-dir", str(sample_set), *model, *size, *precision, "--epochs", "10", "--save-every", "4"]


@pytest.fixture(scope="session")
def reference(train_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the same training under `accelerate launch`, two processes on this machine."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "launch" / "cpu_multi.yaml"]
    subprocess.run(
        [*launch, ROOT / "jobs" / "train.py", *train_flags, "--output-dir", run_dir],
        env=os.environ | {"SLURM_CPUS_ON_NODE": "2"},  # a thread a process, as in the jobs
        check=True,
        timeout=300,
    )
    return run_dir


@pytest.fixture
def start(cluster: Cluster, train_flags: list[str], tmp_path: Path) -> Callable[..., ClusterJob]:
    """Submits a training job with plain sbatch; its run folder is tmp_path/run."""

    def start(*sbatch_flags: str, flags: tuple = (), script: Path = TRAIN, **environment: str) -> ClusterJob:
        where = ("--cpus-per-task=2", rest(cluster), *sbatch_flags)
        job_flags = (*flags, *train_flags, "--output-dir", tmp_path / "run")
        return cluster.sbatch(*where, script, *job_flags, FLOWERS_HOME=str(ROOT), **environment)

    return start


@pytest.fixture
def checkout(sample_set: Path, tmp_path: Path) -> Path:
    """A folder to submit from: the project, by links, with data/sample, photos and data/sample.tar in it."""
    for name in ("flowers", "jobs", "launch", "slurm"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(sample_set, tmp_path / "data" / "sample")
    shutil.copytree(sample_set / "test", tmp_path / "photos")
    subprocess.run(["tar", "-C", tmp_path / "data", "-cf", tmp_path / "data" / "sample.tar", "sample"], check=True)
    return tmp_path
