"""Lists on disk, parts, and which work a job finds, begins, joins or refuses."""

import errno
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from flowers.data.archives import Entry
from flowers.distributed import Place, take_place
from flowers.errors import DataError, InUseError, OutputError
from flowers.locks import share
from flowers.prediction import file_list, parts
from flowers.prediction import work as work_module
from flowers.prediction.file_list import FileList, write_list
from flowers.prediction.shard_loop import shards_for
from flowers.prediction.work import LIST_ONLY, Work, combined_digest, key_of, lock_of, write_sealed
from flowers.prediction.work_folder import Listing, WorkFolder, default_shard_size, remove_left_over

SETTINGS = {"model": "a" * 64, "topk": 5}


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


def test_of_a_path_listed_twice_the_last_entry_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link in a tar comes after the member that it replaces, and may lead to an earlier one; also across runs."""
    early, late = Entry(b"t.tar/a", b"tar:000005:%016d:9" % 10240), Entry(b"t.tar/a", b"tar:000005:%016d:9" % 512)
    for run in (100, 2):
        monkeypatch.setattr(file_list, "_RUN", run)
        info = write_list([early, *entries("b", "a", "b"), late], tmp_path, lambda count: 10)
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
    assert default_shard_size(1, 32) == 32
    assert default_shard_size(3000, 32) == 64
    assert default_shard_size(100_000_000, 32) == 2048


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


# Which work


class Job:
    """A job over some names, with an output that is never there unless the test says so."""

    def __init__(self, output: Path, names: tuple[str, ...] = ("a", "b", "c")):
        self.output, self.names, self.facts, self.listed = output, names, None, 0
        self.root = output.parent / "photos"
        self.root.mkdir()

    def folder(self, settings: dict = SETTINGS) -> WorkFolder:
        return WorkFolder(self.output, settings, lambda: self.facts)

    def open(self, settings: dict = SETTINGS, **options) -> Work | dict:
        def list_files() -> Iterator[Entry]:
            self.listed += 1
            yield from entries(*self.names)

        of_list = {name: options.pop(name) for name in ("shard_size", "listed_by") if name in options}
        listing = Listing(list_files(), os.fsencode(self.root), **{"shard_size": 2, **of_list})
        return self.folder(settings).begin(listing, lambda: None, **options)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "out.csv")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["job.json", "list.bin", "offsets.bin", "engine.json"])
@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, 0), os.unlink], ids=["flip", "empty", "gone"])
def test_damaged_files_of_the_work_are_made_anew(job: Job, name: str, damage: Callable[[Path], None]) -> None:
    work = job.open()
    engine = work.settle_engine({"engine": "torch", "precision": "float32"})
    intact = {path.name: path.read_bytes() for path in work.folder.glob("*.*")}
    damage(work.folder / name)
    again = job.open()
    assert again.settle_engine(engine) == engine
    assert {path.name: path.read_bytes() for path in work.folder.glob("*.*")} == intact


def test_a_list_that_is_damaged_while_it_is_used_is_one_line_and_goes(job: Job) -> None:
    work = job.open()
    flip(work.folder / "list.bin")
    with pytest.raises(OutputError, match="list.bin was damaged, and is removed"):
        list(work.missing(range(2)))
    assert [shard for shard, _ in job.open().missing(range(2))] == [0, 1]


def test_a_planted_folder_names_nothing_that_is_removed(job: Job, tmp_path: Path) -> None:
    victim = tmp_path / "precious.txt"
    victim.write_text("keep me")
    planted = tmp_path / "out.csv.parts" / "abcdefabcdef"
    (planted / "parts").mkdir(parents=True)
    (planted / "unfinished").write_bytes(os.fsencode(victim))
    (tmp_path / "out.csv.parts" / "abcdefabcde0").symlink_to(tmp_path / "photos")
    assert isinstance(job.open(), Work)
    assert victim.read_text() == "keep me"
    assert job.root.is_dir()


def test_no_file_of_the_work_stays_open(job: Job) -> None:
    work = job.open()
    work.shard(0)
    held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert not [path for path in held if path.startswith(str(work.folder))]


def test_work_is_begun_and_found_again(job: Job) -> None:
    work = job.open()
    assert (work.num_files, work.files.num_shards) == (3, 2)
    assert [work.size(0), work.size(1)] == [2, 1]
    parts.write_part(work.parts, 1, b"", {})
    again = job.open()
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
        ({"shard_size": 3}, "shard_size: 2 then, 3 now"),
        ({"photo": b"another photo"}, "contents of the files"),
    ],
)
def test_work_of_another_job_is_refused_or_replaced(job: Job, change: dict, said: str) -> None:
    change = dict(change)
    (job.root / "a").write_bytes(b"a photo")
    before = job.open()
    (before.parts / "00000000").touch()
    job.names = change.pop("names", job.names)
    if photo := change.pop("photo", None):
        (job.root / "a").write_bytes(photo)
    with pytest.raises(OutputError, match=said) as caught:
        job.open(**change)
    assert "--overwrite" in str(caught.value)
    assert before.folder.is_dir()
    after = job.open(overwrite=True, **change)
    assert not parts.finished(after.parts), "nothing is left of the other job"
    assert job.open(overwrite=True, **change).key == after.key, "--overwrite resumes equal work"


def test_a_file_that_becomes_readable_or_goes_is_no_other_job(job: Job) -> None:
    (job.root / "b").write_bytes(b"a photo")
    before = job.open()
    (before.parts / "00000000").touch()
    (job.root / "a").write_bytes(b"restored")
    assert job.open().key == before.key
    (job.root / "b").unlink()
    assert job.open().key == before.key
    assert parts.finished(before.parts) == {0}


def test_work_and_tables_of_earlier_versions_are_known(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """They kept one digest of all samples among the settings."""
    (job.root / "a").write_bytes(b"a photo")
    new = job.open()
    sealed = {"settings": {**new.settings, "contents": combined_digest(new.contents)}, "listed_by": None}
    new.folder.rename(earlier := new.folder.with_name(key_of(sealed["settings"])))
    write_sealed(earlier / "job.json", sealed)
    (earlier / "parts" / "00000000").touch()
    assert job.open().folder == earlier
    job.facts = sealed
    Work(earlier).remove()
    job.output.touch()
    assert job.open() == sealed
    (job.root / "a").write_bytes(b"another photo")
    with pytest.raises(OutputError, match="contents of the files have changed.*--update"):
        job.open()


def test_work_without_results_makes_way(job: Job) -> None:
    """What a job leaves whose --batch-size was too large, say: the smaller one needs no --overwrite."""
    before = job.open()
    after = job.open({**SETTINGS, "batch_size": 1})
    assert after.key != before.key
    assert not before.folder.exists()


def test_a_finished_output_needs_no_work(job: Job) -> None:
    work = job.open()
    facts = {"settings": work.settings, "contents": work.contents, "listed_by": None}
    work.remove()
    job.output.touch()
    job.facts = facts
    assert job.open() == facts
    job.names = ("a",)
    with pytest.raises(OutputError, match="number of files: 3 then, 1 now"):
        job.open()
    assert isinstance(job.open(overwrite=True), Work)


def test_an_output_of_unknown_origin_is_not_replaced_unasked(job: Job) -> None:
    job.output.write_text("precious")
    with pytest.raises(OutputError, match="not known to be this job's"):
        job.open()
    job.open(overwrite=True)
    assert job.output.read_text() == "precious", "until the new one is whole"
    assert isinstance(job.open(), Work), "what --overwrite began is resumed without it"


def test_no_files_is_an_error_that_leaves_nothing(job: Job) -> None:
    job.names = ()
    with pytest.raises(DataError, match="no images"):
        job.open()
    remove_left_over(job.folder().path)
    assert not job.folder().path.exists()


def test_a_living_job_is_never_replaced(job: Job) -> None:
    work = job.open()
    with share(lock_of(work.folder)), share(lock_of(work.folder)):
        with pytest.raises(InUseError, match=f"in use by process {os.getpid()} on .* is at work on this output"):
            job.open({**SETTINGS, "topk": 1}, overwrite=True)
        assert job.open().key == work.key, "an equal one joins it"
    assert job.open({**SETTINGS, "topk": 1}, overwrite=True).key != work.key


def test_what_killed_starts_left_goes_and_what_living_ones_have_stays(job: Job) -> None:
    parent = job.folder().path
    for name in ("new-dead", "gone-dead", "new-alive"):
        (parent / name / "unnamed").mkdir(parents=True)
    (parent / "0123456789ab.lock").touch()
    with share(parent / "new-alive.lock"):
        job.open().remove()
        remove_left_over(parent)
        assert {path.name for path in parent.iterdir()} == {"new-alive", "new-alive.lock", "turn.lock"}
    remove_left_over(parent)
    assert not parent.exists()


@pytest.mark.parametrize("listed_by", ["17", LIST_ONLY])
def test_an_array_lists_its_files_once(job: Job, listed_by: str) -> None:
    root = os.fsencode(job.root)
    (job.root / "a").write_bytes(b"a photo")
    assert job.folder().find_listed("17", root) is None
    first = job.open(listed_by=listed_by)
    assert job.folder().find_listed("17", root).key == first.key
    assert job.folder({**SETTINGS, "topk": 1}).find_listed("17", root) is None
    (job.root / "a").write_bytes(b"a photo that another machine does not have")
    with pytest.raises(OutputError, match="contents of the files"):
        job.folder().find_listed("17", root)
    job.facts = {"settings": first.settings, "contents": first.contents, "listed_by": "17"}
    first.remove()
    assert job.folder().find_listed("17", root) == job.facts


def test_a_table_that_goes_while_it_is_updated_is_one_line(job: Job) -> None:
    with pytest.raises(OutputError, match=r"out\.csv was there before, and is not known to be this job's"):
        job.open(keep=lambda work: False)


def test_the_first_engine_is_everyones(job: Job) -> None:
    work = job.open()
    assert work.engine() is None
    first, second = {"engine": "openvino", "precision": "bf16"}, {"engine": "torch", "precision": "float32"}
    assert work.settle_engine(first) == first
    assert work.settle_engine(second) == first
    assert work.engine() == first
    assert not list(work.folder.glob("engine-*"))


def test_an_engine_that_is_gone_or_hard_to_read_is_no_reason_to_start_over(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, engine = job.open(), {"engine": "torch", "precision": "float32"}
    work.settle_engine(engine)
    found = json.loads((work.folder / "engine.json").read_text())
    with monkeypatch.context() as patched:
        patched.setattr(work_module, "read_json", Mock(side_effect=[OSError(errno.ESTALE, "stale"), found]))
        assert work.engine() == engine
    for index in range(2):
        parts.write_part(work.parts, index, b"", {"job": work.key, "engine": engine})
    (work.folder / "engine.json").unlink()
    list(work.part_facts())
    assert work.engine() == engine


def test_parts_of_two_engines_are_not_joined(job: Job) -> None:
    work = job.open()
    mine, other = ({"engine": name, "precision": "float32"} for name in ("torch", "openvino"))
    work.settle_engine(mine)
    for index, engine in enumerate((mine, other)):
        parts.write_part(work.parts, index, b"", {"job": work.key, "engine": engine})
    with pytest.raises(OutputError, match="00000001 was made with engine .*openvino.*, the job has .*torch"):
        list(work.part_facts())


def test_own_shards_come_first_then_what_is_left_from_the_end(job: Job) -> None:
    job.names = tuple("abcdefghij")
    work = job.open()
    orders = [[index for index, _ in shards_for(work, range(5), Place(rank, 2, None))] for rank in range(2)]
    assert orders == [[0, 2, 4, 3, 1], [1, 3, 2, 0, 4]]
    found = shards_for(work, range(5), Place(0, 2, None))
    assert next(found) == (0, entries("a", "b"))
    for index in (1, 2):
        parts.write_part(work.parts, index, b"", {})  # finished by another process since
    assert [index for index, _ in found] == [4, 3]


def test_a_process_finds_its_place_under_srun_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "FLOWERS_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert take_place(60)[:2] == (0, 1), "a shell of salloc or sbatch"
    step = {"JOB_ID": "5", "STEP_ID": "2", "STEP_NUM_TASKS": "8", "PROCID": "3", "LOCALID": "1"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("RANK", "")  # so that it is put back
    assert take_place(60)[:2] == (3, 8)
    assert take_place(60).step == "5.2"


def test_merge_finds_the_work_without_the_files(job: Job) -> None:
    with pytest.raises(OutputError, match="nothing to join"):
        job.folder().find_only()
    work = job.open()
    assert job.folder().find_only().key == work.key
    with pytest.raises(OutputError, match="topk: 5 then, 1 now"):
        job.folder({**SETTINGS, "topk": 1}).find_only()
    job.facts = {"settings": work.settings}
    work.remove()
    assert job.folder().find_only() == job.facts
