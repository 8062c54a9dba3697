"""A linear head fitted at once: the right minimum, whatever the scale of the features, and folds for judging it."""

import dataclasses
import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jobs_in_processes import Job

from flowers.cli import parse
from flowers.config.train import TrainConfig
from flowers.errors import TrainingError, UsageError
from flowers.training import linear_head
from flowers.training.flags import check_flags, fits_at_once, resolve, with_default_model
from flowers.training.linear_head import (
    HeadProblem,
    LinearHead,
    fit_linear_head,
    fit_sharpened,
    folds,
    out_of_fold,
)

FLAGS = ("--model", "timm/test_resnet", "--weights", "none", "--image-size", "32", "-j", "0")


def make_problem(weights: np.ndarray | None = None) -> HeadProblem:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 120)
    features = rng.normal(size=(120, 8)) + np.eye(3, 8)[targets]
    features *= 10.0 ** rng.integers(-2, 3, 8)  # of very different scales
    features[:, 7] = 5.0  # says nothing
    return HeadProblem(features.astype(np.float32) + 3, targets, 3, (6, 2), weights)


def penalised(problem: HeadProblem, weight: torch.Tensor, bias: torch.Tensor, weight_decay: float) -> torch.Tensor:
    """What the fit minimises, written down again in float64, as a function of the head for features as they are."""
    features, targets = torch.from_numpy(problem.features).double(), torch.from_numpy(problem.targets)
    deviation = features.std(0, correction=0)
    common = torch.cat([block.square().mean().sqrt().expand(len(block)) for block in deviation.split(problem.widths)])
    share = torch.tensor([size / problem.widths[0] for size in problem.widths for _ in range(size)])
    scale = (common * deviation * share).sqrt()
    rows = torch.ones(len(targets)) if problem.weights is None else torch.from_numpy(problem.weights)
    losses = F.cross_entropy(features @ weight.T + bias, targets, reduction="none")
    return (losses * rows).sum() / rows.sum() + weight_decay / 2 * (weight * scale).square().sum()


@pytest.mark.parametrize("weights", [None, np.linspace(0.1, 2.0, 120)])
def test_it_is_the_minimum_in_the_scale_of_the_features(weights: np.ndarray | None) -> None:
    problem = make_problem(weights)
    found = fit_linear_head(problem, weight_decay=0.01)
    weight, bias = found.weight.double(), found.bias.double()
    least = penalised(problem, weight, bias, 0.01)
    assert torch.all(weight[:, 7] == 0)
    rng = torch.Generator().manual_seed(0)
    spread = torch.from_numpy(problem.features).double().std(0, correction=0).clamp_min(1e-9)
    spread[7] = float("inf")  # the constant one
    for size in (1e-1, 1e-2):
        for _ in range(20):  # any other head is worse
            other = weight + size * torch.randn(3, 8, generator=rng, dtype=torch.float64) / spread
            assert penalised(problem, other, bias, 0.01) > least
    logits = found.logits(problem.features)
    rows = np.ones(120) if weights is None else weights
    loss = F.cross_entropy(logits, torch.from_numpy(problem.targets), reduction="none").numpy()
    assert found.loss == pytest.approx(np.average(loss, weights=rows), rel=1e-3)
    assert found.top1 == pytest.approx(np.average(logits.argmax(1).numpy() == problem.targets, weights=rows), rel=1e-5)


@pytest.mark.parametrize(("limit", "value"), [("ROWS", 7), ("LOGITS", 3 * 7)])
def test_pieces_that_are_scaled_again_each_time_give_the_same_head(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem()
    kept = fit_linear_head(problem, weight_decay=0.01)
    monkeypatch.setattr(linear_head, "KEPT_BYTES", 0)
    monkeypatch.setattr(linear_head, limit, value)
    assert {len(rows) for rows, _, _ in linear_head._Rows(problem, torch.device("cpu"))} == {7, 120 % 7}
    again = fit_linear_head(problem, weight_decay=0.01)
    torch.testing.assert_close(again.logits(problem.features), kept.logits(problem.features), rtol=1e-2, atol=1e-2)


def test_features_that_are_not_finite_are_refused_in_one_line() -> None:
    features = np.ones((4, 2), np.float32)
    features[3, 1] = np.nan
    with pytest.raises(TrainingError, match="the features of some images are not finite"):
        fit_linear_head(HeadProblem(features, np.array([0, 1, 0, 1]), 2, (2,)), weight_decay=0.001)


def test_a_head_of_smoothed_targets_is_made_as_sure_as_it_is_right() -> None:
    problem = make_problem()
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 3, 120)
    unseen = np.empty((120, 8))
    for index in range(3):  # photos of a class lie where those of training do
        own = problem.features[problem.targets == index]
        unseen[targets == index] = own.mean(0) + rng.normal(size=((targets == index).sum(), 8)) * own.std(0)
    fit = functools.partial(fit_linear_head, weight_decay=0.001, label_smoothing=0.3)
    plain, sharp = fit(problem), fit_sharpened(problem, folds(problem.targets, 5, seed=0), fit)

    def loss(head: LinearHead) -> float:
        return float(F.cross_entropy(head.logits(unseen), torch.from_numpy(targets)))

    assert loss(sharp) < 0.95 * loss(plain)
    assert torch.equal(sharp.logits(unseen).argmax(1), plain.logits(unseen).argmax(1))


def test_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images with all their views, until there are enough; none of a class that nothing else shows."""
    problem = make_problem()
    views = problem._replace(
        features=problem.features.repeat(2, 0), targets=problem.targets.repeat(2), views=2, unit_blocks=True
    )
    parts, fitted = folds(problem.targets, 5, seed=0), []

    def fit(some: HeadProblem) -> LinearHead:
        fitted.append(len(some.targets))
        return LinearHead(torch.eye(3, 8), torch.zeros(3), 0.0, 1.0)

    fit_sharpened(views, parts, fit)
    assert fitted == [240, *[192] * 5]
    monkeypatch.setattr(linear_head, "HELD_OUT", 30)
    fitted.clear()
    fit_sharpened(views, parts, fit)
    assert fitted == [240, 192, 192]
    logits = dict(zip(("left", "logits"), next(out_of_fold(views, parts, fit)), strict=True))
    assert np.array_equal(logits["left"], np.flatnonzero(parts == 0))
    lengths = [np.linalg.norm(block, axis=1) for block in np.split(views.seen(slice(0, 9)), [6], axis=1)]
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    assert np.all(np.abs(logits["logits"]) <= 1)
    fitted.clear()
    fit_sharpened(problem._replace(features=problem.features[:3], targets=np.arange(3)), np.zeros(3, np.int64), fit)
    assert fitted == [3]
    singles = problem._replace(features=problem.features[:4], targets=np.array([0, 0, 1, 2]))
    sharp = fit_sharpened(singles, np.array([0, 1, 0, 1]), fit)
    assert torch.isfinite(sharp.weight).all()


def test_folds_spread_each_class() -> None:
    targets = np.repeat([0, 1, 2], [10, 11, 4])
    parts = folds(targets, 5, seed=0)
    assert np.all(np.bincount(parts) == 5)
    for index, least in ((0, 2), (1, 2), (2, 0)):
        counts = np.bincount(parts[targets == index], minlength=5)
        assert counts.min() >= least
        assert counts.max() <= least + 1
    assert np.array_equal(parts, folds(targets, 5, seed=0))


def test_one_process_and_two_fit_the_same_head_and_a_second_start_finds_it(sample_set: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        flags = ("--data-dir", sample_set, "--output-dir", f"run{processes}", *FLAGS)
        job = Job("train", flags, folder=tmp_path, processes=processes)
        assert set(job.wait()) == {0}, job.output
    one, two = (json.loads((tmp_path / f"run{n}" / "metrics.json").read_text()) for n in (1, 2))
    assert one["valid"]["top1"] == two["valid"]["top1"]
    assert one["valid"]["loss"] == pytest.approx(two["valid"]["loss"], rel=1e-4)
    assert one["best_step"] == 1
    pages = [(tmp_path / f"run{n}" / "report.html").read_text(encoding="utf-8") for n in (1, 2)]
    labels = [re.search('<section id="labels">.*?<pre>', page, re.DOTALL)[0] for page in pages]
    assert labels[0] == labels[1]
    assert "of 32 training labels" in labels[0]
    events = [json.loads(line)["event"] for line in (tmp_path / "run1" / "history.jsonl").read_text().splitlines()]
    assert events == ["valid", "train"]
    again = Job("train", ("--data-dir", sample_set, "--output-dir", "run1", *FLAGS), folder=tmp_path)
    assert again.wait() == [0], again.output
    assert "is finished already" in again.output


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], True),
        (["--views", "2", "-b", "8", "--balance", "classes"], True),
        (["--optimizer", "lbfgs", "--weight-decay", "0.1", "--label-smoothing", "0.1"], True),
        (["--epochs", "5"], False),
        (["--lr", "0.003"], False),
        (["--weight-decay", "0.1"], False),
        (["--hidden", "64"], False),
        (["--optimizer", "adamw"], False),
        (["--no-feature-cache"], False),
        (["--finetune", "staged"], False),
    ],
)
def test_flags_about_steps_ask_for_small_steps(flags: list[str], expected: bool) -> None:
    config = parse(TrainConfig, ["--data-dir", "x", *flags])
    check_flags(config)
    assert fits_at_once(config, None) is expected


@pytest.mark.parametrize("flags", [["--hidden", "8"], ["--epochs", "5"], ["--lr", "0.1"], ["--finetune", "full"]])
def test_what_a_fit_cannot_follow_is_refused(flags: list[str]) -> None:
    with pytest.raises(UsageError, match="--optimizer lbfgs"):
        check_flags(parse(TrainConfig, ["--data-dir", "x", "--optimizer", "lbfgs", *flags]))


def test_a_run_of_an_earlier_version_goes_on_as_it_was_begun() -> None:
    """It has AdamW and the plain network in its fingerprint, which no flag named."""
    config = TrainConfig(data_dir=Path("x"))
    begun = type("Checkpoint", (), {"fingerprint": {"--optimizer": "adamw", "--model": "efficientnet_lite0"}})
    assert not fits_at_once(config, begun)
    assert with_default_model(config, begun).model == "efficientnet_lite0"
    assert with_default_model(config, None).model == "efficientnet_lite0+2"
    model = SimpleNamespace(
        classifier=SimpleNamespace(backbone=torch.nn.Identity()), preprocessing=SimpleNamespace(crop=32)
    )
    assert resolve(config, model, 1, None).label_smoothing == 0.05
    begun.fingerprint |= {"--optimizer": "lbfgs", "--label-smoothing": 0.0}
    assert resolve(config, model, 1, begun).label_smoothing == 0.0
    staged = dataclasses.replace(config, finetune="staged")
    assert with_default_model(staged, None).model == "efficientnet_lite0"
