"""Cached features: whole, and never those of another network, other images or other views."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jobs_in_processes import Job
from traps import write_down_pieces

from flowers import distributed
from flowers.cli import parse
from flowers.config.find_lr import FindLrConfig
from flowers.config.train import TrainConfig
from flowers.errors import ProcessError, UsageError
from flowers.files import remove
from flowers.training.features import Piece, _join, _whole_pieces, pieces_of
from jobs.find_lr import main as find_lr
from jobs.train import main as train

TINY = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 32, "-j", 0, "--epochs", 1]


def flags(data_dir: Path, run_dir: Path, *more: object) -> list[str]:
    words = [*TINY, "--data-dir", data_dir, "--output-dir", run_dir, *more]
    return [str(word) for word in words]


def features(run_dir: Path, split: str = "train") -> np.ndarray:
    return np.load(run_dir / "features" / f"{split}.npy")


def test_features_of_another_network_are_not_taken(sample_set: Path, tmp_path: Path) -> None:
    """Of one name and --weights none, but of another seed: a search came first, and left its features."""
    seeds = [["--no-report", "--seed", seed] for seed in (0, 1)]
    assert find_lr(parse(FindLrConfig, flags(sample_set, tmp_path / "run", *seeds[0], "--steps", 10))) == 0
    first = features(tmp_path / "run")
    assert train(parse(TrainConfig, flags(sample_set, tmp_path / "run", *seeds[1]))) == 0
    assert train(parse(TrainConfig, flags(sample_set, tmp_path / "fresh", *seeds[1]))) == 0
    assert not np.array_equal(features(tmp_path / "run"), first)
    assert np.array_equal(features(tmp_path / "run"), features(tmp_path / "fresh"))


def test_features_of_an_image_that_was_replaced_are_not_taken(sample_set: Path, tmp_path: Path) -> None:
    """By another one of its name, after a search or a start that failed left features."""
    data, run_dir = tmp_path / "data", tmp_path / "run"
    shutil.copytree(sample_set, data)
    assert find_lr(parse(FindLrConfig, flags(data, run_dir, "--steps", 10))) == 0
    before = features(run_dir)
    first, *_, last = sorted((data / "train").rglob("*.jpg"))
    shutil.copy(last, first)
    assert train(parse(TrainConfig, flags(data, run_dir, "--no-report"))) == 0
    assert not np.array_equal(features(run_dir)[0], before[0])


@pytest.mark.parametrize("num_images", [1, 4, 5, 818, 70_000])
@pytest.mark.parametrize("views", [1, 3])
def test_pieces_hold_every_view_once(num_images: int, views: int) -> None:
    seen = [
        (draw.epoch, draw.index)
        for piece in pieces_of(num_images, views, batch_size=4)
        for draws in piece.batches(4)
        for draw in draws
        if draw.weight
    ]
    assert sorted(seen) == [(view, index) for view in range(views) for index in range(num_images)]


def write_pieces(folder: Path, pieces: list[Piece]) -> None:
    folder.mkdir(exist_ok=True)
    for piece in pieces:
        values = [[10 * row + piece.view] for row in range(piece.first, piece.end)]
        np.savez(folder / piece.file_name, features=np.array(values, np.float32))


def test_pieces_become_one_array(tmp_path: Path) -> None:
    pieces = pieces_of(5, 2, batch_size=2)
    write_pieces(tmp_path / "train.parts", pieces)
    _join(pieces, tmp_path / "train.parts", tmp_path / "train.npy", {"a": 1})
    joined = np.load(tmp_path / "train.npy", mmap_mode="r")
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined[:, :, 0], [[0, 1], [10, 11], [20, 21], [30, 31], [40, 41]])
    assert not (tmp_path / "train.parts").exists()
    assert (tmp_path / "train.json").exists()


def test_what_a_process_did_not_bring_is_missed(tmp_path: Path) -> None:
    pieces = pieces_of(5, 1, batch_size=2)
    write_pieces(tmp_path / "train.parts", pieces[:-1])
    with pytest.raises(ProcessError, match=r"0-4-5\.npz: cannot be read .*must be one that all machines share"):
        _join(pieces, tmp_path / "train.parts", tmp_path / "train.npy", {})
    assert not (tmp_path / "train.npy").exists()
    assert not (tmp_path / "train.json").exists()


def test_no_piece_is_asked_for_before_it_is_there(
    sample_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of NFS would remember that another machine's was missing, and miss it when all are joined."""
    asked: list[Path] = []
    stat = os.stat

    def write_down(path: object, **options: object) -> os.stat_result:
        try:
            return stat(path, **options)
        except FileNotFoundError:
            asked.append(Path(os.fsdecode(path)))
            raise

    monkeypatch.setattr(os, "stat", write_down)
    assert train(parse(TrainConfig, flags(sample_set, tmp_path / "run", "--no-report"))) == 0
    assert tmp_path / "run" / "features" / "train.npy" in asked
    assert not [path for path in asked if path.parent.suffix == ".parts" and path.suffix == ".npz"]


def test_parts_that_a_killed_start_had_joined_already_go(sample_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(parse(TrainConfig, flags(sample_set, run, "--no-report"))) == 0
    (run / "features" / "valid.parts").mkdir()
    for path in set(run.iterdir()) - {run / "features"}:
        remove(path)
    assert train(parse(TrainConfig, flags(sample_set, run, "--no-report"))) == 0
    assert not list(run.rglob("*.parts"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 0x10
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def whole(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and its features."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert train(parse(TrainConfig, flags(sample_set, run_dir, "--no-report"))) == 0
    return run_dir


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [("train.npy", flip, True), ("valid.npy", cut, True), ("test.npy", Path.unlink, True), ("train.json", cut, False)],
)
def test_damaged_features_are_computed_again(
    name: str, damage: Callable, said: bool, whole: Path, sample_set: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    run_dir = tmp_path / "run"
    shutil.copytree(whole / "features", run_dir / "features")
    damage(run_dir / "features" / name)
    capsys.readouterr()
    assert train(parse(TrainConfig, flags(sample_set, run_dir, "--no-report"))) == 0
    assert ("is damaged or gone: its features are computed again" in capsys.readouterr().err) == said
    weights = "last/model.safetensors"
    assert (run_dir / weights).read_bytes() == (whole / weights).read_bytes()


def test_damaged_pieces_are_missing_pieces(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pieces = pieces_of(9, 1, batch_size=2)
    write_pieces(tmp_path, pieces)
    names = [piece.file_name for piece in pieces]
    flip(tmp_path / names[0])
    cut(tmp_path / names[1])
    (tmp_path / names[2]).write_bytes(b"")
    (tmp_path / names[3]).unlink()
    (tmp_path / names[3]).mkdir()
    assert _whole_pieces(tmp_path) == set(names[4:])
    assert sorted(path.name for path in tmp_path.iterdir()) == names[4:]
    assert "4 damaged files of features are computed again" in capsys.readouterr().err


def test_ranks_wait_for_one_that_joins_a_large_set(
    sample_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, timeout_s: float = 600.0, **__: object) -> None:  # NCCL's own
        raise ProcessError(f"waits {timeout_s} s")

    monkeypatch.setattr(distributed, "start", start)
    with pytest.raises(ProcessError, match=re.escape("waits 7200.0 s")):
        train(parse(TrainConfig, flags(sample_set, tmp_path / "run")))


@pytest.mark.parametrize(("before", "after", "number"), [(1, 2, signal.SIGKILL), (2, 1, signal.SIGTERM)])
def test_a_start_that_ended_early_leaves_what_it_did(
    before: int, after: int, number: signal.Signals, sample_set: Path, tmp_path: Path
) -> None:
    """Killed or stopped between two pieces; the next start has another number of processes."""

    def start(run_dir: Path, processes: int, signal_at: int | None = None) -> tuple[Job, list[str]]:
        for left in tmp_path.glob("written-*.txt"):
            left.unlink()
        words = [*flags(sample_set, run_dir, "--no-report"), "--batch-size", 4]
        arguments = (signal_at, number)
        job = Job("train", words, folder=tmp_path, processes=processes, before=write_down_pieces, arguments=arguments)
        if signal_at is not None and number == signal.SIGKILL:
            job.processes[0].join(60)
            job.kill()
        codes = job.wait()
        if signal_at is None:
            assert codes == [0] * processes, job.output
        elif number == signal.SIGTERM:
            assert codes == [75] * processes, job.output
        return job, [name for file in tmp_path.glob("written-*.txt") for name in file.read_text().splitlines()]

    _, everything = start(tmp_path / "whole", 1)
    job, first = start(tmp_path / "run", before, signal_at=2)
    if number == signal.SIGTERM:
        assert re.search(r"stopped before the features of (train|valid)/ were complete \(SIGTERM\)", job.output)
    folder = tmp_path / "run" / "features"
    whole = {path.stem for path in folder.glob("*.npy")}
    kept = {name for name in first if (folder / name).exists() or name.partition(".")[0] in whole}
    assert kept
    _, second = start(tmp_path / "run", after)
    assert not kept & set(second)
    assert kept | set(second) == set(everything)
    for split in ("train", "valid", "test"):
        assert np.array_equal(features(tmp_path / "run", split), features(tmp_path / "whole", split))


@pytest.mark.parametrize("size", ["--train-size", "--first-train-size"])
def test_all_views_have_the_size_of_evaluation(size: str, sample_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 48, but cached features are all of views of 32 pixels"):
        train(parse(TrainConfig, flags(sample_set, tmp_path / "run", size, 48, "--views", 2)))
    assert train(parse(TrainConfig, flags(sample_set, tmp_path / "run", size, 32, "--views", 2, "--no-report"))) == 0
    assert features(tmp_path / "run").shape[:2] == (32, 2)
