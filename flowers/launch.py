"""Start one job as several processes, pass signals on to them, and end with their exit code.

flowers-launch jobs/train.py --data-dir data/flowers102
flowers-launch --num-processes 4 jobs/predict.py --checkpoint RUN --input PHOTOS
srun flowers-launch --num-processes 8 --num-machines 2 --main-process-ip HOST --main-process-port 15000 jobs/train.py

`accelerate launch` starts the same groups. What it does not give, and this does: a job's own exit code (there every
failure is 1, so that 75, "stopped with all state saved", is lost), USR1 and USR2 for the ranks, time to save after a
signal (there 30 s, then SIGKILL), a failure that ends in the job's one line instead of the launcher's stack, and N
processes that form one group on a machine without a GPU.
"""

import ctypes
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flowers import console
from flowers.cli import choose_log
from flowers.cli import parse as parse_flags
from flowers.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_STRICT, FlowersError, UsageError
from flowers.flags import CONFIG, LOG, before_a_command, options
from flowers.machine import available_cpus, most_processes

FORWARDED = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
FAILURE_GRACE_S = 10.0  # for the others, once one has failed: they may only be able to time out
POLL_S = 0.05
ENDED_WELL = (0, EXIT_STRICT, EXIT_STOPPED)  # the last one that any rank ended with is the launcher's
# What other launchers, MPI or a surrounding job may have left behind: each rank gets its own or none.
GROUP_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class LaunchConfig:
    """Start one job as several processes, pass signals on to them, and end with their exit code.

    JOB is a job's file or its command, such as jobs/train.py or flowers-train.
    """

    USAGE: ClassVar[str] = "[flags] JOB [flags of the job]"

    num_processes: int | None = None
    """Processes over all machines. Default: one per GPU; one without GPUs."""
    num_machines: int = 1
    """Machines that each run this launcher once."""
    machine_rank: int | None = None
    """Number of this machine, from 0. Default: under srun its own."""
    main_process_ip: str | None = None
    """Name or address of machine 0."""
    main_process_port: int = 0
    """Port on machine 0. Default: on one machine any free one."""
    stop_timeout: float = 600.0
    """Seconds that ranks have to save after a signal."""
    stopped_mark: Path | None = None
    """Make this file and exit with 0 instead of 75, so that srun does not kill the other nodes."""
    check: bool = False
    """In the place of a job: show what each process sees, compute one sum and one step together."""

    def __post_init__(self) -> None:
        if not self.stop_timeout > 0:
            raise UsageError(f"--stop-timeout: got {self.stop_timeout:g}, expected seconds, more than 0")
        if not 0 <= self.main_process_port <= 65535:
            raise UsageError(f"--main-process-port: got {self.main_process_port}, expected a number from 0 to 65535")


@dataclass(frozen=True)
class LaunchPlan:
    """The processes that this launcher starts, and the address where all processes of the job meet."""

    num_processes: int
    """Over all machines."""
    num_machines: int = 1
    machine_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def local_processes(self) -> int:
        """Processes on this machine."""
        return self.num_processes // self.num_machines

    def environment(self, local_rank: int) -> dict[str, str]:
        """The environment of one rank; a rank alone gets no addresses, so that it starts no process group."""
        threads = str(max(1, available_cpus() // self.local_processes))
        values = {"OMP_NUM_THREADS": threads, **os.environ}
        for name in GROUP_VARIABLES:
            values.pop(name, None)
        values["FLOWERS_WORLD_SIZE"] = str(self.num_processes)
        if self.num_processes > 1:
            values |= {
                "RANK": str(self.machine_rank * self.local_processes + local_rank),
                "LOCAL_RANK": str(local_rank),
                "WORLD_SIZE": str(self.num_processes),
                "LOCAL_WORLD_SIZE": str(self.local_processes),
                "MASTER_ADDR": self.address,
                "MASTER_PORT": str(self.port),
            }
        return values


class Ranks:
    """The processes of one job on this machine, from their start to their joint end."""

    def __init__(self, command: Sequence[str], plan: LaunchPlan, stop_timeout_s: float):
        self._command, self._plan, self._stop_timeout_s = command, plan, stop_timeout_s
        self._processes: list[subprocess.Popen] = []
        self._received: list[str] = []
        self._said = tempfile.TemporaryDirectory(prefix="flowers-said-")  # see flowers.console.error
        self._deadline_s: float | None = None

    def run(self) -> int:
        """Start all, wait for all.

        Returns:
            the exit code of the rank that failed first (128 + N if signal N killed it); else 75 if a rank was
            stopped, 3 if one ended with it, 0 if all ended well.
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal does not end the job
        for name in FORWARDED:
            if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:  # as under nohup
                signal.signal(getattr(signal, name), self._on_signal)
        several = self._plan.num_processes > 1
        is_piped = sys.stdin is not None and not sys.stdin.isatty()  # predict.py --input - reads it, on one process
        try:
            for local_rank in range(self._plan.local_processes):
                self._processes.append(
                    subprocess.Popen(
                        self._command,
                        env=self._plan.environment(local_rank) | {"FLOWERS_SAID_DIR": self._said.name},
                        stdin=subprocess.DEVNULL if several and not (is_piped and local_rank == 0) else None,
                        start_new_session=True,  # a terminal's Ctrl-C then comes once, through us
                        preexec_fn=functools.partial(die_with, os.getpid()) if sys.platform == "linux" else None,
                    )
                )
            if self._received:  # while they were being started
                self._send(signal.SIGTERM)
            return self._wait()
        finally:
            for process in self._processes:
                if process.poll() is None:
                    kill_session(process)
            self._said.cleanup()

    def _on_signal(self, number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        self._received.append(name)
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + self._stop_timeout_s
        if self._received.count("SIGINT") > 2:  # somebody is hammering on Ctrl-C
            self._deadline_s = time.monotonic()
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    def _wait(self) -> int:
        failed: int | None = None
        while any(code is None for code in self._codes()):
            if failed is None and (failed := self._first_failure()) is not None:
                self._send(signal.SIGTERM)
                self._deadline_s = time.monotonic() + FAILURE_GRACE_S
            if self._deadline_s is not None and time.monotonic() > self._deadline_s:
                break
            time.sleep(POLL_S)
        failed = self._first_failure() if failed is None else failed
        late = [rank for rank, code in enumerate(self._codes()) if code is None]
        for rank in late:
            kill_session(self._processes[rank])
        return self._outcome(failed, late)

    def _outcome(self, failed: int | None, late: Sequence[int]) -> int:
        """The exit code, and a line for each rank that ended without one.

        Args:
            failed: local rank that failed first.
            late: local ranks of those that did not end, and were killed.
        """
        codes = self._codes()
        # A rank that a signal ends may be seen after those that it pulled down; those we ended do not count.
        ended = [rank for rank, code in enumerate(codes) if code < 0 and rank not in late]
        ended = [rank for rank in ended if failed in (None, rank) or codes[rank] != -signal.SIGTERM]
        for rank in ended:
            hint = " before it could save" if self._received else ""
            if codes[rank] == -signal.SIGKILL:
                hint = "; often the machine ran out of memory: try a smaller -b or -j"
            console.error(f"rank {self._rank(rank)} was ended by {signal.Signals(-codes[rank]).name}{hint}")
        if failed is not None:
            code = codes[ended[0] if ended else failed]
            return 128 - code if code < 0 else code  # as a shell puts it
        if late:
            ranks = ", ".join(str(self._rank(rank)) for rank in late)
            console.error(
                f"rank {ranks} had not ended {self._stop_timeout_s:g} s after {self._received[0]} and is killed; the "
                "last checkpoint is whole; give more time with --stop-timeout"
            )
            return EXIT_FAILED
        return max(codes, key=ENDED_WELL.index)

    def _codes(self) -> list[int | None]:
        return [process.poll() for process in self._processes]

    def _first_failure(self) -> int | None:
        """Local rank of a process that failed."""
        failed = (rank for rank, code in enumerate(self._codes()) if code is not None and code not in ENDED_WELL)
        return next(failed, None)

    def _rank(self, local_rank: int) -> int:
        return self._plan.machine_rank * self._plan.local_processes + local_rank


def kill_session(process: subprocess.Popen) -> None:
    """End a rank with all that it started, loader processes too."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def die_with(launcher: int) -> None:
    """Make a new rank end with its launcher, however that ends, instead of holding memory, GPUs and the port."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != launcher:  # which ended before this could take hold
        os.kill(os.getpid(), signal.SIGKILL)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def count_gpus() -> int:
    """GPUs that a job would see."""
    import torch  # seconds; needed only where nobody said how many processes

    return torch.cuda.device_count()


def _installed(command: str) -> str:
    """The file of a job's console command, which is a Python script.

    Raises:
        UsageError: there is none.
    """
    folders = [str(Path(sys.executable).parent), *os.get_exec_path()]
    path = shutil.which(command, path=os.pathsep.join(folders)) if command.startswith("flowers-") else None
    if path is None:
        raise UsageError(
            f"{command}: no such file; expected a job such as jobs/train.py, or flowers-train if installed"
        )
    return path


def parse(argv: Sequence[str]) -> tuple[LaunchConfig, list[str]]:
    """Read the command line: the launcher's flags, and the job with its own ones.

    Raises:
        UsageError: a wrong flag, or no such job.
    """
    end = before_a_command([*options(LaunchConfig), CONFIG, LOG], argv)
    config, job = parse_flags(LaunchConfig, choose_log(argv[:end]), __doc__), list(argv[end:])
    if config.check and job:
        raise UsageError(f"--check stands in the place of a script, got {job[0]} too: leave one of them out")
    if config.check:
        job = [str(Path(__file__).with_name("launch_check.py"))]
    if not job:
        raise UsageError("no script is given, expected a job such as jobs/train.py; see flowers-launch --help")
    if not Path(job[0]).is_file():
        job[0] = _installed(job[0])
    return config, job


def plan(config: LaunchConfig) -> LaunchPlan:
    """What is to be started here.

    Raises:
        UsageError: numbers that do not fit together.
    """
    machines, rank = config.num_machines, config.machine_rank
    if machines > 1 and rank is None:
        of_slurm = os.environ.get("SLURM_NODEID", "")
        rank = int(of_slurm) if of_slurm.isdecimal() else -1
    if not 0 <= (rank or 0) < max(1, machines):
        raise UsageError(
            f"--machine-rank: got {rank}, expected 0 to {machines - 1}, another on each of --num-machines {machines}"
        )
    if machines > 1 and not (config.main_process_ip and config.main_process_port):
        raise UsageError("--num-machines above 1 needs --main-process-ip and --main-process-port of machine 0")
    processes = machines * max(1, count_gpus()) if config.num_processes is None else config.num_processes
    if machines < 1 or processes < 1 or processes % machines:
        raise UsageError(
            f"--num-processes {processes} on --num-machines {machines}: expected the same number, at least one, on each"
        )
    if processes // machines > (most := most_processes()):
        raise UsageError(f"--num-processes {processes}: expected at most {most} on each machine, by its CPUs")
    address, port = config.main_process_ip or "127.0.0.1", config.main_process_port or free_port()
    return LaunchPlan(processes, machines, rank or 0, address, port)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a job to its end; see ``Ranks.run`` for the exit code."""
    try:
        config, job = parse(sys.argv[1:] if argv is None else argv)
        code = Ranks([sys.executable, *job], plan(config), config.stop_timeout).run()
        if code == EXIT_STOPPED and config.stopped_mark is not None:
            config.stopped_mark.touch()
            return 0
        return code
    except FlowersError as error:
        console.error(str(error))
        return error.exit_code
    except OSError as error:  # no process, no memory, no room for the mark
        console.error(f"cannot launch: {error}")
        return EXIT_FAILED


def cli() -> None:
    """The console command ``flowers-launch``."""
    console.open_streams()
    raise SystemExit(main())


if __name__ == "__main__":
    sys.argv[0] = "flowers-launch"  # as ``--help`` and messages name it
    cli()
