"""Bulk prediction against its ceiling and against the plain loop that people write: the same weights, one run.

    python tests/bench/bench_predict.py                     # EfficientNet-Lite0 on the real photos
    python tests/bench/bench_predict.py --checkpoint C --photos DIR --files 3000 --rounds 3

The photos are repeated to so many files by hard links. Ours are true runs of jobs/predict.py in processes of their
own: "first row" is from the command to the first shard on disk (of the plain loop: to the end of its first batch),
"steady" from there to the last one. All ways take turns. The ceiling is 1 / (1 / decoding alone + 1 / inferring alone),
each measured on all CPUs in the same round, with the code of the run itself.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measuring import FLOWERS102, ROOT, Row, duration, photos_in, rate, run_alone, short, times_faster
from models import quick_bundle

LOOP_FILES = 300
Figures = dict[str, float]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--photos", type=Path, default=FLOWERS102 / "photos")
    parser.add_argument("--checkpoint", type=Path, help="default: Lite0 and a head fitted to train/ beside the photos")
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["openvino", "torch"])
    parser.add_argument("--seconds", type=float, default=3.0, help="for decoding alone, and for inferring alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    if options.one:
        print(json.dumps(alone(options.checkpoint, options.photos, options.one, options.seconds)))
        raise SystemExit(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = options.checkpoint or quick_bundle(folder / "bundle")
        photos = repeat(options.photos, folder / "photos", options.files)
        found: dict[str, list[Figures]] = {}
        for number in range(options.rounds):
            found.setdefault("plain", []).append(plain_loop(checkpoint, photos))
            for engine in options.engines:
                ours = run_job(checkpoint, photos, folder / f"{engine}-{number}.csv", ["--engine", engine])
                both = alone_elsewhere(checkpoint, photos, engine, options.seconds)
                found.setdefault(engine, []).append({**ours, **both})
    return [row for engine in options.engines for row in rows_of(engine, found[engine], found["plain"])]


def rows_of(engine: str, ours: list[Figures], plain: list[Figures]) -> list[Row]:
    """What an engine's rounds say."""
    seconds = [1 / figures["per_s"] for figures in ours]
    plain_s = [1 / figures["per_s"] for figures in plain]
    shares = [figures["per_s"] * (1 / figures["decode_per_s"] + 1 / figures["infer_per_s"]) for figures in ours]
    cpu_ms = short(min(figures["cpu_ms"] for figures in ours))
    against = (
        f"{times_faster(plain_s, seconds)} the plain loop, {rate(1, plain_s)}; {min(shares):.0%} to {max(shares):.0%} "
        f"of the ceiling that decoding and inferring alone set; {cpu_ms} ms of CPU a photo, start included"
    )
    first_s, plain_first_s = ([figures["first_row_s"] for figures in ways] for ways in (ours, plain))
    return [
        Row(f"photos to rows, {engine}", rate(1, seconds), against),
        Row(
            f"command to first row, {engine}",
            duration(first_s),
            f"{times_faster(plain_first_s, first_s)} as fast as the plain loop, {duration(plain_first_s)}",
        ),
    ]


def repeat(photos: Path, target: Path, count: int) -> Path:
    """A folder of so many photos, which are links to these."""
    paths = photos_in(photos)
    target.mkdir()
    for index in range(count):
        source, link = paths[index % len(paths)], target / f"{index:06}.jpg"
        try:
            os.link(source, link)
        except OSError:  # another file system
            link.symlink_to(source.resolve())
    return target


def run_job(
    checkpoint: Path,
    photos: Path,
    output: Path,
    flags: Sequence[str] = (),
    launcher: Sequence[object] = (sys.executable,),
) -> Figures:
    """A true run, watched from outside."""
    job = [*launcher, ROOT / "jobs" / "predict.py"]
    command = [*job, "--checkpoint", checkpoint, "--input", photos, "--output", output]
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(list(map(str, [*command, *flags])), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    seen: list[tuple[float, int]] = []
    shard_size = 0
    while process.poll() is None:
        job = next(Path(f"{output}.parts").glob("?" * 12), None)
        if job is not None:
            parts = [part for part in (os.listdir(job / "parts") if (job / "parts").is_dir() else []) if part.isdigit()]
            if parts and (not seen or len(parts) > seen[-1][1]):
                seen.append((time.perf_counter(), len(parts)))
                if not shard_size:
                    shard_size = json.loads((job / "job.json").read_text())["value"]["settings"]["shard_size"]
        time.sleep(0.02)
    assert process.returncode == 0, process.stdout.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if len(seen) < 3:
        raise SystemExit(f"{len(os.listdir(photos))} files were done before a rate was seen: give more --files")
    (first_s, first), (last_s, last) = seen[0], seen[-2]  # the last shard is shorter
    return {
        "per_s": (last - first) * shard_size / (last_s - first_s),
        "first_row_s": first_s - start_s,
        "cpu_ms": 1000 * cpu_s / len(os.listdir(photos)),
    }


def alone_elsewhere(checkpoint: Path, photos: Path, engine: str, seconds: float) -> Figures:
    """``alone`` in a process of its own."""
    command = [sys.executable, __file__, "--one", engine, "--checkpoint", checkpoint, "--photos", photos]
    done = subprocess.run(
        [*map(str, command), "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def alone(checkpoint: Path, photos: Path, engine_name: str, seconds: float) -> Figures:
    """Decoding with no network behind it, and the network with pictures that are decoded already."""
    from flowers.config.benchmark import BenchmarkConfig
    from flowers.engines.engine import build_engine
    from flowers.machine import cpus_per_process
    from flowers.models.bundle import load_bundle
    from flowers.prediction.benchmark import KnownAnswers, Sample, infer_rate, pipeline_rate

    bundle = load_bundle(checkpoint)
    sample = Sample(BenchmarkConfig(checkpoint, photos, images=300), bundle.preprocessing)
    known = KnownAnswers(len(bundle.classes.folders), 32)
    decode_per_s = pipeline_rate(known, bundle, sample, cpus_per_process(), seconds)
    engine = build_engine(bundle, engine=engine_name, batch_size=32)
    infer_per_s = infer_rate(engine, sample, seconds)
    engine.close()
    return {"decode_per_s": decode_per_s, "infer_per_s": infer_per_s}


def plain_loop(checkpoint: Path, photos: Path) -> Figures:
    """What people write, in a process of its own; its rate begins after the first batch."""
    command = [sys.executable, "-c", _PLAIN_LOOP, str(checkpoint), str(photos), str(LOOP_FILES)]
    start_s = time.time()
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    first_s, per_s = map(float, found.stdout.split()[-2:])
    return {"per_s": per_s, "first_row_s": first_s - start_s}


_PLAIN_LOOP = """
import csv, os, sys, tempfile, time
from pathlib import Path
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from flowers.models.bundle import load_bundle

bundle = load_bundle(Path(sys.argv[1]))
p = bundle.preprocessing
files = sorted(Path(sys.argv[2]).iterdir())[: int(sys.argv[3])]
mode = getattr(transforms.InterpolationMode, p.interpolation.upper())
transform = transforms.Compose([
    transforms.Resize(p.resize, mode), transforms.CenterCrop(p.crop), transforms.ToTensor(),
    transforms.Normalize(p.mean, p.std),
])

class Photos(Dataset):
    def __len__(self):
        return len(files)
    def __getitem__(self, index):
        return transform(Image.open(files[index]).convert("RGB")), str(files[index])

model = bundle.build()
with tempfile.TemporaryFile("w", newline="") as out, torch.no_grad():
    writer = csv.writer(out)
    done, start = 0, None
    for images, paths in DataLoader(Photos(), batch_size=32, num_workers=2):
        probs = torch.softmax(model(images), dim=1)
        top_probs, top_classes = probs.topk(min(5, probs.shape[1]), dim=1)
        for path, ps, cs in zip(paths, top_probs, top_classes):
            writer.writerow([path, *[v for p, c in zip(ps, cs) for v in (bundle.classes.labels[c.item()], p.item())]])
        if start is None:
            first, start = time.time(), time.perf_counter()
        else:
            done += len(paths)
    print(first, done / (time.perf_counter() - start))
"""


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
