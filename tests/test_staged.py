"""Runs of several stages: a head, the network, and a new head fitted to it."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from jobs_in_processes import Job
from test_resume import result
from torch import nn
from traps import die_at_the_end, die_in_step

from flowers import distributed
from flowers.api import _forget_launch
from flowers.cli import parse
from flowers.config.train import TrainConfig
from flowers.errors import CheckpointError, UsageError
from flowers.models.bundle import load_bundle, save_bundle
from flowers.models.weights import mean_of
from flowers.training.flags import check_flags
from flowers.training.train import train, warn_of_better_network

NETWORK = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", "64", "-j", "0"]


def train_to(folder: Path, *flags: object) -> None:
    assert train(parse(TrainConfig, [str(word) for word in ("--output-dir", folder, *flags)])) == 0


def test_the_head_is_what_flags_of_its_own_would_give(sample_set: Path, tmp_path: Path) -> None:
    """The network is that of a run without it, and the head is fitted to the mean of that and what it began with."""
    flags = ["--data-dir", sample_set, "--model", "timm/test_resnet", "--image-size", 64, "-j", 0]
    flags += ["--mixed-precision", "no"]
    full = [*flags, "--finetune", "full", "--epochs", 1, "--label-smoothing", 0.2]
    train_to(tmp_path / "start", *full, "--weights", "none", "--seed", 1)
    full += ["--weights", tmp_path / "start"]
    train_to(tmp_path / "run", *full, "--refit-head")
    train_to(tmp_path / "plain", *full, "--no-calibrate", "--no-report")
    network, plain = (load_bundle(tmp_path / folder) for folder in ("run/network", "plain"))
    assert all(torch.equal(tensor, network.state_dict[name]) for name, tensor in plain.state_dict.items())
    state = mean_of([load_bundle(tmp_path / "start").state_dict, plain.state_dict])
    save_bundle(dataclasses.replace(plain, state_dict=state), tmp_path / "mean")
    train_to(tmp_path / "own", *flags, "--weights", tmp_path / "mean", "--views", 4)
    run, own = (load_bundle(tmp_path / folder) for folder in ("run", "own"))
    assert all(torch.equal(tensor, run.state_dict[name]) for name, tensor in own.state_dict.items())
    assert run.metrics == own.metrics
    first = next(name for name, tensor in plain.state_dict.items() if tensor.ndim == 4)
    assert not torch.equal(run.state_dict[first], plain.state_dict[first])
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "network" / "report.html").exists()


def test_it_is_fitted_and_measured_in_float32_whatever_the_network_was_trained_in(
    request: pytest.FixtureRequest,
) -> None:
    _forget_launch()
    request.addfinalizer(_forget_launch)
    accelerator = distributed.start("bf16")
    assert distributed.precision_of(accelerator) == "bf16"
    inputs, layer = torch.randn(2, 4), nn.Linear(4, 3)
    expected = layer(inputs)
    assert not torch.equal(accelerator.prepare_model(copy.deepcopy(layer))(inputs), expected)
    distributed.compute_in_float32(accelerator)
    assert distributed.precision_of(accelerator) == "no"
    assert torch.equal(accelerator.prepare_model(layer)(inputs), expected)


def test_weights_that_began_at_random_are_not_averaged(sample_set: Path, tmp_path: Path) -> None:
    flags = ["--data-dir", sample_set, *NETWORK, "--finetune", "full", "--epochs", 1, "--mixed-precision", "no"]
    train_to(tmp_path / "run", *flags, "--refit-head")
    run, network = (load_bundle(tmp_path / folder).state_dict for folder in ("run", "run/network"))
    assert all(torch.equal(run[name], tensor) for name, tensor in network.items() if name.startswith("backbone."))
    assert not torch.equal(run["head.output.weight"], network["head.output.weight"])


def test_a_head_that_is_worse_than_the_networks_own_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = parse(TrainConfig, ["--data-dir", "x", "--output-dir", str(tmp_path)])
    (tmp_path / "network").mkdir()
    for top1, is_told in ((0.9, False), (0.8, True)):
        (tmp_path / "metrics.json").write_text(json.dumps({"valid": {"top1": top1}}))
        (tmp_path / "network" / "metrics.json").write_text(json.dumps({"valid": {"top1": 0.85}}))
        warn_of_better_network(config)
        said = " ".join(capsys.readouterr().err.split())
        assert ("valid top1 0.8000, the head that was trained with the network 0.8500" in said) == is_told


@pytest.mark.processes
def test_a_run_of_three_stages_is_resumed_in_each(sample_set: Path, tmp_path: Path) -> None:
    flags = ["--data-dir", sample_set, *NETWORK, "--finetune", "staged", "--refit-head", "--train-size", 48, "-b", 16]
    flags += ["--first-train-size", 32, "--epochs", 3, "--save-every", 2]
    whole = Job("train", [*flags, "--output-dir", "whole"], folder=tmp_path)
    assert whole.wait() == [0], whole.output
    # The first head takes 100 steps, the network 6.
    for trap, where in ((die_in_step, 10), (die_in_step, 95), (die_at_the_end, "report.html")):
        killed = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path, before=trap, arguments=(where,))
        assert killed.wait() == [-9], killed.output
    last = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path)
    assert last.wait() == [0], last.output
    assert "resumed" in last.output
    assert "sgd" not in last.output, "the network is not trained again"
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert result(tmp_path / "run" / "network") == result(tmp_path / "whole" / "network")


def test_a_run_that_was_begun_without_it_is_refused(sample_set: Path, tmp_path: Path) -> None:
    full = ["--data-dir", sample_set, *NETWORK, "--finetune", "full", "--epochs", 1, "--no-report"]
    full += ["--mixed-precision", "no"]
    train_to(tmp_path / "run", *full)
    with pytest.raises(CheckpointError, match="begun without --refit-head: leave it out"):
        train_to(tmp_path / "run", *full, "--refit-head")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--refit-head fits a head to a network that was trained: add --finetune full or staged, or --no-refit"),
        (["--finetune", "full", "--hidden", "8"], "leave out --hidden and --dropout"),
        (["--finetune", "staged", "--dropout", "0.1"], "leave out --hidden and --dropout"),
        (["--finetune", "full", "--continue-from", "run"], "--continue-from goes on with one: add --no-refit-head"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_flags(parse(TrainConfig, ["--data-dir", "x", "--refit-head", *flags]))
