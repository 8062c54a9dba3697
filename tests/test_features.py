"""Cached features: whole, and never those of another network, other images or other views."""

from pathlib import Path

import numpy as np
import pytest

from flowers.cli import parse
from flowers.config.find_lr import FindLrConfig
from flowers.config.train import TrainConfig
from flowers.errors import ProcessError, UsageError
from flowers.training.features import _join_parts
from jobs.find_lr import main as find_lr
from jobs.train import main as train

TINY = ["--model", "shufflenet_v2_x0_5", "--weights", "none", "--image-size", 32, "-j", 0, "--epochs", 1]


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


def write_part(folder: Path, rank: int, rows: list[int], views: list[int]) -> None:
    values = np.array([[10 * row + view] for row, view in zip(rows, views, strict=True)], np.float32)
    np.savez(folder / f"{rank}.npz", rows=np.array(rows), views=np.array(views), features=values)


def test_parts_become_one_array(tmp_path: Path) -> None:
    parts = tmp_path / "train.parts"
    parts.mkdir()
    write_part(parts, 0, [0, 2, 0, 2], [0, 0, 1, 1])
    write_part(parts, 1, [1, 1], [0, 1])
    _join_parts(parts, 2, (3, 2), tmp_path / "train.npy", {"a": 1})
    np.testing.assert_array_equal(np.load(tmp_path / "train.npy")[:, :, 0], [[0, 1], [10, 11], [20, 21]])
    assert not parts.exists()
    assert (tmp_path / "train.json").exists()


def test_what_a_process_did_not_bring_is_missed(tmp_path: Path) -> None:
    write_part(tmp_path, 0, [0, 2], [0, 0])
    with pytest.raises(
        ProcessError, match=r"1\.npz: cannot be read .*the run folder must be one that all machines share"
    ):
        _join_parts(tmp_path, 2, (3, 1), tmp_path / "train.npy", {})
    write_part(tmp_path, 1, [2], [0])
    with pytest.raises(ProcessError, match="1 of 3 features are missing"):
        _join_parts(tmp_path, 2, (3, 1), tmp_path / "train.npy", {})
    assert not (tmp_path / "train.npy").exists()
    assert not (tmp_path / "train.json").exists()


@pytest.mark.parametrize("size", ["--train-size", "--first-train-size"])
def test_all_views_have_the_size_of_evaluation(size: str, sample_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 48, but cached features are all of views of 32 pixels"):
        train(parse(TrainConfig, flags(sample_set, tmp_path / "run", size, 48, "--views", 2)))
    assert train(parse(TrainConfig, flags(sample_set, tmp_path / "run", size, 32, "--views", 2, "--no-report"))) == 0
    assert features(tmp_path / "run").shape[:2] == (32, 2)
