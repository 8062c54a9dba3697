"""What prediction costs beside decoding and inference, and whether its memory grows with the number of files.

    python tests/bench/bench_predict_overhead.py                    # 1,000 and 1,000,000 files; some minutes
    python tests/bench/bench_predict_overhead.py --files 100000

The whole job runs, from the list to the joined CSV, on a list of names, in one process and in two. Reading and decoding
are replaced by nothing, the network by a device of 20,000 images/s: its threads sleep for as long as a batch takes, in
turns, and hold no lock of Python's meanwhile. What is left is the host's CPU time beside decoding, the engine's chunks
included. It is compared with the CPU time that decoding and inferring a photo with a network (EfficientNet-Lite0 by
default) take, and with that of copying one picture's pixels, both measured in the same run.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import threading
import time
import types
from pathlib import Path

import numpy as np
from bench_predict import alone_elsewhere
from bench_scaling import launch
from measuring import FLOWERS102, ROOT, Row, run_alone, short, take_turns
from models import quick_bundle

from flowers.machine import cpus_per_process

NUM_CLASSES, BATCH_SIZE, SIDE = 102, 32, 224
DEVICE_PER_S = 20_000


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--checkpoint", type=Path, help="a bundle; default: Lite0 with a quick head")
    parser.add_argument("--data-dir", type=Path, default=FLOWERS102, help="with train/ and photos/")
    parser.add_argument("--seconds", type=float, default=3.0, help="for decoding alone, and for inferring alone")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)


def measure(options: argparse.Namespace) -> list[Row]:
    """Run the job on two lists, each in processes of its own, and compare."""
    if options.one:
        os.write(1, f"{json.dumps(_run(options.one, options.folder))}\n".encode())  # two processes share the stream
        raise SystemExit(0)
    few, many, per_file_us = {}, {}, {}
    for processes in (1, 2):
        few[processes], many[processes] = (_measure(files, processes) for files in (1000, options.files))
        cpu_s, files = (many[processes][name] - few[processes][name] for name in ("cpu_s", "files"))
        per_file_us[processes] = 1e6 * cpu_s / files
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or quick_bundle(Path(folder, "bundle"), options.data_dir / "train")
        alone = alone_elsewhere(checkpoint, options.data_dir / "photos", "auto", options.seconds)
    work_ms = 1000 * cpus_per_process() * sum(1 / per_s for per_s in alone.values())
    grown_mib = many[1]["peak_mib"] - few[1]["peak_mib"]
    return [
        Row(
            f"prediction beside decoding and inferring, {options.files} files",
            f"{per_file_us[1]:.0f} us of CPU a file",
            f"{per_file_us[1] / 1000 / work_ms:.1%} of the {short(work_ms)} ms that decoding and inferring a photo "
            f"take; memory {grown_mib:+.0f} MiB against 1,000 files",
        ),
        Row(
            f"the same over two processes, each with a device of {DEVICE_PER_S} images/s",
            f"{per_file_us[2]:.0f} us of CPU a file",
            f"{per_file_us[1]:.0f} us in one process; copying the pixels of one picture takes {_copy_us():.0f} us",
        ),
    ]


def _copy_us() -> float:
    """What it takes to copy pictures into a batch, one by one, on the same CPUs."""
    pictures, batch = np.ones((2, BATCH_SIZE, SIDE, SIDE, 3), np.uint8)

    def copy() -> None:
        for slot, picture in enumerate(pictures):
            batch[slot] = picture

    return 1e6 * min(take_turns({"copy": copy}, 20, clock_s=time.thread_time)["copy"]) / BATCH_SIZE


def _measure(files: int, processes: int) -> dict:
    """Seconds of CPU, and most MiB of one process, of the whole job in so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder, "list.txt"), "w") as file:
            file.writelines(f"photos/{index // 1000:06}/image_{index:08}.jpg\n" for index in range(files))
        first = Path(folder, "photos", "000000", "image_00000000.jpg")
        first.parent.mkdir(parents=True)
        first.touch()  # a list of which no file is there is refused
        command = [*launch(processes), __file__, "--one", files, "--folder", folder]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"cpu_s"')]
        assert len(found) == processes
        with open(Path(folder, "predictions.csv"), "rb") as file:
            assert sum(b",ok," in row for row in file) == files
    cpu_s, peak_mib = ([values[name] for values in found] for name in ("cpu_s", "peak_mib"))
    return {"files": files, "cpu_s": sum(cpu_s), "peak_mib": max(peak_mib)}


def _run(files: int, folder: Path) -> dict:
    """This process's share of the job with nothing in it."""
    from flowers.config.predict import PredictConfig
    from flowers.data.folders import ClassIndex
    from flowers.data.preprocessing import Preprocessing
    from flowers.prediction import job, kept, pipeline, predict, shard_loop

    view = np.zeros((SIDE, SIDE, 3), np.uint8)

    class NullView(Preprocessing):
        def view(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            return image

    names = tuple(map(str, range(NUM_CLASSES)))
    bundle = types.SimpleNamespace(
        hash="none", classes=ClassIndex(names, names), preprocessing=NullView(256, SIDE), head=None, made={}
    )
    job.open_model = lambda path: bundle
    shard_loop.open_engine = lambda *args, **options: _pretended_engine()
    kept.read_input = lambda root, entry: b"x"
    pipeline.decode_image = lambda data, **options: (view, None)
    cpu_s = time.process_time()
    config = PredictConfig(
        checkpoint=Path("none"), input=folder / "list.txt", output=folder / "predictions.csv", batch_size=BATCH_SIZE
    )
    code = predict.predict(config)
    assert code == 0
    cpu_s = time.process_time() - cpu_s
    return {"cpu_s": cpu_s, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _pretended_engine() -> object:
    """An engine whose device takes the same time for every batch, one after the other, as a GPU does."""
    from flowers.engines.engine import Engine
    from flowers.engines.pool import Pool

    probs = np.random.default_rng(0).dirichlet(np.ones(NUM_CLASSES), BATCH_SIZE).astype(np.float32)
    features, device = np.empty((BATCH_SIZE, 0), np.float32), threading.Lock()

    def infer(images: np.ndarray) -> list[np.ndarray]:
        with device:
            time.sleep(len(images) / DEVICE_PER_S)
        return [features, probs]

    pool = Pool(lambda: infer, BATCH_SIZE, 2, SIDE)
    return Engine("none", "float32", BATCH_SIZE, "pretended", pool, None, features=False, on_cpu=False)


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
