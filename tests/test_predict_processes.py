"""Prediction over real processes: any number of them, killed at any moment, gives the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_job
from jobs_in_processes import Job

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
PHOTOS = 480
FLAGS = ["--topk", 3, "--engine", "torch", "--precision", "float32", "-b", 8, "--shard-size", 8]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, and photos of which some are broken."""
    folder = tmp_path_factory.mktemp("predict")
    tiny_job.make_bundle(folder / "bundle")
    for index, path in enumerate(tiny_job.make_photos(folder / "photos", PHOTOS)):
        if index % 60 == 7:
            (folder / "photos" / path).write_bytes(b"\xff\xd8\xff broken" * (index % 3))
    return folder


@pytest.fixture
def start(place: Path, tmp_path: Path):
    """Start the job with these flags; processes that still run are killed at the end."""
    jobs: list[Job] = []

    def start(*flags: object, processes: int = 1, output: str = "out.csv") -> Job:
        command = ["--checkpoint", place / "bundle", "--input", place / "photos", "--output", tmp_path / output]
        jobs.append(Job("predict", [*command, *FLAGS, *flags], folder=tmp_path, processes=processes))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> bytes:
    """What one process writes that nobody disturbs."""
    command = ["--checkpoint", place / "bundle", "--input", place / "photos", "--output", place / "undisturbed.csv"]
    job = Job("predict", [*command, *FLAGS], folder=place)
    assert job.wait() == [0], job.output
    rows = (place / "undisturbed.csv").read_bytes()
    assert rows.count(b"\r\n") == PHOTOS + 1
    assert rows.count(b",error,") == 8
    return rows


def check_clean(folder: Path, *names: str) -> None:
    """Nothing but the outputs (and what the processes printed) is left."""
    found = {path.name for path in folder.iterdir() if not path.name.startswith("out-")}
    assert found == {"out.csv", "out.json", "out.stamps", *names}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_random_moments_and_finished(
    start, undisturbed: bytes, tmp_path: Path, processes: int, seed: int
) -> None:
    rng = random.Random(100 * processes + seed)
    for _ in range(2):
        job = start(processes=processes)
        time.sleep(rng.uniform(0, 1.5))  # a whole run takes about so many seconds
        job.kill()
    job = start(processes=processes)
    assert job.wait() == [0] * processes, job.output
    assert (tmp_path / "out.csv").read_bytes() == undisturbed
    check_clean(tmp_path)


def test_one_two_and_an_array_of_three_give_the_same_bytes(start, undisturbed: bytes, tmp_path: Path) -> None:
    job = start(processes=2, output="two.csv")
    assert job.wait() == [0, 0], job.output
    assert (tmp_path / "two.csv").read_bytes() == undisturbed
    tasks = [start("--shard", f"{index}/3", processes=1 + index % 2, output="array.csv") for index in range(3)]
    for task in tasks:  # all at once, as on a cluster: one makes the list, the last one joins
        assert set(task.wait()) == {0}, task.output
    merge = start("--merge", output="array.csv")
    assert merge.wait() == [0], merge.output
    assert (tmp_path / "array.csv").read_bytes() == undisturbed
    assert not (tmp_path / "array.csv.parts").exists()


def test_embeddings_survive_kills(start, place: Path, tmp_path: Path) -> None:
    job = start("--embeddings", place / "undisturbed.npy", output="undisturbed.csv")
    assert job.wait() == [0], job.output
    for enough in (1, 15):
        job = start("--embeddings", tmp_path / "found.npy", processes=2)
        wait_for(lambda enough=enough: len(parts_in(tmp_path)) >= enough)
        job.kill()
    assert not (tmp_path / "found.npy").exists()
    job = start("--embeddings", tmp_path / "found.npy", processes=2)
    assert job.wait() == [0, 0], job.output
    assert (tmp_path / "found.npy").read_bytes() == (place / "undisturbed.npy").read_bytes()
    check_clean(tmp_path, "found.npy", "undisturbed.csv", "undisturbed.json", "undisturbed.stamps")


def test_two_processes_share_the_work(start, place: Path, tmp_path: Path) -> None:
    job = start(processes=2)
    assert job.wait() == [0, 0], job.output
    logs = [(tmp_path / f"out-{rank}.txt").read_text() for rank in range(2)]
    done = int(logs[0].split(" images in ")[0].split("\n")[-1])
    assert PHOTOS // 4 < done < PHOTOS * 3 // 4, "each takes its share"
    assert logs[1] == "", "one process speaks"


def test_one_of_two_processes_dies_and_the_other_does_its_shards(start, undisturbed: bytes, tmp_path: Path) -> None:
    job = start(processes=2)
    parts = wait_for(lambda: parts_in(tmp_path))
    assert len(parts) < PHOTOS // 8
    job.processes[1].kill()
    assert job.wait() == [0, -signal.SIGKILL], job.output
    assert (tmp_path / "out.csv").read_bytes() == undisturbed
    check_clean(tmp_path)


def test_two_jobs_on_one_output_do_the_work_together(start, undisturbed: bytes, tmp_path: Path) -> None:
    jobs = [start() for _ in range(2)]
    for job in jobs:
        assert job.wait() == [0], job.output
    assert (tmp_path / "out.csv").read_bytes() == undisturbed
    check_clean(tmp_path)


def test_another_job_on_a_busy_output_is_refused_even_with_overwrite(start, undisturbed: bytes, tmp_path: Path) -> None:
    first = start()
    wait_for(lambda: parts_in(tmp_path))
    os.kill(first.processes[0].pid, signal.SIGSTOP)
    second = start("--min-prob", 0.9, "--overwrite")
    second_codes = second.wait()
    os.kill(first.processes[0].pid, signal.SIGCONT)
    assert second_codes == [1]
    assert "is at work on this output" in second.output
    assert first.wait() == [0]
    assert (tmp_path / "out.csv").read_bytes() == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_in_75_and_the_next_start_finishes(
    start, undisturbed: bytes, tmp_path: Path, number: int
) -> None:
    job = start(processes=2)
    wait_for(lambda: parts_in(tmp_path))
    job.signal(number)
    assert job.wait() == [75, 75], job.output
    assert "the same command resumes" in job.output
    job = start()
    assert job.wait() == [0], job.output
    assert "done before" in job.output
    assert (tmp_path / "out.csv").read_bytes() == undisturbed


def test_what_fails_on_the_main_process_ends_the_others_too(start, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("somebody else's")
    job = start(processes=2)
    assert job.wait() == [1, 1]
    assert job.output.count("error:") == 1
    assert "not known to be this job's" in job.output


def test_strict_is_3_over_several_processes(start, tmp_path: Path) -> None:
    assert start("--strict", processes=2).wait() == [3, 0]


def test_the_true_command_line_killed_and_finished(place: Path, undisturbed: bytes, tmp_path: Path) -> None:
    """Not forked from a prepared process, but as users start it: two processes under a launcher."""
    command = [sys.executable, "-m", "flowers.launch", "--num-processes", "2", "jobs/predict.py"]
    command += ["--checkpoint", place / "bundle", "--input", place / "photos", "--output", tmp_path / "out.csv"]
    command = list(map(str, [*command, *FLAGS]))
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: parts_in(tmp_path), timeout_s=120)
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert not (tmp_path / "out.csv").exists()
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "done before" in finished.stdout
    assert (tmp_path / "out.csv").read_bytes() == undisturbed
    check_clean(tmp_path)


def parts_in(folder: Path) -> list[Path]:
    """The finished parts, in order; the job renames and removes folders while we look."""
    try:
        return sorted((folder / "out.csv.parts").glob("*/parts/????????"))
    except FileNotFoundError:
        return []


def wait_for(look, timeout_s: float = 120):
    """What ``look`` finds, as soon as it finds something."""
    until_s = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < until_s, "it never came"
        time.sleep(0.005)
    return found
