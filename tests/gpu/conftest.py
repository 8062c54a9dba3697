"""Tests for a machine with a GPU. run.sh starts them, there or (--pretend) on the CPU; any other pytest skips them."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import results
import torch

if results.DEVICE == "cuda":  # set for the other tests, which are to leave a GPU alone
    for name in ("ACCELERATE_USE_CPU", "OMP_NUM_THREADS"):
        os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    outside = pytest.mark.skip(reason="tests/gpu/run.sh runs it, on a GPU, or with --pretend on the CPU")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if results.DEVICE is None:
                item.add_marker(outside)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write each outcome down at once: the run may be cut off."""
    if results.DEVICE is None or "tests/gpu/" not in report.nodeid:
        return
    if report.when == "call" or report.outcome != "passed":
        reason = ""
        if report.outcome == "skipped":
            reason = report.longrepr[2].removeprefix("Skipped: ")
        elif report.outcome == "failed":
            reason = str(report.longrepr).strip().splitlines()[-1]
        results.add_test(report.nodeid.rpartition("/")[2], report.outcome, report.duration, reason)


@pytest.fixture(autouse=True)
def in_time() -> None:
    """Leave the last third of the time to the measurements."""
    if time.time() > float(os.environ.get("FLOWERS_TESTS_UNTIL", "inf")):
        pytest.skip("no time was left")


@pytest.fixture(scope="session")
def device() -> str:
    """Where to compute: "cuda" or "cpu"."""
    if results.DEVICE == "cuda":
        assert torch.cuda.is_available(), "torch sees no GPU; tests/gpu/run.sh --pretend does without"
    return results.DEVICE


@pytest.fixture
def on_gpu(device: str) -> None:
    """Skip where the test would mean nothing on a CPU."""
    if device != "cuda":
        pytest.skip("there is no such thing on a CPU, or other tests show it there")


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate's state is the process's; a test that starts one here leaves none behind."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
