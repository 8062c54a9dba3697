"""The learning-rate range test: what it reads from a curve, that it leaves no trace, and the job that runs it."""

import json
import math
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from jobs_in_processes import Job
from PIL import Image
from test_resume import result
from torch import nn
from traps import die_in_step

from flowers import cli
from flowers.config.find_lr import FindLrConfig
from flowers.errors import UsageError
from flowers.training.find_lr import find_lr
from flowers.training.lr_search import GrowingRate, read_curve, restored, smooth

RATES = [10 ** (-5 + step / 20) for step in range(100)]  # 1e-5 to about 1
VALLEY = [2.0 + (math.log10(rate) + 2.0) ** 2 * 0.3 for rate in RATES]  # lowest at 1e-2
TINY = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 64, "-j", 0, "-b", 8]


def test_the_suggestion_is_a_tenth_of_the_lowest_point() -> None:
    curve = read_curve(RATES, VALLEY, [32] * 100)
    assert curve.lowest == pytest.approx(1e-2, rel=0.13)
    assert curve.suggestion == float(f"{curve.lowest / 10:.3g}")
    assert "a tenth" in curve.why


def test_noise_moves_the_suggestion_little() -> None:
    noise = np.random.default_rng(0).normal(0, 0.15, 100)
    curve = read_curve(RATES, [loss + jump for loss, jump in zip(VALLEY, noise, strict=True)], [32] * 100)
    assert 3e-4 < curve.suggestion < 3e-3


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_fall(seed: int) -> None:
    losses = 1.4 + np.random.default_rng(seed).normal(0, 0.2, 100)
    curve = read_curve(RATES, losses.tolist(), [4] * 100)
    assert curve.suggestion is None
    assert curve.why.startswith("the loss did not fall: 1.")


def test_a_curve_that_breaks_down_is_read_up_to_there() -> None:
    losses = [*VALLEY[:70], math.nan]
    curve = read_curve(RATES[:71], losses, [32] * 71)
    assert curve.suggestion == read_curve(RATES, VALLEY, [32] * 100).suggestion
    assert curve.to_dict()["losses"][-1] is None
    json.dumps(curve.to_dict(), allow_nan=False)
    nothing = read_curve(RATES[:1], [math.inf], [32])
    assert nothing.suggestion is None
    assert nothing.why == "not one loss was finite"


def test_a_loss_that_falls_to_the_end_says_so() -> None:
    curve = read_curve(RATES[:55], VALLEY[:55], [32] * 55)
    assert curve.suggestion == float(f"{RATES[54] / 10:.3g}")
    assert "it still fell at the end" in curve.why


def test_smoothing_keeps_a_line_and_weighs_by_images() -> None:
    assert smooth(RATES, [3.0] * 100, [32] * 100) == pytest.approx([3.0] * 100)
    assert smooth([0.1, 0.1], [1.0, 4.0], [1, 2]) == pytest.approx([3.0, 3.0])


def test_rates_grow_evenly_from_the_first_to_the_last() -> None:
    schedule = GrowingRate(low=1e-4, high=1e-1, steps=4)
    assert [schedule.lr(step) for step in range(4)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])


@pytest.mark.parametrize("begun", [False, True])
def test_nothing_is_left_of_a_trial(begun: bool) -> None:
    """Weights, statistics, optimizer, modes and torch's random state, bit for bit; also after an error."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)

    def step() -> None:
        network.train()
        network(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()

    if begun:
        step()
        network.eval()
    accelerator = SimpleNamespace(scaler=None, device=torch.device("cpu"))
    trainer = SimpleNamespace(network=network, optimizer=optimizer, accelerator=accelerator, schedule=0, average=1)
    trainer.unread = []

    def state() -> list[torch.Tensor]:
        tensors = [tensor.clone() for tensor in network.state_dict().values()]
        moments = [value.clone() for entry in optimizer.state.values() for value in entry.values()]
        return [*tensors, *moments, torch.get_rng_state()]

    before = state()
    with pytest.raises(ZeroDivisionError), restored(trainer):
        trainer.schedule, trainer.average = None, None
        for _ in range(3):
            step()
        raise ZeroDivisionError
    after = state()
    assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))
    assert not network.training
    assert (trainer.schedule, trainer.average) == (0, 1)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that even a network with random weights learns in a few steps: a class is a colour."""
    folder = tmp_path_factory.mktemp("colours")
    for name, colour in (("blue", (20, 40, 220)), ("red", (220, 40, 20)), ("white", (235, 235, 235))):
        for split, count in (("train", 24), ("valid", 4)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), colour).save(folder / split / name / f"{index}.png")
    return folder


def found_lr(run_dir: Path) -> float:
    return json.loads((run_dir / "lr_finder.json").read_text())["suggestion"]


@pytest.mark.processes
@pytest.mark.parametrize("how", ["head", "full", "staged"])
def test_training_goes_on_as_if_the_rate_had_been_given(how: str, colours: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--data-dir", colours, "--finetune", how, "--epochs", 2, "--dropout", 0.3]
    searched = Job("train", [*flags, "--lr", "auto", "--output-dir", "auto"], folder=tmp_path)
    assert searched.wait() == [0], searched.output
    lr = found_lr(tmp_path / "auto")
    assert yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["lr"] == lr
    given = Job("train", [*flags, "--lr", lr, "--output-dir", "given"], folder=tmp_path)
    assert given.wait() == [0], given.output
    assert "learning rate" not in given.output
    assert result(tmp_path / "auto") == result(tmp_path / "given")
    pages = [(tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("auto", "given")]
    assert ['alt="training loss over the learning rate"' in page for page in pages] == [True, False]


@pytest.mark.processes
def test_a_resumed_run_keeps_the_rate_that_was_found(colours: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--data-dir", colours, "--finetune", "full", "--epochs", 2, "--save-every", 2, "--lr", "auto"]
    whole = Job("train", [*flags, "--output-dir", "whole"], folder=tmp_path)
    assert whole.wait() == [0], whole.output
    steps = len(json.loads((tmp_path / "whole" / "lr_finder.json").read_text())["rates"])
    killed = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path, before=die_in_step, arguments=(steps + 6,))
    assert killed.wait() == [-signal.SIGKILL], killed.output
    last = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path)
    assert last.wait() == [0], last.output
    assert "resumed from step-00000004" in last.output
    assert "to suggest" not in last.output
    assert "learning rate" not in last.output
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert found_lr(tmp_path / "run") == found_lr(tmp_path / "whole")


@pytest.mark.processes
@pytest.mark.parametrize("how", ["head", "full"])
def test_two_processes_draw_the_curve_of_one(how: str, colours: Path, tmp_path: Path) -> None:
    # Of images through layers that learn, batch norm sees each process's own: a network without it.
    model = "timm/test_vit" if how == "full" else "timm/test_resnet"
    tiny = ["--model", model, "--weights", "none", "--image-size", 96 if how == "full" else 64, "-j", 0]
    flags = [*tiny, "--data-dir", colours, "--finetune", how, "--mixed-precision", "no"]
    flags += ["--min-lr", 1e-5, "--max-lr", 10, "--steps", 40]
    curves = []
    for processes in (1, 2):
        name = f"{processes}.png"
        job = Job("find_lr", [*flags, "-b", 8 // processes, "--output", name, "--output-dir", f"run-{processes}"],
                  folder=tmp_path, processes=processes)  # fmt: skip
        assert job.wait() == [0] * processes, job.output
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        curves.append(json.loads((tmp_path / name).with_suffix(".json").read_text()))
    one, two = curves
    assert one["rates"][:20] == two["rates"][:20] == pytest.approx([10 ** (-5 + 6 * step / 39) for step in range(20)])
    np.testing.assert_allclose(one["losses"][:20], two["losses"][:20], rtol=0.02)
    assert one["suggestion"] == pytest.approx(one["lowest"] / 10, rel=0.01)
    if how == "head":  # convex: the steps at high rates are nearly the same too; one step apart is a factor of 1.43
        assert one["suggestion"] == pytest.approx(two["suggestion"], rel=0.45)


@pytest.mark.processes
def test_the_job_leaves_a_folder_that_training_can_use(sample_set: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--data-dir", sample_set, "--output-dir", "run"]
    job = Job("find_lr", [*flags, "--min-lr", 1e-9, "--max-lr", 1e-8, "--steps", 12], folder=tmp_path)
    assert job.wait() == [0], job.output
    assert "no learning rate to suggest: the loss did not fall" in job.output
    assert "the default is 0.0015" in job.output
    assert "with --lr 0.0015" in job.output
    assert len(json.loads((tmp_path / "run" / "lr_finder.json").read_text())["rates"]) == 12
    assert (tmp_path / "run" / "lr_finder.png").stat().st_size > 1000
    assert not (tmp_path / "run" / "checkpoints").exists()
    again = ["--config", "run/config.yaml", "--lr", 0.002, "--epochs", 1]
    trained = Job("train", again, folder=tmp_path)
    assert trained.wait() == [0], trained.output
    again = Job("find_lr", flags, folder=tmp_path)
    assert again.wait() == [1]
    assert "run holds a run, begun with a learning rate of its own; give another --output-dir" in again.output
    assert "Traceback" not in again.output


@pytest.mark.processes
def test_without_matplotlib_the_figures_are_still_there(sample_set: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--data-dir", sample_set, "--steps", 10, "--output-dir", "run"]
    job = Job("find_lr", flags, folder=tmp_path, before=take_matplotlib_away)
    assert job.wait() == [0], job.output
    assert "lr_finder.png needs matplotlib: pip install matplotlib" in job.output
    assert (tmp_path / "run" / "lr_finder.json").exists()
    assert not (tmp_path / "run" / "lr_finder.png").exists()


def take_matplotlib_away() -> None:
    sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "3"], "--steps: got 3, expected at least 10"),
        (["--min-lr", "0"], "--min-lr: got 0.0, expected a number above 0"),
        (["--min-lr", "1", "--max-lr", "0.1"], "--min-lr 1: expected less than --max-lr 0.1"),
        (["--output", "curve.pdf"], "--output: got curve.pdf, expected a name ending in .png"),
        (["--lr", "much"], "much"),
    ],
)
def test_wrong_flags_are_told_in_one_line(flags: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        cli.parse(FindLrConfig, ["--data-dir", "x", *flags])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", [["--optimizer", "lbfgs"], ["--tune-head"]])
def test_a_head_that_is_fitted_at_once_has_no_rate(flags: list[str], tmp_path: Path) -> None:
    config = cli.parse(FindLrConfig, ["--data-dir", "x", "--output-dir", str(tmp_path / "run"), *flags])
    with pytest.raises(UsageError, match=f"{' '.join(flags)} fits a head at once, without a learning rate"):
        find_lr(config)
    assert not (tmp_path / "run").exists()
