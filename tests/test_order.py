"""Which image comes when: against indices typed by hand, against Philox written from its paper, and by property."""

import itertools
from collections import Counter

import numpy as np
import pytest

from flowers.data.order import Draw, Order, class_balance, eval_batches, sample_rng
from flowers.errors import UsageError


class TypedOrder(Order):
    """An order whose permutation is typed by hand: the tens digit is the epoch."""

    def permutation(self, epoch: int) -> np.ndarray:
        return np.array([3, 0, 4, 1, 6, 5, 2], dtype=np.int64)


def indices(batches) -> list[list[int]]:
    return [[draw.index for draw in batch] for batch in batches]


def steps(order: Order, epoch: int, start_step: int = 0) -> list[set[Draw]]:
    """The draws of every step over all ranks."""
    ranks = [list(order.micro_batches(epoch, rank, start_step)) for rank in range(order.world_size)]
    k = order.grad_accum_steps
    return [
        {draw for batches in ranks for batch in batches[first : first + k] for draw in batch}
        for first in range(0, len(ranks[0]), k)
    ]


def test_one_process_by_hand():
    order = TypedOrder(num_samples=7, seed=0, batch_size=3)
    batches = list(order.micro_batches(epoch=5, rank=0))
    assert indices(batches) == [[3, 0, 4], [1, 6, 5], [2, 3, 0]]
    assert [[draw.weight for draw in batch] for batch in batches] == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert batches[1][2] == Draw(index=5, epoch=5, position=5, weight=1.0, occurrence=0)


def test_two_processes_and_two_micro_steps_by_hand():
    order = TypedOrder(num_samples=7, seed=0, batch_size=1, world_size=2, grad_accum_steps=2)
    assert indices(order.micro_batches(0, rank=0)) == [[3], [4], [6], [2]]
    assert indices(order.micro_batches(0, rank=1)) == [[0], [1], [5], [3]]
    assert [draw.weight for [draw] in order.micro_batches(0, rank=1)] == [1, 1, 1, 0]
    assert indices(order.micro_batches(0, rank=0, start_step=1)) == [[6], [2]]


def test_arithmetic_of_steps():
    order = Order(num_samples=50, seed=0, batch_size=8, world_size=2, grad_accum_steps=2)
    assert order.global_batch_size == 32
    assert order.steps_per_epoch == 2
    assert [order.real_in_step(step) for step in range(3)] == [32, 18, 0]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("num_samples", [100, 96, 16, 3])
def test_a_step_holds_the_same_draws_however_it_is_shared_out(num_samples, weighted):
    weights = 1.0 / (1 + np.arange(num_samples)) if weighted else None
    shared = [(16, 1, 1), (8, 2, 1), (8, 1, 2), (4, 2, 2), (2, 8, 1), (1, 1, 16)]
    for epoch in range(3):
        whole, *others = [steps(Order(num_samples, 5, *shape, weights), epoch) for shape in shared]
        assert all(other == whole for other in others)
        real = [sum(draw.weight for draw in step) for step in whole]
        assert real == [Order(num_samples, 5, 16).real_in_step(step) for step in range(len(whole))]


@pytest.mark.parametrize("shape", [(16, 1, 1), (3, 2, 1), (2, 3, 2)])
def test_every_index_once_an_epoch_in_batches_of_one_shape(shape):
    order = Order(50, 1, *shape)
    for epoch in range(3):
        batches = [batch for rank in range(order.world_size) for batch in order.micro_batches(epoch, rank)]
        assert {len(batch) for batch in batches} == {order.batch_size}
        assert len(batches) == order.steps_per_epoch * order.world_size * order.grad_accum_steps
        real = [draw.index for batch in batches for draw in batch if draw.weight]
        assert sorted(real) == list(range(50))


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 2, 1), (1, 2, 2)])
def test_going_on_at_any_step_gives_the_rest_of_the_epoch(shape):
    order = Order(30, 9, *shape, sample_weights=np.arange(1.0, 31))
    whole = steps(order, epoch=2)
    for start_step in range(order.steps_per_epoch + 1):
        assert steps(order, epoch=2, start_step=start_step) == whole[start_step:]


def test_seeds_and_epochs_give_orders_of_their_own():
    orders = {tuple(Order(40, seed, 4).permutation(epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_permutation_is_uniform():
    counts = Counter(tuple(Order(3, 0, 1).permutation(epoch)) for epoch in range(6000))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in counts.values())


def philox4x64(key: tuple[int, int], counter: list[int]) -> list[int]:
    """Philox 4x64-10 from Salmon et al. 2011, table 2 and section 3.3."""
    mask = 2**64 - 1
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & mask, (p0 >> 64) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return [c0, c1, c2, c3]


def test_the_order_is_fixed_by_definition_not_by_numpy_version():
    # NumPy steps the counter before the first block.
    keys = [word for block in (1, 2, 3) for word in philox4x64((7, 2), [block, 0, 1, 1])]
    assert Order(12, seed=7, batch_size=4).permutation(2).tolist() == sorted(range(12), key=keys.__getitem__)
    assert Order(12, seed=7, batch_size=4).permutation(2).tolist() == [9, 4, 7, 6, 0, 8, 1, 11, 10, 3, 2, 5]


def test_sample_rng_is_fixed_by_definition():
    for seed, epoch, index, occurrence in [(0, 0, 0, 0), (2**64 - 1, 5, 10**9, 3)]:
        words = philox4x64((seed, epoch), [1, index, occurrence, 3])
        drawn = sample_rng(seed, epoch, index, occurrence).random(4)
        assert drawn.tolist() == [(word >> 11) / 2**53 for word in words]


def test_sample_rng_differs_in_each_of_its_arguments():
    arguments = list(itertools.product(range(3), repeat=4))
    assert len({sample_rng(*each).random() for each in arguments}) == len(arguments)


def test_weighted_draws_follow_the_weights_without_bias():
    weights = np.array([8.0, 1.0, 0.0, 0.5, 0.5])
    counts = sum(
        np.bincount(Order(5, 0, 1, sample_weights=weights).permutation(epoch), minlength=5) for epoch in range(4000)
    )
    expected = 4000 * 5 * weights / weights.sum()
    assert counts[2] == 0
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected) + 1e-9)


def test_weighted_draws_come_within_one_of_their_share():
    weights = np.random.default_rng(0).random(200)
    share = 200 * weights / weights.sum()
    for epoch in range(20):
        counts = np.bincount(Order(200, 3, 8, sample_weights=weights).permutation(epoch), minlength=200)
        assert np.all(np.abs(counts - share) < 1)


def test_equal_weights_are_an_ordinary_epoch():
    order = Order(64, 3, 8, sample_weights=np.full(64, 0.1))
    assert sorted(order.permutation(4)) == list(range(64))


def test_repeats_of_a_sample_are_numbered():
    order = Order(8, 7, 4, sample_weights=np.array([5.0, 1, 1, 1, 0, 0, 0, 0]))
    draws = [draw for batch in order.micro_batches(0, rank=0) for draw in batch]
    assert sorted(draw.occurrence for draw in draws if draw.index == 0) == [0, 1, 2, 3, 4]
    assert all(draw.occurrence == 0 for draw in draws if draw.index != 0)


def test_class_balance_gives_classes_equal_shares():
    targets = np.array([0] * 6 + [1] * 2 + [2] * 4)
    weights = class_balance(targets, num_classes=3)
    assert np.bincount(targets, weights=weights).tolist() == pytest.approx([1, 1, 1])
    drawn = targets[Order(12, 0, 4, sample_weights=weights).permutation(0)]
    assert np.bincount(drawn).tolist() == pytest.approx([4, 4, 4], abs=2)


@pytest.mark.parametrize(
    "wrong", [{"num_samples": 0}, {"batch_size": 0}, {"grad_accum_steps": 0}, {"seed": -1}, {"seed": 2**64}]
)
def test_silly_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Order(**{"num_samples": 4, "seed": 0, "batch_size": 2, **wrong})


@pytest.mark.parametrize("weights", [np.ones(3), -np.ones(4), np.zeros(4), np.full(4, np.nan)])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(ValueError, match="sample_weights"):
        Order(4, 0, 2, sample_weights=weights)


def test_eval_batches_by_hand():
    assert [list(map(tuple, batch)) for batch in eval_batches(5, batch_size=2, rank=0, world_size=2)] == [
        [(0, 0, 0, 1.0, 0), (2, 0, 2, 1.0, 0)],
        [(4, 0, 4, 1.0, 0), (0, 0, 6, 0.0, 0)],
    ]
    assert [list(map(tuple, batch)) for batch in eval_batches(5, batch_size=2, rank=1, world_size=2)] == [
        [(1, 0, 1, 1.0, 0), (3, 0, 3, 1.0, 0)],
        [(0, 0, 5, 0.0, 0), (0, 0, 7, 0.0, 0)],
    ]
    assert list(eval_batches(0, 2, 0, 1)) == []


@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 818])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_eval_batches_hold_every_index_once(num_samples, world_size):
    ranks = [list(eval_batches(num_samples, 4, rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    draws = [draw for batches in ranks for batch in batches for draw in batch]
    assert {len(batch) for batches in ranks for batch in batches} == {4}
    assert sorted(draw.index for draw in draws if draw.weight) == list(range(num_samples))
    assert all(draw.weight == (draw.position < num_samples) for draw in draws)
