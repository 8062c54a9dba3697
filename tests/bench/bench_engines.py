"""Engines against the loops that people write, same network, same pictures, one run.

    python tests/bench/bench_engines.py                     # Lite0 with a quick head on real photos
    python tests/bench/bench_engines.py --checkpoint BUNDLE # another model
    python tests/bench/bench_engines.py --compile           # compiling takes a minute

Agreement is with plain float32: the share of photos with the same best class, and the largest difference of a
probability. "again" is the share of photos that were computed a second time in float32, "start" the seconds to build
the engine the first time and the next.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import FLOWERS102, Row, photos_in, rate, run_alone, take_turns, times_faster
from models import quick_bundle, read_views

from flowers.engines.engine import ENGINES, build_engine
from flowers.errors import FlowersError
from flowers.machine import cpu_has_bf16, cpus_per_process
from flowers.models.bundle import Bundle, load_bundle

PLAIN = "plain loop: eager float32"
LOOPS = {
    PLAIN: (torch.float32, torch.contiguous_format),
    "plain loop, channels_last": (torch.float32, torch.channels_last),
}
if cpu_has_bf16():  # elsewhere it is emulated, ten times slower
    LOOPS["plain loop, channels_last, bf16"] = (torch.bfloat16, torch.channels_last)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--checkpoint", type=Path, help="a bundle; default: Lite0 with a quick head")
    parser.add_argument("--photos", type=Path, default=FLOWERS102 / "photos")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    torch.set_num_threads(cpus_per_process())
    with tempfile.TemporaryDirectory() as folder:
        path = options.checkpoint or quick_bundle(Path(folder) / "bundle")
        bundle = load_bundle(path)
        photos = read_views(photos_in(options.photos)[: options.images], bundle.preprocessing)
        answers: dict[str, np.ndarray] = {}
        ways = {name: plain_loop(bundle, photos, options.batch_size, *how) for name, how in LOOPS.items()}
        engines, starts = {}, {}
        for name in ENGINES[1:]:
            for precision in ("float32", "bf16") if cpu_has_bf16() else ("float32",):
                if name == "compile" and not options.compile:
                    continue
                try:
                    seconds = [build(path, name, precision, options.batch_size) for _ in range(2)]
                except FlowersError as error:
                    print(f"not measured: {name} {precision}: {error}")
                    continue
                seconds[0][0].close()
                engine = engines[f"{name} {precision}"] = seconds[1][0]
                starts[f"{name} {precision}"] = [start_s for _, start_s in seconds]
                ways[f"{name} {precision}"] = lambda engine=engine: np.concatenate(list(through(engine, photos)))

        def keep(name: str, way: Callable[[], np.ndarray]) -> None:
            answers[name] = way()

        seconds = take_turns(
            {name: lambda name=name, way=way: keep(name, way) for name, way in ways.items()}, options.rounds
        )
        settled = {name: engine.settled / (options.rounds + 1) / len(photos) for name, engine in engines.items()}
        for engine in engines.values():
            engine.close()
    rows = []
    for name in list(ways)[1:]:
        same = (answers[name].argmax(1) == answers[PLAIN].argmax(1)).mean()
        more = f"same top1 {same:.1%}, largest difference {np.abs(answers[name] - answers[PLAIN]).max():.4f}"
        if name in engines:
            first_s, next_s = starts[name]
            more += f", again {settled[name]:.1%}, start {first_s:.1f} s, then {next_s:.1f} s"
        against = f"{times_faster(seconds[PLAIN], seconds[name])} eager float32, {rate(len(photos), seconds[PLAIN])}"
        rows.append(Row(f"{bundle.model}, {name}", rate(len(photos), seconds[name]), f"{against}; {more}"))
    return rows


def build(path: Path, name: str, precision: str, batch_size: int) -> tuple:
    """An engine, and the seconds that it took."""
    start_s = time.perf_counter()
    engine = build_engine(load_bundle(path), engine=name, precision=precision, batch_size=batch_size)
    return engine, time.perf_counter() - start_s


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


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
