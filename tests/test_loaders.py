"""Batches: the same whatever loads them, an honest word about bad files, and loader processes that can be killed."""

import hashlib
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_files import half_jpeg
from PIL import Image
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from flowers.data.augment import Augmentation
from flowers.data.folders import Samples
from flowers.data.loader_processes import default_workers, fit_shared_memory, make_loader, run_loader
from flowers.data.loaders import EvalLoader, TrainLoader, ViewLoader, find_bad_images
from flowers.data.order import Draw, Order
from flowers.data.preprocessing import Preprocessing
from flowers.errors import DataError, ProcessError

EVERYTHING = Augmentation(32, color_jitter=0.3, random_erasing=0.5, auto_augment="trivial")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """37 small photos of different sizes in two folders, JPEG and PNG."""
    root = tmp_path_factory.mktemp("photos")
    return draw_samples(root, 37)


def draw_samples(root: Path, count: int) -> Samples:
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        path = f"class {index % 2}/photo-{index:03d}.{'png' if index % 5 == 0 else 'jpg'}"
        (root / path).parent.mkdir(exist_ok=True)
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        size = (int(rng.integers(30, 90)), int(rng.integers(30, 90)))
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(root / path)
        paths.append(path)
    paths.sort()
    return Samples(root, paths, np.array([int(path[6]) for path in paths]))


def seen(loader: TrainLoader, samples: Samples, epoch: int, start_step: int = 0) -> list[list[tuple]]:
    """(path, target, weight, digest of the pixels) of every image of every batch."""
    return [
        [
            (samples.paths[index], int(target), float(weight), hashlib.sha256(image.numpy().tobytes()).hexdigest())
            for image, target, weight, index in zip(*batch, strict=True)
        ]
        for batch in loader.epoch(epoch, start_step)
    ]


def run_rank(rank: int, root: Path, results) -> None:
    """One of two processes of a job: its own folder with the same photos, its own four loader processes."""
    torch.set_num_threads(1)
    samples = draw_samples(root, 37)
    order = Order(37, seed=3, batch_size=4, world_size=2, sample_weights=np.arange(1.0, 38))
    loader = TrainLoader(samples, EVERYTHING, order, rank=rank, workers=4)
    results.send([seen(loader, samples, epoch) for epoch in (0, 1)])
    results.close()


@pytest.mark.processes
def test_two_processes_of_four_workers_see_what_one_without_sees(samples, tmp_path):
    """The contract, by processes that are really started: for an epoch and for the next, with repeated draws."""
    context, pipes = multiprocessing.get_context("fork"), []
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        receiver, sender = context.Pipe(duplex=False)
        context.Process(target=run_rank, args=(rank, tmp_path / str(rank), sender)).start()
        sender.close()
        pipes.append(receiver)
    order = Order(37, seed=3, batch_size=8, sample_weights=np.arange(1.0, 38))
    alone = TrainLoader(samples, EVERYTHING, order, rank=0, workers=0)
    whole = [seen(alone, samples, epoch) for epoch in (0, 1)]
    shares = [pipe.recv() for pipe in pipes]
    for epoch in (0, 1):
        pairs = zip(shares[0][epoch], shares[1][epoch], strict=True)
        # Position p is at rank p mod 2, so taking turns puts the epoch together again.
        together = [[image for turn in zip(*pair, strict=True) for image in turn] for pair in pairs]
        assert together == whole[epoch]
    drawn = [image for batch in whole[0] for image in batch if image[2]]
    assert len(drawn) == 37
    assert len({path for path, *_ in drawn}) < 37, "weighted drawing repeats some"
    assert len({digest for *_, digest in drawn}) == 37, "each repeat has a view of its own"


def test_epochs_go_on_in_any_order_with_living_workers(samples):
    order = Order(37, seed=1, batch_size=4, grad_accum_steps=2)
    alone = TrainLoader(samples, EVERYTHING, order, rank=0, workers=0)
    loader = TrainLoader(samples, EVERYTHING, order, rank=0, workers=2)
    fifth, second = loader.epoch(5, start_step=2), loader.epoch(2)
    pids = None
    for batches, epoch, start in ((fifth, 5, 2), (second, 2, 0)):
        expected = seen(alone, samples, epoch, start)
        assert [batch.indices.tolist() for batch in batches] == [
            [samples.paths.index(path) for path, *_ in batch] for batch in expected
        ]
        now = {process.pid for process in processes_of(loader)}
        assert pids is None or now == pids, "the same processes serve every epoch"
        pids = now
    begun = loader.epoch(0)
    next(begun)
    assert seen(loader, samples, 1) == seen(alone, samples, 1), "an epoch that was left is no part of the next"
    with pytest.raises(RuntimeError, match="another one was started"):
        next(begun)


def test_batch_types_and_targets(samples):
    order = Order(37, seed=0, batch_size=8)
    batch = next(TrainLoader(samples, Augmentation(24), order, rank=0, workers=0).epoch(0))
    assert (batch.images.shape, batch.images.dtype) == ((8, 24, 24, 3), torch.uint8)
    assert (batch.targets.dtype, batch.weights.dtype, batch.indices.dtype) == (
        torch.int64,
        torch.float32,
        torch.int64,
    )
    assert batch.targets.tolist() == samples.targets[batch.indices.numpy()].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generator_alone(samples, workers):
    """Dropout draws from it: the number of workers, or a resume, must not shift what it draws."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for _ in TrainLoader(samples, EVERYTHING, Order(37, 0, 8), rank=0, workers=workers).epoch(0):
        pass
    for _ in EvalLoader(samples, Preprocessing(24, 24), 8, workers=workers):
        pass
    assert torch.equal(torch.get_rng_state(), state)


def test_eval_loader_shows_each_image_once(samples):
    preprocessing = Preprocessing(28, 24)
    found = {}
    for rank in (0, 1):
        loader = EvalLoader(samples, preprocessing, 5, rank=rank, world_size=2, workers=rank)
        batches = list(loader)
        assert len(batches) == 4
        for batch in batches:
            assert batch.images.shape == (5, 24, 24, 3)
            assert not batch.images[batch.weights == 0].any()
            for image, index in zip(batch.images[batch.weights > 0], batch.indices[batch.weights > 0], strict=True):
                assert int(index) not in found
                found[int(index)] = image
    assert sorted(found) == list(range(37))
    with Image.open(samples.full_path(0)) as picture:
        assert np.array_equal(found[0], preprocessing.view(np.array(picture.convert("RGB"))))


@pytest.fixture
def spoiled(tmp_path: Path) -> Samples:
    """12 photos, of which the 3rd is cut off, the 6th is empty and the 9th is gone."""
    samples = draw_samples(tmp_path, 12)
    for index, spoil in (
        (2, lambda path: path.write_bytes(path.read_bytes()[:-200])),
        (5, lambda p: p.write_bytes(b"")),
    ):
        spoil(Path(samples.full_path(index)))
    Path(samples.full_path(8)).unlink()
    return samples


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_found_before_the_first_step(spoiled, workers):
    Path(spoiled.full_path(3)).write_bytes(half_jpeg())
    bad, damaged = find_bad_images(spoiled, workers)
    assert damaged == 1
    assert [path for path, _ in bad] == [spoiled.paths[index] for index in (2, 5, 8)]
    assert "truncated" in bad[0][1]
    assert [reason for _, reason in bad[1:]] == ["zero bytes", "file not found"]


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_counted_in_whatever_process(tmp_path, workers):
    samples = draw_samples(tmp_path, 12)
    Path(samples.full_path(3)).write_bytes(half_jpeg())
    views = ViewLoader(samples, Preprocessing(24, 24), Augmentation(24), 0, workers)
    for epoch in (0, 1):
        list(views.load([[Draw(index, epoch, index, 1.0) for index in range(first, first + 4)] for first in (0, 4, 8)]))
        assert views.num_damaged == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_turns_bad_stops_with_its_name(spoiled, workers):
    loader = TrainLoader(spoiled, Augmentation(24), Order(12, 0, 4), rank=0, workers=workers)
    with pytest.raises(DataError) as caught:
        list(loader.epoch(0))
    message = str(caught.value)
    assert "\n" not in message
    assert any(message.startswith(spoiled.full_path(index) + ": ") for index in (2, 5, 8))
    assert "--on-bad-image skip" in message
    with pytest.raises(DataError, match="truncated") as caught:
        list(EvalLoader(spoiled, Preprocessing(24, 24), 4, workers=workers))
    assert "--on-bad-image" not in str(caught.value), "evaluate.py has no such flag"


def test_what_loader_processes_get_can_be_pickled(samples):
    """For start methods other than fork."""
    loader = TrainLoader(samples, EVERYTHING, Order(37, 0, 8), rank=0, workers=0)
    views = loader._loader.dataset
    draws = next(Order(37, 0, 8).micro_batches(0, 0))
    copied = pickle.loads(pickle.dumps(views)).__getitems__(draws)
    assert torch.equal(copied.images, views.__getitems__(draws).images)


def processes_of(loader: TrainLoader) -> list:
    """The loader processes, from where torch keeps them."""
    return loader._loader._iterator._workers


def started(samples: Samples) -> tuple:
    """An epoch under way with two loader processes."""
    loader = TrainLoader(samples, Augmentation(24), Order(len(samples), 0, 1), rank=0, workers=2)
    batches = loader.epoch(0)
    next(batches)
    return loader, batches, processes_of(loader)


@pytest.fixture
def seen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks for dead loader processes after a tenth of a second without a batch, not after five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


def test_a_killed_worker_is_explained(samples, seen_soon):
    _, batches, children = started(samples)
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ProcessError, match="killed, most likely because memory ran out; use fewer --workers"):
        list(batches)


class AsksForTheEnd(Dataset):
    """Its loader processes do nothing but ask torch's event whether they shall end, until they are killed."""

    def __getitems__(self, draws: list) -> list:
        if 0 in draws:
            return draws
        frame = sys._getframe()
        while "done_event" not in frame.f_locals:
            frame = frame.f_back
        while True:
            frame.f_locals["done_event"].is_set()


@pytest.mark.timeout(120)
def test_a_worker_killed_at_any_moment_is_explained(seen_soon):
    """torch's own event has a lock, which a worker killed at the wrong moment keeps: next() never returned."""
    for _ in range(3):
        loader = make_loader(AsksForTheEnd(), [[0], [1], [2]], 2, batch_bytes=1)
        batches = run_loader(loader)
        assert next(batches) == [0]
        time.sleep(0.2)
        for child in multiprocessing.active_children():
            child.kill()
        with pytest.raises(ProcessError, match="killed"):
            next(batches)


def test_full_shared_memory_is_explained(samples, seen_soon):
    _, batches, children = started(samples)
    for child in children:
        os.kill(child.pid, signal.SIGBUS)
    with pytest.raises(ProcessError, match=r"bus error: /dev/shm is full .*--shm-size"):
        list(batches)


def test_signals_to_the_whole_job_leave_workers_working(samples):
    """A cluster signals every process; the main one saves first, and needs its workers until then."""
    loader, batches, children = started(samples)
    script = "import os, sys; [os.kill(int(pid), int(sys.argv[1])) for pid in sys.argv[2:]]"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        pids = [str(child.pid) for child in children]
        subprocess.run([sys.executable, "-c", script, str(int(number)), *pids], check=True)
    assert len(list(batches)) == 36
    assert all(child.is_alive() for child in children)
    threads = [thread.read_text() for thread in Path(f"/proc/{children[0].pid}/task").glob("*/status")]
    blocked = [int(re.search(r"SigBlk:\s*(\w+)", thread)[1], 16) >> (signal.SIGTERM - 1) & 1 for thread in threads]
    assert blocked.count(0) <= 1, "only the thread that waits for it and looks at the sender may get it"
    children[0].terminate()
    children[0].join(timeout=60)
    assert children[0].exitcode == 0, "the parent's own SIGTERM ends it"
    del loader, batches


def test_main_process_is_not_interrupted_by_a_dying_worker(samples, seen_soon):
    """torch would raise in the middle of whatever the main process does; only next() may."""
    _, batches, children = started(samples)
    os.kill(children[0].pid, signal.SIGKILL)
    children[0].join(timeout=60)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:  # the handler would run between any two of these instructions
        sum(range(100))
    with pytest.raises(ProcessError):
        list(batches)


def test_default_workers(monkeypatch):
    for cpus, local, expected in ((1, 1, 0), (2, 1, 2), (8, 2, 4), (8, 8, 0), (128, 1, 16)):
        monkeypatch.setattr("flowers.machine.available_cpus", lambda cpus=cpus: cpus)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
        assert default_workers(None) == expected
        assert default_workers(3) == 3
        assert default_workers(0) == 0


def test_fewer_workers_where_shared_memory_is_small(monkeypatch, capsys):
    class Usage:
        free = 64_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    batch_bytes = 32 * 224 * 224 * 3  # 4.8 MB: room for 10, of which the main process holds 2
    assert fit_shared_memory(16, batch_bytes) == 4
    assert "4 loader processes instead of 16" in capsys.readouterr().err
    assert fit_shared_memory(4, batch_bytes) == 4
    assert fit_shared_memory(2, 100 * batch_bytes) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert fit_shared_memory(16, batch_bytes) == 1
