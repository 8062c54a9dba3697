"""Batches on their way to a GPU, on one that is pretended; no test machine has a true one."""

import pytest
import torch
from pretend_gpu import PretendGpu

from flowers.data.loaders import Batch
from flowers.training.batches import to_device

COPIES, USES = [("copy", "side")] * 4, [("use", "main")] * 4
WAIT = [("wait", "main", "side")]


def test_one_batch_is_copied_while_another_is_in_work(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [Batch(*(torch.full((2,), number) for _ in Batch._fields)) for number in range(3)]
    with PretendGpu(monkeypatch) as gpu:
        given = []
        for batch in to_device(iter(batches), torch.device("cuda", 1)):
            given.append(batch)
            gpu.log.append(("work",))
    assert all(torch.equal(*pair) for pair in zip(sum(given, ()), sum(batches, ()), strict=True))
    # The next copy is under way when the work on a batch begins, and what follows that work waits for it.
    assert gpu.log == [
        *COPIES, *WAIT, *USES,
        *COPIES, ("work",), *WAIT, *USES,
        *COPIES, ("work",), *WAIT, *USES,
        ("work",),
    ]  # fmt: skip
