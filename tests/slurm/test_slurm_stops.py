"""Training jobs on a real Slurm that fail, are told to stop, or are cancelled."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import ROOT, Cluster, ClusterJob, assert_same_run, has_step, send, submit

pytestmark = pytest.mark.slurm

MULTINODE = ROOT / "slurm" / "train_multinode.sbatch"


def test_one_failing_rank_ends_the_job_and_cancels_its_dependents(
    start: Callable[..., ClusterJob], cluster: Cluster, sample_set: Path, tmp_path: Path
) -> None:
    job = start("--cpus-per-task=1", "--nodes=2", script=MULTINODE)
    waiting = submit(
        cluster, "--after", job.number, "evaluate", "--", "--checkpoint", tmp_path / "run", "--data-dir", sample_set
    )
    workers = job.freeze_when(has_step(tmp_path / "run"), "save a checkpoint")
    second = cluster.node(5)  # README's way to look at a job that hangs
    look = ("srun", f"--jobid={job.number}", "--overlap", "--nodes=1", f"--nodelist={second}")
    assert cluster.run(*look, "hostname").stdout == f"{second}\n"
    send(workers[1:], signal.SIGKILL)
    send(workers[:1], signal.SIGCONT)
    assert job.wait(60)["JobState"] == "FAILED"
    assert "rank 1 was ended by SIGKILL" in job.log
    assert waiting.wait(30)["JobState"] == "CANCELLED"


def test_signal_to_the_steps_saves_and_requeues(
    start: Callable[..., ClusterJob], cluster: Cluster, reference: Path, tmp_path: Path
) -> None:
    job = start(flags=("--processes", "2"))
    workers = job.freeze_when(has_step(tmp_path / "run"), "save a checkpoint")
    cluster.run("scancel", "--signal=USR1", job.number)
    send(workers, signal.SIGCONT)
    assert job.wait()["Restarts"] == "1", job.log
    assert job.state == "COMPLETED", job.log
    assert "stopped and saved; requeueing" in job.log
    assert_same_run(tmp_path / "run", reference)
    assert (tmp_path / "run" / "slurm" / f"{job.number}.out").resolve() == cluster.folder / f"{job.number}.out"


def test_requeues_are_bounded(start: Callable[..., ClusterJob], cluster: Cluster, tmp_path: Path) -> None:
    job = start(FLOWERS_MAX_REQUEUES="0", FLOWERS_WRAP="env WRAPPED=1")  # a container would stand here
    workers = job.freeze_when(has_step(tmp_path / "run"), "save a checkpoint")
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_for(lambda: (tmp_path / "run" / "stop").exists(), "write the stop file")
    assert "WRAPPED=1" in Path(f"/proc/{workers[0]}/environ").read_text().split("\0")
    send(workers, signal.SIGCONT)
    facts = job.wait()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "75:0", "0")
    assert "requeued 0 times already (FLOWERS_MAX_REQUEUES): submit the same command again to go on" in job.log
    assert not (tmp_path / "run" / "stop").exists()


def test_warning_before_training_has_begun(start: Callable[..., ClusterJob], cluster: Cluster, tmp_path: Path) -> None:
    site = tmp_path / "site.sh"
    site.write_text("echo modules are being loaded\nsleep 2\n")
    job = start(FLOWERS_MAX_REQUEUES="0", FLOWERS_SITE=str(site))
    job.wait_for(lambda: "modules are being loaded" in job.log, "start")
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    assert job.wait()["ExitCode"] == "75:0", job.log
    assert "asked to stop before it began" in job.log
    assert "flowers: train" not in job.log


def test_cancelled_job_saves_and_does_not_come_back(
    start: Callable[..., ClusterJob], cluster: Cluster, tmp_path: Path
) -> None:
    job = start()
    workers = job.freeze_when(has_step(tmp_path / "run"), "save a checkpoint")
    cluster.run("scancel", job.number)
    send(workers, signal.SIGCONT)
    facts = job.wait()
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")
    job.wait_for(lambda: "(SIGTERM) with all state saved" in job.log, "save", 20)
