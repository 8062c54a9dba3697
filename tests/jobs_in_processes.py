"""Jobs in processes of their own that start in milliseconds: forked from a server that has imported torch already.

The processes are real: they can be killed, get signals, form a process group. Only the seconds of importing are saved.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

server = multiprocessing.get_context("forkserver")
"""Its processes have imported what the jobs import, and nothing that a test has done."""
server.set_forkserver_preload(["flowers.training.train", "flowers.prediction.predict", "tests.preloaded"])

TIMEOUT_S = 120

_living: list[multiprocessing.process.BaseProcess] = []


class Job:
    """One job over one or several processes.

    Args:
        module: a file of jobs/, "train" say, or another module and its function: "accelerate.commands.launch:main".
        flags: its command line.
        processes: how many form the group.
        before: called in each process before the job, with the arguments after it; sets traps for the test.
        folder: working directory, and where out-RANK.txt of each process goes.
    """

    def __init__(
        self,
        module: str,
        flags: Sequence[object],
        *,
        folder: Path,
        processes: int = 1,
        before: Callable[..., None] | None = None,
        arguments: tuple = (),
    ):
        env = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
        if processes > 1:
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        flags = [str(flag) for flag in flags]
        self._logs = [folder / f"out-{rank}.txt" for rank in range(processes)]
        self.processes = []
        for rank in range(processes):
            own = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else env
            process = server.Process(
                target=_run, args=(module, flags, own, str(folder), str(self._logs[rank]), before, arguments)
            )
            process.start()
            self.processes.append(process)
            _living.append(process)

    def signal(self, number: int) -> None:
        """Send a signal to every process, as a launcher or a terminal does."""
        for process in self.processes:
            os.kill(process.pid, number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> list[int]:
        """Exit codes by rank; -9 for a killed process. One that does not end is killed and fails the test."""
        for process in self.processes:
            process.join(timeout_s)
        hung = [process for process in self.processes if process.exitcode is None]
        for process in hung:
            process.kill()
        assert not hung, f"processes hung:\n{self.output}"
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """SIGKILL every process and wait until they are gone."""
        for process in self.processes:
            process.kill()
            process.join()

    @property
    def output(self) -> str:
        """What all processes printed, rank after rank."""
        return "\n".join(log.read_text(errors="replace") for log in self._logs if log.exists())


def answers(function: Callable[[int], object], local_ranks: Sequence[int], timeout_s: float = 60) -> list:
    """What a function returns, or the error it raises, on each of some processes that form a group.

    They are not forked from here: another test's Accelerator would be theirs too.

    Args:
        function: called with the rank.
        local_ranks: rank by rank.
        timeout_s: how long they may take.
    """
    results = server.Queue()
    port = free_port()
    ranks = [
        server.Process(target=_answer, args=(function, rank, local, len(local_ranks), port, results))
        for rank, local in enumerate(local_ranks)
    ]
    for rank in ranks:
        rank.start()
    found = dict(results.get(timeout=timeout_s) for _ in ranks)
    for rank in ranks:
        rank.join()
    return [found[rank] for rank in range(len(ranks))]


def _answer(function: Callable[[int], object], rank: int, local: int, ranks: int, port: int, results) -> None:
    from flowers import distributed
    from flowers.errors import FlowersError

    group = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in {**group, "OMP_NUM_THREADS": 1}.items()})
    distributed.start("no")
    try:
        results.put((rank, function(rank)))
    except FlowersError as error:
        results.put((rank, (type(error), str(error), error.exit_code)))


def kill_leftovers() -> None:
    """End what a failed test left running; pytest would wait for it before it could exit."""
    for process in _living:
        process.kill()
        process.join()
    _living.clear()


def without(flags: Sequence[object], *names: object) -> list[object]:
    """Flags but for those among the words, each of which has one value."""
    names = [name for name in names if str(name).startswith("-")]
    return [word for at, word in enumerate(flags) if word not in names and (at == 0 or flags[at - 1] not in names)]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die() -> None:
    """SIGKILL this process: no handler, no cleanup, no buffer flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def _run(
    module: str, flags: list[str], env: dict, folder: str, log: str, before: Callable | None, arguments: tuple
) -> None:
    multiprocessing.set_start_method("fork", force=True)  # for loader processes, as in a job that is started plainly
    os.environ.update(env)
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    name, _, function = module.partition(":")
    sys.argv = [name if function else f"{name}.py", *flags]
    if before is not None:
        before(*arguments)
    imported = importlib.import_module(name if function else f"jobs.{name}")
    getattr(imported, function or "cli")()
