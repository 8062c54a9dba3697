"""What processes tell one another: results, and errors that end all of them alike."""

import os
import socket

import pytest
from jobs_in_processes import answers, free_port, server

from flowers import distributed, environment
from flowers.distributed import from_all, from_main
from flowers.environment import first_rank_here
from flowers.errors import DataError, FlowersError, PeerError, ProcessError, UsageError


def of_main(rank: int) -> object:
    first = from_main(lambda: {"rank": rank})

    def wrong() -> None:
        raise UsageError("--flag: wrong")

    try:
        from_main(wrong)
    except FlowersError as error:
        return first, type(error), str(error), error.exit_code


@pytest.mark.processes
def test_what_the_main_process_finds_out_all_hear():
    assert answers(of_main, [0, 1]) == [
        ({"rank": 0}, UsageError, "--flag: wrong", 2),
        ({"rank": 0}, PeerError, "", 2),
    ]


def of_all(rank: int) -> object:
    results, first = from_all(lambda: 10 * rank), first_rank_here()

    def wrong_on_one() -> None:
        if rank == 2:
            raise DataError("no such file")

    try:
        from_all(wrong_on_one)
    except FlowersError as error:
        return results, first, type(error), str(error)


@pytest.mark.processes
def test_what_each_of_two_machines_finds_out_all_hear():
    results = [0, 10, 20]
    assert answers(of_all, [0, 1, 0]) == [
        (results, 0, PeerError, ""),
        (results, 0, PeerError, ""),
        (results, 2, DataError, "no such file"),
    ]


def test_one_process_alone_asks_nobody():
    assert from_main(lambda: 1) == 1
    assert from_all(lambda: 2) == [2]

    def wrong() -> None:
        raise DataError("no such file")

    for ask in (from_main, from_all):
        with pytest.raises(DataError, match="no such file"):
            ask(wrong)


STEP = {"JOB_ID": 7, "STEP_ID": 2, "STEP_NUM_TASKS": 2, "STEP_TASKS_PER_NODE": "2", "STEP_NODELIST": "127.0.0.1"}


def answer_in_step(task: int, results) -> None:
    for name in environment._BY_MPI:  # what srun --mpi=pmi2 sets beside its own
        os.environ[name] = "2"
    own = {**STEP, "NODEID": 0, "PROCID": task, "LOCALID": task}
    os.environ.update({f"SLURM_{name}": str(value) for name, value in own.items()})
    os.environ["MASTER_PORT"] = str(free_port() if task == 0 else results.get())
    if task == 0:
        results.put(os.environ["MASTER_PORT"])
    environment.join_step()
    distributed.start("no")
    results.put(from_all(lambda: (task, first_rank_here())))


@pytest.mark.processes
def test_tasks_of_a_plain_srun_form_a_group():
    results = server.SimpleQueue()
    tasks = [server.Process(target=answer_in_step, args=(task, results)) for task in range(2)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(60)
    assert [results.get() for _ in tasks] == 2 * [[(0, 0), (1, 0)]]


def meet_nobody(rank: int, port: int, results) -> None:
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()})
    try:
        distributed.start("no", timeout_s=1)
    except ProcessError as error:
        results.put(str(error))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("rank", "is_taken", "reason"), [(0, False, "1/2 clients joined"), (1, False, "connect"), (0, True, "EADDRINUSE")]
)
def test_a_group_that_does_not_meet_says_where_it_tried(rank: int, is_taken: bool, reason: str):
    """Not that another process is gone: it never came, is elsewhere, or the port is somebody else's."""
    results = server.SimpleQueue()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if is_taken:
            other.listen()
        port = other.getsockname()[1]
        if not is_taken:
            other.close()
        process = server.Process(target=meet_nobody, args=(rank, port, results))
        process.start()
        said = results.get()
        process.join(60)
    assert said.startswith(f"the processes do not meet at 127.0.0.1:{port} (")
    assert reason in said
    assert "\n" not in said
