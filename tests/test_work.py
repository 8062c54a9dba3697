"""Lists on disk, parts, claims, and which work a job finds, begins, joins or refuses."""

import itertools
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowers.errors import DataError, OutputError, StoppedError
from flowers.prediction import claims as claims_module
from flowers.prediction import file_list, parts
from flowers.prediction import work as work_module
from flowers.prediction import workers as workers_module
from flowers.prediction.claims import Claims
from flowers.prediction.file_list import Entry, FileList, write_list
from flowers.prediction.opening import find_work, open_work
from flowers.prediction.workers import Worker

SETTINGS = {"model": "a" * 64, "topk": 5}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker(tmp_path / "out.csv.parts") as worker:
        yield worker


def entries(*names: str) -> list[Entry]:
    return [Entry(name.encode()) for name in names]


# Lists


@pytest.mark.parametrize(("files", "shard_size"), [(0, 4), (1, 4), (8, 4), (9, 4), (1000, 7)])
def test_a_list_is_sorted_and_cut(tmp_path: Path, files: int, shard_size: int) -> None:
    wanted = [Entry(b"%05d \xff\n.jpg" % index, b"tar:1:2:3" if index % 2 else b"") for index in range(files)]
    shuffled = random.Random(0).sample(wanted, files)
    info = write_list(shuffled, tmp_path, lambda count: shard_size)
    assert info.files == files
    found = FileList(tmp_path)
    assert found.num_shards == -(-files // shard_size)
    shards_ = [found.shard(index) for index in range(found.num_shards)]
    assert list(itertools.chain(*shards_)) == wanted
    assert all(len(shard) == shard_size for shard in shards_[:-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.bin", "offsets.bin"]


def test_long_lists_are_sorted_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_list, "_RUN", 10)
    monkeypatch.setattr(file_list, "_CHUNK", 64)
    wanted = [Entry(b"%04d" % index, b"!reason %d" % index) for index in range(95)]
    write_list(random.Random(1).sample(wanted, 95), tmp_path, lambda count: 8)
    found = FileList(tmp_path)
    assert list(itertools.chain(*map(found.shard, range(found.num_shards)))) == wanted


def test_a_file_listed_twice_is_taken_once_and_a_tars_last_member_counts(tmp_path: Path) -> None:
    early, late = Entry(b"t.tar/a", b"tar:000005:%016d:9" % 512), Entry(b"t.tar/a", b"tar:000005:%016d:9" % 10240)
    info = write_list([late, *entries("b", "a", "b"), early], tmp_path, lambda count: 10)
    assert (info.files, info.duplicates) == (3, 2)
    assert FileList(tmp_path).shard(0) == [Entry(b"a"), Entry(b"b"), late]


def test_the_digest_is_of_the_files_not_of_their_order(tmp_path: Path) -> None:
    one, two, three = ((tmp_path / name) for name in "123")
    for folder in (one, two, three):
        folder.mkdir()
    digest = write_list(entries("a", "b"), one, lambda count: 1).digest
    assert write_list(entries("b", "a"), two, lambda count: 2).digest == digest
    assert write_list(entries("a", "c"), three, lambda count: 1).digest != digest


def test_the_shard_size_goes_by_files_and_batch() -> None:
    assert work_module.default_shard_size(1, 32) == 32
    assert work_module.default_shard_size(3000, 32) == 64
    assert work_module.default_shard_size(100_000_000, 32) == 2048


# Parts


def test_a_part_reads_back(tmp_path: Path) -> None:
    rows = b"row\r\n" * 1000
    parts.write_part(tmp_path, 12, rows, {"counts": {"ok": 1000}})
    assert b"".join(parts.read_rows(tmp_path, 12)) == rows
    assert parts.read_facts(tmp_path, 12)["counts"] == {"ok": 1000}
    assert parts.finished(tmp_path) == {12}


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-4], lambda data: b"X" + data[1:], lambda data: data[1:]]
)
def test_a_damaged_part_is_found_out_and_removed(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    parts.write_part(tmp_path, 3, b"some rows\r\n", {})
    path = tmp_path / parts.part_name(3)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OutputError, match="damaged"):
        b"".join(parts.read_rows(tmp_path, 3))
    assert parts.finished(tmp_path) == set()


def test_a_part_whose_folder_is_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        parts.write_part(tmp_path / "gone", 0, b"", {})


# Claims


def hold(folder: Path, ready, leave) -> None:
    """A process that takes a claim and lives until told."""
    with Worker(folder) as worker:
        (folder / "claims").mkdir(exist_ok=True)
        assert Claims(folder / "claims", worker).take("x")
        ready.set()
        leave.wait(30)


def test_a_claim_is_for_one_and_comes_back(worker: Worker) -> None:
    folder = worker.folder / "claims"
    folder.mkdir()
    with Worker(worker.folder) as other:
        mine, theirs = Claims(folder, worker), Claims(folder, other)
        assert mine.take("x")
        assert mine.take("x")
        assert not theirs.take("x")
        theirs.give_back("x")
        assert not theirs.take("x")
        mine.give_all_back()
        assert theirs.take("x")


@pytest.mark.processes
def test_a_dead_process_loses_its_claim_at_once_on_the_same_machine(worker: Worker) -> None:
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(worker.folder, ready, leave))
    process.start()
    assert ready.wait(30)
    claims = Claims(worker.folder / "claims", worker)
    assert not claims.take("x")
    process.kill()
    process.join()
    assert claims.take("x")
    worker.sweep()
    assert worker.others() == []


def test_a_process_elsewhere_loses_its_claim_after_a_minute_without_a_sign(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = worker.folder / "workers" / "them.json"
    sign.write_text(json.dumps({"token": "them", "host": "elsewhere", "beat": 1}))
    (worker.folder / "claims").mkdir()
    (worker.folder / "claims" / "x").write_text(json.dumps({"token": "them"}))
    claims = Claims(worker.folder / "claims", worker)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert not claims.take("x")
    clock[0] += workers_module.STALE_S - 1
    sign.write_text(json.dumps({"token": "them", "host": "elsewhere", "beat": 2}))
    assert not claims.take("x")
    clock[0] += workers_module.STALE_S - 1
    assert not claims.take("x")
    clock[0] += 2
    assert claims.take("x")


def test_claims_do_without_hard_links(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (worker.folder / "claims").mkdir()
    with Worker(worker.folder) as other:
        assert Claims(worker.folder / "claims", worker).take("x")
        assert not Claims(worker.folder / "claims", other).take("x")


def test_a_claim_that_was_never_filled_is_taken_over_soon(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    (worker.folder / "claims").mkdir()
    (worker.folder / "claims" / "x").touch()
    claims = Claims(worker.folder / "claims", worker)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert not claims.take("x")
    clock[0] += claims_module.EMPTY_S
    assert claims.take("x")


def test_a_pid_given_out_anew_is_another_process(worker: Worker) -> None:
    machine, pid, started, chance = worker.token.split("-")
    assert worker.is_alive(worker.token)
    assert worker.is_alive(f"{machine}-{pid}-{started}-another")
    assert not worker.is_alive(f"{machine}-{pid}-12-{chance}")
    assert not worker.is_alive(f"{machine}-x")


def test_what_dead_processes_left_is_swept(worker: Worker) -> None:
    machine, pid, _, _ = worker.token.split("-")
    dead = f"{machine}-{pid}-1-dead"
    (worker.folder / "claims").mkdir()
    for name in (f"workers/{dead}.json", f"workers/{dead}.tmp", f"new-{dead}/x", "gone-x/x", "claims/.listing.x"):
        (worker.folder / name).parent.mkdir(exist_ok=True)
        (worker.folder / name).write_text(json.dumps({"token": dead}))
    with Worker(worker.folder) as other:
        assert Claims(worker.folder / "claims", other).take("listing")
        worker.sweep()
        assert {path.name for path in worker.folder.rglob("*")} == {
            "workers", "claims", "listing", worker.path.name, other.path.name,
        }  # fmt: skip


def test_peers_are_those_of_the_launch(worker: Worker) -> None:
    with Worker(worker.folder) as peer, Worker(worker.folder) as stranger:
        for one, launch in ((worker, "here"), (peer, "here"), (stranger, "there")):
            one.join("job", launch)
        peer.done = 7
        peer.join("job", "here")
        assert [(info["token"], info["done"]) for info in worker.peers()] == [(peer.token, 7)]
        assert {info["token"] for info in worker.others()} == {peer.token, stranger.token}


def test_the_last_worker_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out.parts"
    with Worker(folder), Worker(folder):
        assert len(list((folder / "workers").iterdir())) == 2
    assert not folder.exists()


# Which work


@pytest.mark.parametrize("name", ["job.json", "list.bin", "offsets.bin"])
def test_work_that_a_power_cut_left_without_its_files_is_one_line(job: "Job", worker: Worker, name: str) -> None:
    work = job.open(worker)
    os.truncate(work.folder / name, 0)
    with pytest.raises(OutputError, match=f"{work.folder} is damaged: remove it"):
        job.open(worker)


def test_no_file_of_the_work_stays_open(job: "Job", worker: Worker) -> None:
    work = job.open(worker)
    work.files.shard(0)
    held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert not [path for path in held if path.startswith(str(work.folder))]


class Job:
    """What ``open_work`` needs, with an output that is never there unless the test says so."""

    def __init__(self, output: Path, names: tuple[str, ...] = ("a", "b", "c")):
        self.output, self.names, self.facts, self.listed = output, names, None, 0

    def open(self, worker: Worker, settings: dict = SETTINGS, **options) -> work_module.Work | dict:
        def list_files() -> Iterator[Entry]:
            self.listed += 1
            yield from entries(*self.names)

        options = {"shard_size": lambda files: 2, "finished": lambda: self.facts, "place": "/photos", **options}
        return open_work(self.output, settings, list_files, worker, **options)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "out.csv")


def test_work_is_begun_and_found_again(job: Job, worker: Worker) -> None:
    work = job.open(worker)
    assert (work.num_files, work.files.num_shards) == (3, 2)
    assert [work.size(0), work.size(1)] == [2, 1]
    parts.write_part(work.parts, 1, b"", {})
    again = job.open(worker)
    assert again.key == work.key
    assert parts.finished(again.parts) == {1}
    assert job.listed == 2, "the files are looked at again, they may have changed"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {**SETTINGS, "model": "b" * 64}}, "model: aaaaaaaaaaaa then, bbbbbbbbbbbb now"),
        ({"settings": {**SETTINGS, "topk": 1}}, "topk: 5 then, 1 now"),
        ({"names": ("a", "b", "c", "d")}, "number of files: 3 then, 4 now"),
        ({"names": ("a", "b", "d")}, "the files' names"),
        ({"shard_size": lambda files: 3}, "shard_size: 2 then, 3 now"),
        ({"look": lambda entry: b"another photo"}, "what is in the files"),
    ],
)
def test_work_of_another_job_is_refused_or_replaced(job: Job, worker: Worker, change: dict, said: str) -> None:
    before = job.open(worker)
    (before.parts / "00000000").touch()
    job.names = change.pop("names", job.names)
    with pytest.raises(OutputError, match=said) as caught:
        job.open(worker, **change)
    assert "--overwrite" in str(caught.value)
    assert before.folder.is_dir()
    after = job.open(worker, overwrite=True, **change)
    assert after.key != before.key
    assert not before.folder.exists()
    assert job.open(worker, overwrite=True, **change).key == after.key, "--overwrite goes on with equal work"


def test_work_without_results_makes_way(job: Job, worker: Worker) -> None:
    """What a job leaves whose --batch-size was too large, say: the smaller one needs no --overwrite."""
    before = job.open(worker)
    after = job.open(worker, {**SETTINGS, "batch_size": 1})
    assert after.key != before.key
    assert not before.folder.exists()


def test_a_finished_output_needs_no_work(job: Job, worker: Worker) -> None:
    work = job.open(worker)
    facts = {"settings": work.settings, "listed_by": None}
    work.remove()
    job.output.touch()
    job.facts = facts
    assert job.open(worker) == facts
    job.names = ("a",)
    with pytest.raises(OutputError, match="number of files: 3 then, 1 now"):
        job.open(worker)
    assert isinstance(job.open(worker, overwrite=True), work_module.Work)


def test_an_output_of_unknown_origin_is_not_replaced_unasked(job: Job, worker: Worker) -> None:
    job.output.write_text("precious")
    with pytest.raises(OutputError, match="not known to be this job's"):
        job.open(worker)
    job.open(worker, overwrite=True)
    assert job.output.read_text() == "precious", "until the new one is whole"
    assert isinstance(job.open(worker), work_module.Work), "what --overwrite began goes on without it"


def test_no_files_is_an_error_that_leaves_nothing(job: Job, worker: Worker) -> None:
    job.names = ()
    with pytest.raises(DataError, match="no images"):
        job.open(worker)
    assert sorted(path.name for path in worker.folder.iterdir()) == ["claims", "workers"]


def test_a_living_job_is_never_replaced(job: Job, worker: Worker) -> None:
    with Worker(worker.folder) as other:
        other.join(job.open(other).key, "launch")
        with pytest.raises(OutputError, match=f"process {os.getpid()} on .* is at work"):
            job.open(worker, {**SETTINGS, "topk": 1}, overwrite=True)


def test_an_array_lists_its_files_once(job: Job, worker: Worker) -> None:
    first = job.open(worker, array="17")
    job.names = ("a", "b", "c", "d")  # photos that arrive meanwhile are for the next array
    with Worker(worker.folder) as other:
        assert job.open(other, array="17").key == first.key
    assert job.listed == 1
    (first.parts / "00000000").touch()
    with pytest.raises(OutputError, match="number of files"):
        job.open(worker, array="18")
    facts = {"settings": first.settings, "listed_by": "17"}
    first.remove()
    job.facts = facts
    assert job.open(worker, array="17") == facts


def test_who_starts_while_another_lists_waits_for_its_list(job: Job, worker: Worker) -> None:
    with Worker(worker.folder) as other:
        (worker.folder / "claims").mkdir()
        listing = Claims(worker.folder / "claims", other)
        assert listing.take("listing")
        looks = []

        def look() -> None:
            looks.append(1)
            if len(looks) == 2:  # the other one's list appears
                listing.give_back("listing")
                job.open(other)
                listing.take("listing")

        work = job.open(worker, check_stop=look)
    assert isinstance(work, work_module.Work)
    assert job.listed == 1


def test_who_starts_while_another_lists_a_different_place_looks_for_himself(job: Job, worker: Worker) -> None:
    with Worker(worker.folder) as other:
        (worker.folder / "claims").mkdir()
        listing = Claims(worker.folder / "claims", other)
        assert listing.take("listing")

        def look() -> None:  # the other one's list appears
            listing.give_back("listing")
            (job.open(other).parts / "00000000").touch()

        elsewhere = {"place": "/other", "check_stop": look}
        with pytest.raises(OutputError, match="what is in the files"):
            job.open(worker, look=lambda entry: b"another photo", **elsewhere)
        assert isinstance(job.open(worker, **elsewhere), work_module.Work), "the same files, copied to another machine"


def test_waiting_ends_when_asked_to_stop(job: Job, worker: Worker) -> None:
    def stop() -> None:
        raise StoppedError("asked")

    with Worker(worker.folder) as other:
        (worker.folder / "claims").mkdir()
        assert Claims(worker.folder / "claims", other).take("listing")
        with pytest.raises(StoppedError):
            job.open(worker, check_stop=stop)


def test_the_first_engine_is_everyones(job: Job, worker: Worker) -> None:
    work = job.open(worker)
    assert work.engine() is None
    with Worker(worker.folder) as other:
        first, second = {"engine": "openvino", "precision": "bf16"}, {"engine": "torch", "precision": "float32"}
        assert work.settle_engine(first, worker) == first
        assert work.settle_engine(second, other) == first
    assert work.engine() == first
    assert not list(work.folder.glob("engine-*"))


def test_shards_are_claimed_in_order_once(job: Job, worker: Worker) -> None:
    job.names = tuple("abcdefghij")
    work = job.open(worker)
    parts.write_part(work.parts, 1, b"", {})
    with Worker(worker.folder) as other:
        theirs = Claims(work.folder / "claims", other)
        assert theirs.take(parts.part_name(3))
        mine = Claims(work.folder / "claims", worker)
        found = work.claimed(mine, [4, 3, 2, 1, 0])
        assert next(found) == (4, entries("i", "j"))
        parts.write_part(work.parts, 2, b"", {})  # finished by another process since
        assert [index for index, _ in found] == [0]


def test_merge_finds_the_work_without_the_files(job: Job, worker: Worker) -> None:
    with pytest.raises(OutputError, match="nothing to join"):
        find_work(worker, SETTINGS, lambda: None)
    work = job.open(worker)
    assert find_work(worker, SETTINGS, lambda: None).key == work.key
    with pytest.raises(OutputError, match="topk: 5 then, 1 now"):
        find_work(worker, {**SETTINGS, "topk": 1}, lambda: None)
    facts = {"settings": work.settings}
    work.remove()
    assert find_work(worker, SETTINGS, lambda: facts) == facts
