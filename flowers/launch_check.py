"""What each process of a launch sees, one all-reduce and one training step: ``flowers-launch --check``.

On a new cluster it tells in seconds whether the processes find one another and compute together.
"""

import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from flowers import cli, console, distributed
from flowers.errors import ProcessError
from flowers.machine import available_cpus, cpu_has_bf16, cpus_per_process

WAIT_S = 120.0
_REDUCED = 4_000_000  # float32 values: the gradients of a small network
_WIDTH = 64


@dataclass(frozen=True)
class CheckConfig:
    """No flags: what is checked is the launch itself."""


def main(config: CheckConfig) -> int:
    """Check this launch and print a table on the main process.

    Raises:
        ProcessError: a sum over all processes, or the weights after a step, are wrong.
    """
    start_s = time.monotonic()
    accelerator = distributed.start("no", timeout_s=WAIT_S)
    started_s = time.monotonic() - start_s
    seen = distributed.from_all(lambda: _sight(accelerator))
    reduce_s = _check_sum(accelerator)
    step_s = _check_step(accelerator)
    console.table(
        f"{console.counted(len(seen), 'process', 'processes')}, connected after {started_s:.1f} s",
        ("rank", "host", "device", "bf16", "CPUs", "NUMA nodes", "NCCL"),
        [(str(rank), *row) for rank, row in enumerate(seen)],
    )
    megabytes = 4 * _REDUCED / 1e6
    console.say(f"all-reduce of {megabytes:.0f} MB: {1000 * reduce_s:.1f} ms; one step: {1000 * step_s:.1f} ms")
    accelerator.end_training()
    return 0


def _sight(accelerator) -> tuple[str, ...]:
    """Host, device, bf16, CPUs, NUMA nodes and NCCL of this process."""
    import torch

    device, nccl = accelerator.device, "-"
    name, bf16 = str(device), cpu_has_bf16()
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        name += f" {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if torch.distributed.is_nccl_available():
            nccl = ".".join(map(str, torch.cuda.nccl.version()))
    cpus = f"{cpus_per_process()} of {available_cpus()}"
    return socket.gethostname(), name, "yes" if bf16 else "no", cpus, _numa_nodes(), nccl


def _numa_nodes() -> str:
    """The NUMA nodes whose CPUs this process may run on, such as "0 1"."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    nodes = []
    for path in Path("/sys/devices/system/node").glob("node*/cpulist"):
        spans = re.findall(r"(\d+)(?:-(\d+))?", path.read_text())
        if any(int(first) <= cpu <= int(last or first) for first, last in spans for cpu in allowed):
            nodes.append(int(path.parent.name.removeprefix("node")))
    return " ".join(map(str, sorted(nodes))) or "-"


def _check_sum(accelerator) -> float:
    """Seconds of an all-reduce over all processes, after one that does not count."""
    import torch

    ranks = torch.full((_REDUCED,), float(accelerator.process_index), device=accelerator.device)
    for _ in range(2):
        start_s = time.perf_counter()
        found = accelerator.reduce(ranks.clone(), "sum")[-1].item()
        seconds = time.perf_counter() - start_s
    expected = sum(range(accelerator.num_processes))
    if found != expected:
        raise ProcessError(f"the sum of all ranks is {found:g}, expected {expected}: the processes are not one group")
    return seconds


def _check_step(accelerator) -> float:
    """Seconds of a training step of a small network, after one that does not count."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 1))
    network, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), lr=0.1))
    torch.manual_seed(accelerator.process_index)
    inputs = torch.randn(8, _WIDTH, device=accelerator.device)
    for _ in range(2):
        start_s = time.perf_counter()
        accelerator.backward(network(inputs).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        total = float(sum(parameter.detach().double().sum() for parameter in network.parameters()))
        seconds = time.perf_counter() - start_s
    totals = {value for (value,) in distributed.rows_of_ranks(accelerator, [total])}
    if len(totals) > 1:
        raise ProcessError(f"after a step the {accelerator.num_processes} processes have different weights")
    return seconds


def check() -> None:
    """One process's part of ``flowers-launch --check``."""
    cli.run(main, CheckConfig)


if __name__ == "__main__":
    check()
