"""``--tune-head``: what is tried, what is taken, and that validation images have no part in it."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from jobs_in_processes import Job

from flowers.cli import parse
from flowers.config.train import TrainConfig
from flowers.errors import StoppedError, UsageError
from flowers.training.flags import check_flags
from flowers.training.head_search import WEIGHT_DECAYS, Trial, choose, larger_images, more_views, other_stages
from flowers.training.train import train

FLAGS = ("--model", "timm/test_resnet", "--weights", "none", "--image-size", "32", "-j", "0")


@pytest.fixture(scope="module")
def tuned(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    flags = ("--data-dir", sample_set, "--output-dir", "run", "--tune-head", *FLAGS)
    job = Job("train", flags, folder=folder)
    assert job.wait() == [0], job.output
    assert "tried for the head" in job.output
    return folder


def test_the_largest_within_one_standard_error_is_taken() -> None:
    trials = [
        Trial(0.1, 0.90, 0.50, 0.05),
        Trial(0.01, 0.91, 0.42, 0.05),
        Trial(0.001, 0.95, 0.40, 0.03),
        Trial(0.0001, 0.96, 0.45, 0.05),
    ]
    assert choose(trials).weight_decay == 0.01
    assert choose(trials[2:]).weight_decay == 0.001


def test_what_is_chosen_is_what_the_run_fits(tuned: Path, sample_set: Path) -> None:
    """The run is the one that was given the weight decay, with no trace of the search."""
    trials = [Trial(**trial) for trial in json.loads((tuned / "run" / "tuning.json").read_text())]
    assert tuple(trial.weight_decay for trial in trials) == WEIGHT_DECAYS
    config = yaml.safe_load((tuned / "run" / "config.yaml").read_text())
    assert config["weight_decay"] == choose(trials).weight_decay
    given = ("--optimizer", "lbfgs", "--weight-decay", config["weight_decay"])
    plain = Job("train", ("--data-dir", sample_set, "--output-dir", "plain", *given, *FLAGS), folder=tuned)
    assert plain.wait() == [0], plain.output
    for name in ("last/model.safetensors", "history.jsonl", "metrics.json"):
        assert (tuned / "run" / name).read_bytes() == (tuned / "plain" / name).read_bytes(), name


def test_the_same_command_again_finds_it_finished(tuned: Path, sample_set: Path) -> None:
    flags = ("--data-dir", sample_set, "--output-dir", "run", "--tune-head", *FLAGS)
    again = Job("train", flags, folder=tuned)
    assert again.wait() == [0], again.output
    assert "is finished already" in again.output
    assert "tried for the head" not in again.output


def test_a_search_is_stopped_within_a_fit(sample_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "flowers.training.train.tune_head",
        lambda stage, batches: _stopped(stage, batches),
    )
    flags = ["--data-dir", str(sample_set), "--output-dir", str(tmp_path / "run"), "--tune-head", *FLAGS]
    with pytest.raises(StoppedError, match="stopped while tuning the head"):
        train(parse(TrainConfig, flags))
    assert not (tmp_path / "run" / "stop").exists()
    assert not (tmp_path / "run" / "tuning.json").exists()


def test_a_wide_search_is_stopped_and_its_features_are_kept(
    sample_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop file is obeyed once; what a start has computed, the next one takes."""

    def stopped(stage, problem, weight_decays):
        raise StoppedError("stopped while tuning the head")

    monkeypatch.setattr("flowers.training.head_search.cross_validate", stopped)
    run = tmp_path / "run"
    flags = ["--data-dir", str(sample_set), "--output-dir", str(run), "--tune-head", "wide", "--no-report"]
    config = parse(TrainConfig, [*flags, *FLAGS])
    run.mkdir()
    with pytest.raises(StoppedError, match="stopped while tuning the head"):
        train(config)
    (run / "stop").touch()
    before = (run / "tuning" / "0" / "features" / "train.npy").stat()
    with pytest.raises(StoppedError):
        train(config)
    assert not (run / "stop").exists()
    assert (run / "tuning" / "0" / "features" / "train.npy").stat().st_mtime_ns == before.st_mtime_ns


def _stopped(stage, batches):
    from flowers import stopping
    from flowers.training.head_search import tune_head

    stopping.LOOK_EVERY_S, before = 0.0, stopping.LOOK_EVERY_S
    (stage.run_dir / "stop").touch()
    try:
        return tune_head(stage, batches)
    finally:
        stopping.LOOK_EVERY_S = before


def test_what_was_tried_is_in_the_report(tuned: Path) -> None:
    page = (tuned / "run" / "report.html").read_text(encoding="utf-8")
    table = re.search(r'<table [^>]*id="trials">(.*?)</table>', page, re.DOTALL)[1]
    trials = json.loads((tuned / "run" / "tuning.json").read_text())
    assert table.count("<tr>") == 1 + len(trials)
    for trial in trials:
        assert f">{trial['loss']:.4g}</td>" in table


def test_a_wide_search_takes_the_best_features_and_fits_them_as_if_they_had_been_given(
    sample_set: Path, tmp_path: Path
) -> None:
    """Of a network of random weights its stages tell more than its last features, and larger images are not tried."""
    flags = ("--data-dir", sample_set, "--weights", "none", "--image-size", "32", "-j", "0", "--no-report")
    command = (*flags, "--model", "timm/test_resnet", "--tune-head", "wide", "--output-dir", "run")
    wide = Job("train", command, folder=tmp_path)
    assert wide.wait() == [0], wide.output
    assert "2 more sets of features are tried" in wide.output
    trials = json.loads((tmp_path / "run" / "feature_tuning.json").read_text())
    first, other, views = trials
    assert (first["model"], first["image_size"], first["views"]) == ("timm/test_resnet", 32, 1)
    assert (other["model"], other["views"]) == ("timm/test_resnet+2", 1)
    assert views["views"] == 4
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    best = first if other["loss"] >= first["loss"] - other["loss_error"] else other
    best = best if views["loss"] >= best["loss"] - views["loss_error"] else views
    assert {name: config[name] for name in ("model", "image_size", "views")}.items() <= best.items()
    assert not (tmp_path / "run" / "tuning").exists()
    given = ("--model", config["model"], "--views", config["views"], "--tune-head", "--output-dir", "plain")
    plain = Job("train", (*flags, *given), folder=tmp_path)
    assert plain.wait() == [0], plain.output
    for name in ("last/model.safetensors", "history.jsonl", "metrics.json", "features/train.npy"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    again = Job("train", command, folder=tmp_path)
    assert again.wait() == [0], again.output
    assert "is finished already" in again.output


def test_what_is_given_is_not_searched() -> None:
    asked = parse(TrainConfig, ["--data-dir", "x", "--model", "efficientnet_lite0+1", "--tune-head", "wide"])
    found = dataclasses.replace(asked, image_size=224)
    assert other_stages(asked, found) == {}
    assert larger_images(asked, found) == {"image_size": 288}
    assert larger_images(found, found) == {}
    assert more_views(asked, found) == {"views": 4}
    assert more_views(dataclasses.replace(asked, views=2), found) == {}
    plain = dataclasses.replace(asked, model=None)
    assert other_stages(plain, found) == {"model": "efficientnet_lite0"}


@pytest.mark.parametrize("flags", [["--finetune", "full"], ["--no-feature-cache"]])
def test_where_it_has_no_place_it_is_refused(flags: list[str]) -> None:
    with pytest.raises(UsageError, match="--tune-head tries heads on cached features"):
        check_flags(parse(TrainConfig, ["--data-dir", "x", "--tune-head", *flags]))


def test_a_staged_run_does_not_choose_features() -> None:
    with pytest.raises(UsageError, match="--tune-head wide chooses what a head sees: use it with --finetune head"):
        check_flags(parse(TrainConfig, ["--data-dir", "x", "--tune-head", "wide", "--finetune", "staged"]))


def test_flags_about_small_steps_are_refused(sample_set: Path, tmp_path: Path) -> None:
    flags = ["--data-dir", str(sample_set), "--output-dir", str(tmp_path / "run"), "--tune-head", "--epochs", "4"]
    with pytest.raises(UsageError, match="--tune-head fits linear heads at once"):
        train(parse(TrainConfig, [*flags, *FLAGS]))
