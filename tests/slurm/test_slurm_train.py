"""Training on a real Slurm: the same result as on one machine, also after a warning and a node that died."""

import concurrent.futures
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from cluster import ROOT, SUBMIT, TRAIN, Cluster, ClusterJob, assert_same_run, has_step, rest, send, submit

pytestmark = pytest.mark.slurm

HEAD_ONLY = ("--model", "shufflenet_v2_x0_5", "--weights", "none", "--epochs", "1", "-j", "0")


def warned_before_the_time_limit(cluster: Cluster, train_flags: list[str], run_dir: Path) -> ClusterJob:
    """A job of two minutes that Slurm warns in the middle of its training."""
    where = ["--time=2", "--signal=B:USR1@60", "--cpus-per-task=2", f"--nodelist={cluster.node(1)}"]
    job = submit(cluster, "train", *where, "--", "--processes", 2, *train_flags, "--output-dir", run_dir)
    workers = job.freeze_when(has_step(run_dir), "save a checkpoint")
    job.wait_for(lambda: "asked to stop" in job.log, "get Slurm's warning", 100)
    send(workers, signal.SIGCONT)
    job.wait_for(lambda: job.facts()["Restarts"] != "0", "save and requeue itself")
    # On a busy machine two minutes are little more than a start, and each start would be warned again.
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")
    job.wait()
    return job


def node_without_power(cluster: Cluster, train_flags: list[str], run_dir: Path) -> ClusterJob:
    """A job on two nodes, one of which loses its power in the middle of training."""
    lost = cluster.node(3)
    where = ["--cpus-per-task=1", f"--nodelist={cluster.node(2)},{lost}"]
    job = submit(cluster, "train_multinode", *where, "--", *train_flags, "--output-dir", run_dir)
    workers = job.freeze_when(has_step(run_dir), "save a checkpoint")
    cluster.manage("kill-node", lost)
    send(workers[:1], signal.SIGCONT)
    job.wait_for(lambda: job.facts()["Restarts"] != "0", "lose its node", 150)
    cluster.boot(lost)
    job.wait()
    return job


Story = tuple[concurrent.futures.Future[ClusterJob], Path]


@pytest.fixture(scope="module", autouse=True)
def stories(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    train_flags: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Story]]:
    """What mostly waits for Slurm's clocks happens beside the other tests, from the start on."""
    wanted = {item.name for item in request.session.items}
    pool = concurrent.futures.ThreadPoolExecutor(2)
    started = {}
    for play in (warned_before_the_time_limit, node_without_power):
        if f"test_{play.__name__}" in wanted:
            run_dir = tmp_path_factory.mktemp("story") / "run"
            started[play.__name__] = pool.submit(play, cluster, train_flags, run_dir), run_dir
    yield started
    pool.shutdown(wait=False)  # after pytest -x nobody waits for them; they fail once the cluster is gone


def test_train_evaluate_predict_in_a_chain(
    cluster: Cluster, train_flags: list[str], reference: Path, sample_set: Path, tmp_path: Path
) -> None:
    run_dir, output = tmp_path / "run", tmp_path / "out" / "predictions.csv"
    sbatch_flags = ("--cpus-per-task=2", rest(cluster))
    train = submit(cluster, "train", *sbatch_flags, "--", "--processes", 2, *train_flags, "--output-dir", run_dir)
    after = ("--after", train.number)
    checkpoint = ("--checkpoint", run_dir)
    evaluate = submit(cluster, *after, "evaluate", *sbatch_flags, "--", *checkpoint, "--data-dir", sample_set)
    photos = ("--input", sample_set / "test", "--output", output, "--engine", "torch")
    merge = submit(cluster, *after, "predict", "--array=0-1", *sbatch_flags, "--", *checkpoint, *photos)

    assert train.wait()["JobState"] == "COMPLETED", train.log
    assert "4 x 2 processes" in train.log
    assert_same_run(run_dir, reference)
    assert evaluate.wait()["JobState"] == "COMPLETED", evaluate.log
    measured = json.loads((run_dir / "metrics.json").read_text())["test"]
    assert json.loads((run_dir / "metrics-test.json").read_text())["top1"] == measured["top1"]
    assert merge.wait()["JobState"] == "COMPLETED", merge.log
    assert len(output.read_text().splitlines()) == 1 + measured["images"]


def test_plain_srun_trains_one_run(cluster: Cluster, train_flags: list[str], reference: Path, tmp_path: Path) -> None:
    """No launcher: two tasks on two nodes find one another by what srun tells them."""
    step = ("srun", "--ntasks=2", "--nodes=2", "--cpus-per-task=1", "--label", "--unbuffered")
    done = cluster.run(
        *step, sys.executable, ROOT / "jobs" / "train.py", *train_flags, "--output-dir", tmp_path / "run"
    )
    assert_same_run(tmp_path / "run", reference)
    assert not re.search(r"^1: .*epoch", done.stdout, re.M), "one process speaks"
    assert "\x1b" not in done.stdout, "lines, though --unbuffered gives each task a terminal"


def test_wrong_data_fails_at_once(cluster: Cluster, tmp_path: Path) -> None:
    refused = cluster.run("bash", SUBMIT, "train", "--", "--data-dir", "/nowhere", "--weights", "none", check=False)
    assert refused.returncode == 1
    assert "error: --data-dir /nowhere: no such file or folder" in refused.stderr

    job = cluster.sbatch(rest(cluster), TRAIN, "--data-dir", "/nowhere", "--output-dir", tmp_path / "run")
    assert job.wait(60)["JobState"] == "FAILED"
    assert "error: --data-dir /nowhere: no such file or folder" in job.log


def test_missing_environment_fails_at_once(start: Callable[..., ClusterJob]) -> None:
    job = start(FLOWERS_VENV="/nowhere/venv")
    assert job.wait(60)["JobState"] == "FAILED"
    assert "/nowhere/venv/bin/python cannot run the jobs" in job.log
    assert "set FLOWERS_VENV" in job.log


def test_gpus_that_torch_does_not_see_fail_the_job(start: Callable[..., ClusterJob]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU that torch would see")
    job = start("--gpus-per-node=2")
    assert job.wait(60)["JobState"] == "FAILED"
    assert "Slurm gave 2 GPUs, torch sees 0, for 2 processes" in job.log


def test_staged_tar_is_unpacked_on_the_node_and_removed(
    start: Callable[..., ClusterJob], cluster: Cluster, checkout: Path, tmp_path: Path
) -> None:
    archive = checkout / "data" / "sample.tar"
    job = cluster.sbatch(
        rest(cluster), TRAIN, "--stage", "--data-dir", archive, "--output-dir", tmp_path / "run", *HEAD_ONLY
    )
    assert job.wait()["JobState"] == "COMPLETED", job.log
    copy = f"{cluster.folder}/local/flowers-0-{job.number}/sample"
    assert f"staging {archive} to {copy}" in job.log
    assert f"4 classes in {archive}, read from {copy}" in job.log
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data_dir"] == str(archive)
    assert list((cluster.folder / "local").glob("*/")) == []


def test_warned_before_the_time_limit(stories: dict[str, Story], reference: Path) -> None:
    future, run_dir = stories["warned_before_the_time_limit"]
    job = future.result()
    assert job.state == "COMPLETED", job.log
    assert int(job.facts()["Restarts"]) >= 1
    assert "of the time left" in job.log
    assert "s after the request to stop" in job.log
    assert job.log.count("start 1:") == 1, "the log was not appended"
    assert "resumed from step-" in job.log
    assert_same_run(run_dir, reference)


def test_node_without_power(stories: dict[str, Story], reference: Path) -> None:
    future, run_dir = stories["node_without_power"]
    job = future.result()
    assert job.state == "COMPLETED", job.log
    assert int(job.facts()["Restarts"]) >= 1
    assert job.log.count("4 x 2 processes") >= 2
    assert "resumed from step-" in job.log
    assert_same_run(run_dir, reference)
