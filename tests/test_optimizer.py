"""Schedule, losses, mixing and the weight average, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from flowers.training.losses import mix, weighted_loss
from flowers.training.optimizer import WeightAverage, build_optimizer, parameter_groups
from flowers.training.schedule import Schedule, step_seed
from flowers.training.trainer import seed_dropout


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (5, 0.75), (7, 0.25), (8, 0.0669873), (9, 0.0)],
)
def test_learning_rate_follows_the_table(step: int, expected: float) -> None:
    # Three steps of warm-up, then half a cosine over the remaining six.
    assert Schedule(peak=1.0, warmup_steps=3, total_steps=9).lr(step) == pytest.approx(expected)


def test_learning_rate_without_warmup_starts_at_the_peak() -> None:
    assert Schedule(peak=0.3, warmup_steps=0, total_steps=10).lr(0) == 0.3


def test_a_constant_schedule_stays_at_the_peak_after_the_warmup() -> None:
    schedule = Schedule(peak=1.0, warmup_steps=1, total_steps=4, shape="constant")
    assert [schedule.lr(step) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_the_cosine_ends_at_the_floor() -> None:
    schedule = Schedule(peak=1.0, warmup_steps=1, total_steps=5, floor=0.2)
    assert [schedule.lr(step) for step in (0, 1, 3, 5, 6)] == pytest.approx([0.5, 1.0, 0.6, 0.2, 0.2])


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.1)
    assert [p.shape for p in decayed["params"]] == [(2, 4)]
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    assert len(plain["params"]) == 4  # both biases, batch norm's scale and shift


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_skipped_first_step_leaves_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss scale that fp16 begins with is found by skipping steps whose gradients overflow."""
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, math.nan))  # as new memory may be
    ends = []
    for losses in ([math.inf, 1.0, 2.0], [1.0, 2.0]):
        weight = nn.Parameter(torch.ones(3, 2))
        optimizer = build_optimizer(name, [{"params": [weight], "lr_scale": 1.0}], torch.device("cpu"))
        optimizer.param_groups[0]["lr"] = 0.1
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for loss in losses:
            scaler.scale((weight * loss).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        ends.append(weight)
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimizers_take_the_rate_from_the_loop(name: str) -> None:
    model = nn.Linear(2, 1)
    optimizer = build_optimizer(name, parameter_groups(model, 0.0), torch.device("cpu"))
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, before), "the rate is 0 until the loop sets it"
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_images_that_only_fill_up_do_not_count() -> None:
    logits = torch.tensor([[0.0, 0.0], [5.0, -5.0]])
    loss = weighted_loss(logits, torch.tensor([1, 1]), torch.tensor([1.0, 0.0]), 0.0)
    assert loss.item() == pytest.approx(math.log(2))


def test_micro_steps_add_up_to_one_step() -> None:
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.ones(6)
    whole = weighted_loss(logits, targets, weights, 0.1)
    parts = sum(weighted_loss(logits[i : i + 2], targets[i : i + 2], weights[i : i + 2], 0.1) for i in (0, 2, 4))
    assert whole.item() == pytest.approx(parts.item(), rel=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixing_blends_images_and_targets_alike(mixup: float, cutmix: float) -> None:
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    for key in range(6):
        mixed, targets = mix(images, torch.tensor([0, 1]), 2, mixup_alpha=mixup, cutmix_alpha=cutmix, key=(0, key, 0))
        assert torch.allclose(targets.sum(1), torch.ones(2))
        # The mean brightness of a blend of black (class 0) and white (class 1) is its share of class 1.
        assert torch.allclose(mixed.mean((1, 2, 3)), targets[:, 1], atol=1e-6)


def test_mixing_depends_on_its_key_alone() -> None:
    images, targets = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    once = mix(images, targets, 4, mixup_alpha=0.4, cutmix_alpha=1.0, key=(1, 7, 0))
    np.random.seed(5)
    torch.manual_seed(5)
    again = mix(images, targets, 4, mixup_alpha=0.4, cutmix_alpha=1.0, key=(1, 7, 0))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_average_follows_its_formula_and_gives_the_weights_back() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = WeightAverage(model, decay=0.99)
    model.weight.data.fill_(2.0)
    average.update(step=1)  # decay is 2/11 so early
    expected = 1.0 * 2 / 11 + 2.0 * 9 / 11
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 2.0
    other = WeightAverage(nn.Linear(1, 1, bias=False), decay=0.99)
    other.load_state_dict(average.state_dict())
    assert other.state_dict()["weight"].item() == pytest.approx(expected)


def test_dropout_draws_what_torch_manual_seed_says() -> None:
    torch.manual_seed(123)
    expected = torch.rand(5)
    seed_dropout(123, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected)


def test_step_seeds_differ_and_stay() -> None:
    seeds = {step_seed(0, step, micro, rank) for step in range(20) for micro in range(2) for rank in range(2)}
    assert len(seeds) == 80
    assert step_seed(1, 2, 3, 4) == step_seed(1, 2, 3, 4) < 2**63
