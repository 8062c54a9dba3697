"""What prediction costs beside decoding and inference, and whether its memory grows with the number of files.

    python tests/bench/bench_predict_overhead.py                    # 1,000 and 1,000,000 files; some minutes
    python tests/bench/bench_predict_overhead.py --files 100000

The whole job runs, from the list to the joined CSV, on a list of names; only reading, decoding and the network are
replaced by nothing. What is left is the overhead. It is compared with the CPU time that decoding and inferring a photo
with a network (EfficientNet-Lite0 by default) take, measured in the same run.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
from bench_predict import alone_elsewhere
from measuring import FLOWERS102, Row, run_alone, short
from models import quick_bundle

from flowers.machine import cpus_per_process

NUM_CLASSES = 102


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--checkpoint", type=Path, help="a bundle; default: Lite0 with a quick head")
    parser.add_argument("--data-dir", type=Path, default=FLOWERS102, help="with train/ and photos/")
    parser.add_argument("--seconds", type=float, default=3.0, help="for decoding alone, and for inferring alone")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)


def measure(options: argparse.Namespace) -> list[Row]:
    """Run the job on two lists, each in a process of its own, and compare."""
    if options.one:
        print(json.dumps(_run(options.one)))
        raise SystemExit(0)
    few, many = (_measure(files) for files in (1000, options.files))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or quick_bundle(Path(folder, "bundle"), options.data_dir / "train")
        alone = alone_elsewhere(checkpoint, options.data_dir / "photos", "auto", options.seconds)
    work_ms = 1000 * cpus_per_process() * sum(1 / per_s for per_s in alone.values())
    per_file_ms = 1000 * (many["cpu_s"] - few["cpu_s"]) / (many["files"] - few["files"])
    return [
        Row(
            f"prediction beside decoding and inferring, {many['files']} files",
            f"{1000 * per_file_ms:.0f} us of CPU a file",
            f"{per_file_ms / work_ms:.1%} of the {short(work_ms)} ms that decoding and inferring a photo take; "
            f"memory {many['peak_mib'] - few['peak_mib']:+.0f} MiB against 1,000 files",
        )
    ]


def _measure(files: int) -> dict:
    command = [sys.executable, __file__, "--one", str(files)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _run(files: int) -> dict:
    """The job with nothing in it."""
    from flowers.config.predict import PredictConfig
    from flowers.data.augment import Preprocessing
    from flowers.data.folders import ClassIndex
    from flowers.prediction import kept, pipeline, predict, shard_loop

    view = np.zeros((224, 224, 3), np.uint8)
    probs = np.random.default_rng(0).dirichlet(np.ones(NUM_CLASSES), 32).astype(np.float32)

    class NullEngine:
        name, precision, description, batch_size, on_cpu = "null", "none", "none", 32, True

        def submit(self, images: np.ndarray) -> types.SimpleNamespace:
            outputs = types.SimpleNamespace(probs=probs[: len(images)], features=None)
            return types.SimpleNamespace(result=lambda: outputs)

        def close(self) -> None: ...

    class NullView(Preprocessing):
        def view(self, image: np.ndarray) -> np.ndarray:
            return image

    names = tuple(map(str, range(NUM_CLASSES)))
    bundle = types.SimpleNamespace(
        hash="none", classes=ClassIndex(names, names), preprocessing=NullView(256, 224), head=None, made={}
    )
    predict.open_model = lambda path: bundle
    shard_loop.open_engine = lambda *args, **options: NullEngine()
    kept.read_input = lambda root, entry: b"x"
    pipeline.decode_image = lambda data, **options: (view, None)
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "list.txt")
        with open(names, "w") as file:
            file.writelines(f"photos/{index // 1000:06}/image_{index:08}.jpg\n" for index in range(files))
        first = Path(folder, "photos", "000000", "image_00000000.jpg")
        first.parent.mkdir(parents=True)
        first.touch()  # a list of which no file is there is refused
        start_s, cpu_s = time.perf_counter(), time.process_time()
        config = PredictConfig(checkpoint=Path("none"), input=names, output=Path(folder, "predictions.csv"))
        code = predict.predict(config)
        assert code == 0
        seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
        with open(Path(folder, "predictions.csv"), "rb") as file:
            assert sum(b",ok," in row for row in file) == files
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"files": files, "seconds": seconds, "cpu_s": cpu_s, "peak_mib": peak_mib}


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
