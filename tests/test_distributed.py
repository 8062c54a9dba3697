"""What processes tell one another: results, and errors that end all of them alike."""

import os
from collections.abc import Callable

import pytest
from jobs_in_processes import free_port, server

from flowers import distributed
from flowers.distributed import first_rank_here, from_all, from_main
from flowers.errors import DataError, FlowersError, PeerError, UsageError


def answers(function: Callable[[int], object], local_ranks: list[int]) -> list:
    """What a function returns, or the error it raises, on each of some processes that form a group.

    They are not forked from here: another test's Accelerator would be theirs too.
    """
    results = server.Queue()
    port = free_port()
    ranks = [
        server.Process(target=answer, args=(function, rank, local, len(local_ranks), port, results))
        for rank, local in enumerate(local_ranks)
    ]
    for rank in ranks:
        rank.start()
    found = dict(results.get(timeout=60) for _ in ranks)
    for rank in ranks:
        rank.join()
    return [found[rank] for rank in range(len(ranks))]


def answer(function: Callable[[int], object], rank: int, local: int, ranks: int, port: int, results) -> None:
    group = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()})
    distributed.start("no")
    try:
        results.put((rank, function(rank)))
    except FlowersError as error:
        results.put((rank, (type(error), str(error), error.exit_code)))


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
