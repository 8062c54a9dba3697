"""Bulk prediction against its ceiling and against the plain loop that people write: the same weights, one run.

    python tests/bench/bench_predict.py                     # EfficientNet-Lite0 on the real photos
    python tests/bench/bench_predict.py --checkpoint C --photos DIR --files 3000 --rounds 3

The photos are repeated to so many files by hard links. Ours are true runs of jobs/predict.py in processes of their
own: "first row" is from the command to the first shard on disk, "steady" from there to the last one. All ways take
turns; of each the fastest round counts. The ceiling is 1 / (1 / decoding alone + 1 / inferring alone), each measured on
all CPUs with the code of the run itself.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PHOTOS = Path(os.environ.get("FLOWERS102", Path(__file__).parents[3] / "shared" / "flowers102"))
ROOT = Path(__file__).parents[2]
LOOP_FILES = 300
ENGINES = {"openvino": ["--engine", "openvino"], "torch": ["--engine", "torch"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, default=PHOTOS / "photos")
    parser.add_argument("--checkpoint", type=Path, help="default: Lite0 and a head fitted to train/ beside the photos")
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_alone(options.checkpoint, options.photos, options.one)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = options.checkpoint or _fit_head(folder / "bundle", PHOTOS / "train")
        photos = _repeat(options.photos, folder / "photos", options.files)
        best: dict[str, dict[str, float]] = {}
        for number in range(options.rounds):
            _keep(best, "plain loop", _plain_loop(checkpoint, photos))
            for engine in options.engines:
                _keep(best, engine, _job(checkpoint, photos, folder / f"{engine}-{number}.csv", ENGINES[engine]))
                command = [sys.executable, __file__, "--one", engine, "--checkpoint", checkpoint, "--photos", photos]
                alone = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                _keep(best, f"{engine} alone", json.loads(alone.splitlines()[-1]))
        _tell(best, options)


def _tell(best: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    loop = best["plain loop"]["per_s"]
    print(f"{options.files} files, {len(os.sched_getaffinity(0))} CPUs, best of {options.rounds} rounds, images/s")
    print(f"plain loop: Dataset, Pillow, DataLoader of 2 workers, eager float32   {loop:7.1f}    1.0 x")
    for engine in options.engines:
        ours, alone = best[engine], best[f"{engine} alone"]
        ceiling = 1 / (1 / alone["decode_per_s"] + 1 / alone["infer_per_s"])
        print(
            f"jobs/predict.py --engine {engine:44} {ours['per_s']:7.1f}  {ours['per_s'] / loop:5.1f} x\n"
            f"    ceiling {ceiling:.0f} (decoding alone {alone['decode_per_s']:.0f}, inferring alone "
            f"{alone['infer_per_s']:.0f}): {ours['per_s'] / ceiling:.0%} of it reached; "
            f"first row after {ours['first_row_s']:.1f} s; {ours['cpu_ms']:.1f} ms of CPU a photo, start included"
        )


def _keep(best: dict[str, dict[str, float]], name: str, found: dict[str, float]) -> None:
    """Keep the best of each figure: the highest of what is per second, the lowest of what is time."""
    print(name, {key: round(value, 1) for key, value in found.items()}, file=sys.stderr, flush=True)
    kept = best.setdefault(name, found)
    for key, value in found.items():
        kept[key] = max(kept[key], value) if key.endswith("per_s") else min(kept[key], value)


def _repeat(photos: Path, target: Path, count: int) -> Path:
    """A folder of so many photos, which are links to these."""
    from flowers.data.folders import scan_images

    paths = [photos / path for path in scan_images(photos)]
    target.mkdir()
    for index in range(count):
        source, link = paths[index % len(paths)], target / f"{index:06}.jpg"
        try:
            os.link(source, link)
        except OSError:  # another file system
            link.symlink_to(source.resolve())
    return target


def _fit_head(target: Path, train: Path) -> Path:
    """A bundle of pre-trained Lite0 and a head fitted by least squares, whose answers are as sure as real ones."""
    import torch

    from flowers.data.folders import ClassIndex, scan_images
    from flowers.data.images import read_image
    from flowers.models.backbones import build_backbone
    from flowers.models.bundle import Bundle, save_bundle
    from flowers.models.engines import build_engine
    from flowers.models.heads import Classifier, HeadSpec, build_head

    backbone = build_backbone("efficientnet_lite0")
    paths = list(scan_images(train))
    folders = tuple(sorted({Path(path).parent.name for path in paths}))
    engine = build_engine(backbone.network, backbone.preprocessing, features=True)
    view = backbone.preprocessing
    features = []
    for start in range(0, len(paths), 32):
        images = [
            view.view(read_image(train / path, min_short_side=view.min_short_side))
            for path in paths[start : start + 32]
        ]
        features.append(engine.submit(np.stack(images)).result().features)
    engine.close()
    inputs = np.concatenate(features).astype(np.float64)
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    targets = np.array([[Path(path).parent.name == name for name in folders] for path in paths], np.float64)
    weights = np.linalg.solve(inputs.T @ inputs + 100 * np.eye(inputs.shape[1]), inputs.T @ targets) * 15
    spec = HeadSpec(len(folders), backbone.num_features)
    classifier = Classifier(backbone.network, build_head(spec))
    with torch.no_grad():
        classifier.head.output.weight.copy_(torch.from_numpy(weights[:-1].T))
        classifier.head.output.bias.copy_(torch.from_numpy(weights[-1]))
    classes = ClassIndex(folders, folders)
    save_bundle(Bundle("efficientnet_lite0", spec, classes, view, {}, {}, classifier.state_dict()), target)
    return target


def _job(checkpoint: Path, photos: Path, output: Path, flags: list[str]) -> dict[str, float]:
    """A true run, watched from outside."""
    command = [sys.executable, "-m", "jobs.predict", "--checkpoint", checkpoint, "--input", photos, "--output", output]
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
                    shard_size = json.loads((job / "job.json").read_text())["settings"]["shard_size"]
        time.sleep(0.02)
    assert process.returncode == 0, process.stdout.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (first_s, first), (last_s, last) = seen[0], seen[-2]  # the last shard is shorter
    return {
        "per_s": (last - first) * shard_size / (last_s - first_s),
        "first_row_s": first_s - start_s,
        "cpu_ms": 1000 * cpu_s / len(os.listdir(photos)),
    }


def _alone(checkpoint: Path, photos: Path, engine_name: str) -> dict[str, float]:
    """Decoding with no network behind it, and the network with pictures that are decoded already."""
    from flowers.data.folders import scan_images
    from flowers.data.images import read_image
    from flowers.models.bundle import load_bundle
    from flowers.models.engines import build_engine
    from flowers.prediction.filelist import Entry
    from flowers.prediction.inputs import read_input
    from flowers.prediction.pipeline import Pipeline
    from flowers.prediction.rows import RowFormat
    from flowers.processes import cpus_per_process

    bundle = load_bundle(checkpoint)
    view = bundle.preprocessing
    entries = [Entry(os.fsencode(path)) for path in scan_images(photos)][:1500]
    nothing = types.SimpleNamespace(probs=np.full((32, len(bundle.classes.folders)), 0.01, np.float32), features=None)

    class NullEngine:
        batch_size = 32

        def submit(self, images: np.ndarray) -> types.SimpleNamespace:
            outputs = types.SimpleNamespace(probs=nothing.probs[: len(images)])
            return types.SimpleNamespace(result=lambda: outputs)

    rows = RowFormat(bundle.classes.labels, bundle.classes.folders, 5, 0.0, "csv")
    root = os.fsencode(photos)
    decoder = Pipeline(lambda entry: read_input(root, entry), view, NullEngine(), rows, workers=cpus_per_process())
    start_s = time.perf_counter()
    done = sum(sum(result.counts.values()) for result in decoder.run([(0, entries)]))
    decode_per_s = done / (time.perf_counter() - start_s)
    decoder.close()

    images = np.stack(
        [
            view.view(read_image(read_input(root, entry), min_short_side=view.min_short_side))
            for entry in entries[: min(len(entries), 320)]
        ]
    )
    engine = build_engine(bundle, engine=engine_name, batch_size=32)

    def infer(rounds: int) -> Iterator[int]:
        handles = []
        for _ in range(rounds):
            for start in range(0, len(images), 32):
                handles.append(engine.submit(images[start : start + 32]))
                if len(handles) == 4:
                    yield len(handles.pop(0).result().probs)
        for handle in handles:
            yield len(handle.result().probs)

    sum(infer(1))
    start_s = time.perf_counter()
    infer_per_s = sum(infer(3)) / (time.perf_counter() - start_s)
    engine.close()
    return {"decode_per_s": decode_per_s, "infer_per_s": infer_per_s}


def _plain_loop(checkpoint: Path, photos: Path) -> dict[str, float]:
    """What people write, in a process of its own; its start does not count."""
    command = [sys.executable, "-c", _PLAIN_LOOP, str(checkpoint), str(photos), str(LOOP_FILES)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return {"per_s": float(found.stdout.splitlines()[-1])}


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
        top_probs, top_classes = probs.topk(5, dim=1)
        for path, ps, cs in zip(paths, top_probs, top_classes):
            writer.writerow([path, *[v for p, c in zip(ps, cs) for v in (bundle.classes.labels[c.item()], p.item())]])
        if start is None:
            start = time.perf_counter()
        else:
            done += len(paths)
    print(done / (time.perf_counter() - start))
"""


if __name__ == "__main__":
    main()
