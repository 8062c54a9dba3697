"""Figures that add up exactly, and notice every image that is missed or seen twice."""

import math

import pytest
import torch

from flowers.errors import TrainingError
from flowers.reports.metrics import Tally, target_ranks


def test_ranks_count_the_classes_before_the_true_one() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert target_ranks(logits, torch.tensor([0, 1, 0, 2])).tolist() == [0, 2, 0, 2]


def scored(logits: torch.Tensor, targets: torch.Tensor) -> Tally:
    tally = Tally(len(targets), torch.device("cpu"))
    tally.update(torch.arange(len(targets)), torch.ones(len(targets)), logits, targets)
    return tally


def test_figures_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]])
    metrics = scored(logits, torch.tensor([0, 1, 0, 0])).result()
    hit, miss = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert metrics.top1 == 0.75
    assert metrics.top5 == 1.0
    assert metrics.images == 4
    assert metrics.loss == pytest.approx((3 * hit + miss) / 4, rel=1e-6)


def test_any_number_of_ranks_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(37, 10), torch.randint(10, (37,))
    whole = scored(logits, targets).result()
    for ranks in (2, 3, 5):
        tallies = []
        for rank in range(ranks):
            tally = Tally(37, torch.device("cpu"))
            for index in range(rank, 37, ranks):
                row = torch.tensor([index, 0])  # the second one only fills up the batch
                tally.update(row, torch.tensor([1.0, 0.0]), logits[row], targets[row])
            tallies.append(tally)
        assert tallies[0].result(lambda _, t=tallies: sum(tally._rows for tally in t)) == whole


@pytest.mark.parametrize(("rows", "message"), [([0, 1], "1 were missed"), ([0, 1, 2, 2], "1 counted more than once")])
def test_a_missed_or_doubled_image_is_an_error(rows: list[int], message: str) -> None:
    tally = Tally(3, torch.device("cpu"))
    index = torch.tensor(rows)
    tally.update(index, torch.ones(len(rows)), torch.zeros(len(rows), 2), torch.zeros(len(rows), dtype=torch.int64))
    with pytest.raises(TrainingError, match=message):
        tally.result()
