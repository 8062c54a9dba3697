"""``--tune-head``: what is tried, what is taken, and that it is the run's own training that is tried."""

import json
import re
from pathlib import Path

import pytest
import yaml
from jobs_in_processes import Job, without
from traps import around_step

from flowers import stopping
from flowers.cli import parse
from flowers.config.train import TrainConfig
from flowers.errors import StoppedError, UsageError
from flowers.training.flags import TUNED, check_flags
from flowers.training.head_search import neighbours
from flowers.training.train import train
from flowers.training.trainer import AGREE_EVERY

FLAGS = ("--model", "shufflenet_v2_x0_5", "--weights", "none", "--image-size", "32", "--epochs", "4", "-j", "0",
         "--model-ema-decay", "0.9")  # fmt: skip


@pytest.fixture(scope="module")
def tuned(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    flags = ("--data-dir", sample_set, "--output-dir", "run", "--tune-head", *FLAGS)
    job = Job("train", flags, folder=folder)
    assert job.wait() == [0], job.output
    assert "tried for the head" in job.output
    return folder


def test_each_setting_is_tried_beside_the_best_so_far(tuned: Path) -> None:
    trials = json.loads((tuned / "run" / "tuning.json").read_text())
    best: dict = trials[0]
    assert [best[name] for name in TUNED] == [0.003, 0.1, 0.1, None]
    for trial in trials[1:]:
        assert sum(trial[name] != best[name] for name in TUNED) == 1
        if (trial["top1"], -trial["loss"]) > (best["top1"], -best["loss"]):
            best = trial
    config = yaml.safe_load((tuned / "run" / "config.yaml").read_text())
    assert [config[name] for name in TUNED] == [best[name] for name in TUNED]


def test_the_winner_is_what_the_run_then_trains(tuned: Path, sample_set: Path) -> None:
    """The tried figures are those of a run that was given the settings, with no trace of the search."""
    config = yaml.safe_load((tuned / "run" / "config.yaml").read_text())
    settings = []
    for name in TUNED:
        if config[name] is not None:
            settings += [f"--{name.replace('_', '-')}", config[name]]
    plain = Job("train", ("--data-dir", sample_set, "--output-dir", "plain", *settings, *FLAGS), folder=tuned)
    assert plain.wait() == [0], plain.output
    for name in ("last/model.safetensors", "best/model.safetensors", "history.jsonl", "metrics.json"):
        assert (tuned / "run" / name).read_bytes() == (tuned / "plain" / name).read_bytes(), name
    last = json.loads((tuned / "plain" / "history.jsonl").read_text().splitlines()[-2])
    assert last["event"] == "valid"
    trials = json.loads((tuned / "run" / "tuning.json").read_text())
    winner = next(trial for trial in trials if all(trial[name] == config[name] for name in TUNED))
    assert (winner["top1"], winner["loss"]) == (last["top1"], last["loss"])


def test_the_same_command_again_finds_it_finished(tuned: Path, sample_set: Path) -> None:
    flags = ("--data-dir", sample_set, "--output-dir", "run", "--tune-head", *FLAGS)
    again = Job("train", flags, folder=tuned)
    assert again.wait() == [0], again.output
    assert "is finished already" in again.output
    assert "tried for the head" not in again.output


def test_a_try_is_stopped_within_some_steps(sample_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at its end: of a large data set one takes longer than a cluster waits."""
    steps = []

    def stop(*arguments: object) -> None:
        steps.append(arguments)
        (tmp_path / "run" / "stop").touch()

    around_step(after=stop, into=monkeypatch.setattr)
    monkeypatch.setattr(stopping, "LOOK_EVERY_S", 0.0)
    flags = [
        "--data-dir",
        str(sample_set),
        "--output-dir",
        str(tmp_path / "run"),
        "--tune-head",
        *without(FLAGS, "--epochs"),
    ]
    with pytest.raises(StoppedError, match="stopped while tuning the head"):
        train(parse(TrainConfig, [*flags, "--epochs", "50"]))
    assert len(steps) == AGREE_EVERY


def test_neighbours_leave_out_the_present_value() -> None:
    config = TrainConfig(data_dir=Path("data"), lr=0.003)
    assert neighbours("lr", config, 1280) == [0.001, 0.009]
    assert neighbours("label_smoothing", config, 1280) == [0.0, 0.2]
    assert neighbours("hidden", config, 64) == [64]


def test_what_was_tried_is_in_the_report(tuned: Path) -> None:
    page = (tuned / "run" / "report.html").read_text(encoding="utf-8")
    table = re.search(r'<table [^>]*id="trials">(.*?)</table>', page, re.DOTALL)[1]
    trials = json.loads((tuned / "run" / "tuning.json").read_text())
    assert table.count("<tr>") == 1 + len(trials)
    for trial in trials:
        assert f">{trial['loss']:.4g}</td>" in table


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--finetune", "full"], "--tune-head tries heads on cached features"),
        (["--no-feature-cache"], "--tune-head tries heads on cached features"),
        (["--lr", "auto"], "--tune-head looks for the learning rate too: leave --lr auto out"),
    ],
)
def test_where_it_has_no_place_it_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_flags(parse(TrainConfig, ["--data-dir", "x", "--tune-head", *flags]))
    check_flags(parse(TrainConfig, ["--data-dir", "x", "--tune-head", "--finetune", "staged", "--lr", "auto"]))
