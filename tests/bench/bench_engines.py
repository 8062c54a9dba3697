"""Engines against the loops that people write, same network, same pictures, one run.

    python tests/bench/bench_engines.py                     # Lite0 with a quick head on real photos
    python tests/bench/bench_engines.py --checkpoint BUNDLE # another model
    python tests/bench/bench_engines.py --no-compile        # compiling takes a minute

All ways take turns; of each the fastest round counts. Agreement is with plain float32: the share of photos with the
same best class, and the largest difference of a probability. "again" is the share of photos that were computed a
second time in float32.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flowers import console
from flowers.data.folders import ClassIndex, scan_images
from flowers.data.images import read_image
from flowers.data.transforms import Preprocessing
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle, load_bundle, save_bundle
from flowers.models.engines import build_engine
from flowers.models.heads import Classifier, HeadSpec, build_head
from flowers.processes import cpus_per_process

FLOWERS102 = Path(os.environ.get("FLOWERS102", Path(__file__).parents[3] / "shared" / "flowers102"))
OURS = [("torch", "float32"), ("torch", "bf16"), ("compile", "bf16"), ("openvino", "float32"), ("openvino", "bf16")]
PLAIN = "plain loop: eager float32"
LOOPS = {
    PLAIN: (torch.float32, torch.contiguous_format),
    "plain loop, channels_last": (torch.float32, torch.channels_last),
    "plain loop, channels_last, bf16": (torch.bfloat16, torch.channels_last),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a bundle; default: Lite0 with a quick head")
    parser.add_argument("--photos", type=Path, default=FLOWERS102 / "photos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    threads = cpus_per_process()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.checkpoint or quick_bundle(Path(folder) / "bundle", threads)
        bundle = load_bundle(path)
        photos = read([options.photos / name for name in scan_images(options.photos)], bundle.preprocessing)
        ours = [way for way in OURS if options.compile or way[0] != "compile"]
        ways: dict[str, Callable[[], np.ndarray]] = {
            name: plain_loop(bundle, photos, options.batch_size, *how) for name, how in LOOPS.items()
        }
        engines, build_s = {}, {}
        for name, precision in ours:
            for attempt in ("first", "again"):
                start_s = time.perf_counter()
                engine = build_engine(
                    load_bundle(path), engine=name, precision=precision, batch_size=options.batch_size
                )
                build_s[f"{name} {precision}", attempt] = time.perf_counter() - start_s
                if attempt == "first":
                    engine.close()
            engines[f"{name} {precision}"] = engine
            ways[f"{name} {precision}"] = lambda engine=engine: np.concatenate(list(through(engine, photos)))
        show(ways, engines, build_s, photos, options.rounds, bundle.model, threads)
        for engine in engines.values():
            engine.close()


def show(ways: dict, engines: dict, build_s: dict, photos: np.ndarray, rounds: int, model: str, threads: int) -> None:
    """Let the ways take turns, and print the table."""
    best_s = dict.fromkeys(ways, np.inf)
    probs = {}
    for _ in range(rounds):
        for name, way in ways.items():
            start_s = time.perf_counter()
            probs[name] = way()
            best_s[name] = min(best_s[name], time.perf_counter() - start_s)
    rows = []
    for name in ways:
        engine = engines.get(name)
        starts = [f"{build_s[name, attempt]:.1f}" if engine else "" for attempt in ("first", "again")]
        rows.append((
            name, f"{len(photos) / best_s[name]:.0f}", f"{best_s[PLAIN] / best_s[name]:.1f}",
            f"{(probs[name].argmax(1) == probs[PLAIN].argmax(1)).mean():.2%}",
            f"{np.abs(probs[name] - probs[PLAIN]).max():.5f}",
            f"{engine.settled / rounds / len(photos):.1%}" if engine else "", *starts,
        ))  # fmt: skip
    title = f"{model}, {len(photos)} photos of {photos.shape[1]} px, {threads} threads, torch {torch.__version__}"
    columns = ("engine", "images/s", "times plain", "same top1", "max diff", "again", "first start, s", "next, s")
    console.table(f"{title}, {platform.machine()}, best of {rounds} rounds", columns, rows)


def plain_loop(
    bundle: Bundle, photos: np.ndarray, batch_size: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> Callable[[], np.ndarray]:
    """The loop that people write: batches through the network in evaluation mode."""
    network = bundle.build().to(dtype=dtype, memory_format=memory_format)

    def loop() -> np.ndarray:
        probs = []
        with torch.inference_mode():
            for batch in torch.from_numpy(photos).split(batch_size):
                images = bundle.preprocessing.normalize(batch, dtype).contiguous(memory_format=memory_format)
                probs.append(network(images).float().softmax(1).numpy())
        return np.concatenate(probs)

    return loop


def through(engine, photos: np.ndarray) -> Iterator[np.ndarray]:
    """Probs of all photos, four batches in flight."""
    handles = []
    for start in range(0, len(photos), engine.batch_size):
        handles.append(engine.submit(photos[start : start + engine.batch_size]))
        if len(handles) == 4:
            yield handles.pop(0).result().probs
    yield from (handle.result().probs for handle in handles)


def quick_bundle(folder: Path, threads: int) -> Path:
    """Lite0 with a linear head trained on five real photos of each class, in a few seconds."""
    backbone = build_backbone("efficientnet_lite0")
    classes = sorted(path.name for path in (FLOWERS102 / "train").iterdir())
    paths = [path for name in classes for path in sorted((FLOWERS102 / "train" / name).iterdir())[:5]]
    targets = torch.tensor([classes.index(path.parent.name) for path in paths])
    engine = build_engine(backbone.network, backbone.preprocessing, threads=threads)
    images = read(paths, backbone.preprocessing)
    handles = [engine.submit(images[start : start + 32]) for start in range(0, len(images), 32)]
    features = torch.from_numpy(np.concatenate([handle.result().features for handle in handles]))
    engine.close()
    spec = HeadSpec(len(classes), backbone.num_features)
    torch.manual_seed(0)
    head = build_head(spec)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), targets).backward()
        optimizer.step()
    state = Classifier(backbone.network, head).state_dict()
    names = ClassIndex(tuple(classes), tuple(classes))
    save_bundle(Bundle("efficientnet_lite0", spec, names, backbone.preprocessing, {}, {}, state), folder)
    return folder


def read(paths: list[Path], view: Preprocessing) -> np.ndarray:
    """Views uint8 [N, S, S, 3] of all files."""
    return np.stack([view.view(read_image(path, min_short_side=view.min_short_side)) for path in paths])


if __name__ == "__main__":
    main()
