"""Measure training, loading and prediction on the device, each against its ceiling in the same run; run.sh starts it.

Every measurement leaves its rows in the table as soon as it is done; what fails or finds no time left says so there.
"""

import contextlib
import importlib.util
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import results
import torch
from bench_decode import draw_photo
from bench_predict import alone_elsewhere, repeat, run_job
from bench_train_step import resident_trainer
from measuring import Row, duration, rate, short, take_turns, times_faster
from results import DEVICE
from torch import nn

from flowers.data.augment import Augmentation
from flowers.data.folders import ClassIndex, Samples
from flowers.data.loaders import TrainLoader, TrainViews
from flowers.data.order import Order
from flowers.engines.engine import build_engine
from flowers.machine import available_cpus
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle, load_bundle, save_bundle
from flowers.models.heads import Classifier, HeadSpec, build_head

ON_GPU = DEVICE == "cuda"
MODEL, WEIGHTS, SIDE = ("efficientnet_lite0", "default", 224) if ON_GPU else ("timm/test_resnet", "none", 32)
PRECISION, AUTOCAST = ("bf16", torch.bfloat16) if ON_GPU else ("no", torch.float32)  # CPUs may emulate bf16
BATCH_SIZE, STEPS, ROUNDS = (256, 20, 5) if ON_GPU else (4, 1, 1)
FILES, SECONDS, PHOTO = (60_000, 5.0, (667, 500)) if ON_GPU else (320, 0.2, (64, 48))
NUM_CLASSES = 102


def training_steps(folder: Path) -> Iterator[Row]:
    """A step as training does it, against the bare network's passes and against timm's loop."""
    flags = ["--model", MODEL, "--weights", "none", "--image-size", SIDE, "--train-size", SIDE]
    trainer, batch = resident_trainer([*flags, "-b", BATCH_SIZE, "--mixed-precision", PRECISION])

    def ours() -> None:
        for _ in range(STEPS):
            trainer.step([batch], BATCH_SIZE)
        trainer.read_losses()

    network = plain_network()
    compiled = torch.compile(plain_network(), backend="inductor" if ON_GPU else "eager")
    pixels = trainer.batches.inputs(batch).float().contiguous(memory_format=torch.channels_last)
    ways = {
        "ours": ours,
        "bare": lambda: bare_passes(network, pixels, batch.targets),
        "compiled": lambda: bare_passes(compiled, pixels, batch.targets),
        "timm": TimmLoop(plain_network(), batch),
    }
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    seconds = take_turns(ways, ROUNDS)
    images = STEPS * BATCH_SIZE
    for name, text in (
        ("compiled", "forward and backward alone of the compiled network"),
        ("bare", "forward and backward alone of the eager network"),
        ("timm", "the shape of timm's loop: the same without what jobs need"),
    ):
        against = f"{times_faster(seconds[name], seconds['ours'])} {text}, {rate(images, seconds[name])}"
        what = f"training step of {MODEL}, {SIDE} px, batch {BATCH_SIZE}, precision {PRECISION}"
        yield Row(what, rate(images, seconds["ours"]), against)
    yield Row("device busy in those training steps", f"{busy_share(ours):.0%}", "100%")
    yield Row("peak memory of these four loops", f"{peak_mib():.0f} MiB", memory_there())


def plain_network() -> nn.Module:
    backbone = build_backbone(MODEL, "none", SIDE)
    network = nn.Sequential(backbone.network, nn.Linear(backbone.num_features, NUM_CLASSES))
    return network.train().to(DEVICE, memory_format=torch.channels_last)


def bare_passes(network: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> None:
    """The ceiling: nothing but the two passes, on data that lies there."""
    for _ in range(STEPS):
        with torch.autocast(DEVICE, AUTOCAST, enabled=ON_GPU):
            loss = nn.functional.cross_entropy(network(pixels), targets)
        loss.backward()
        network.zero_grad(set_to_none=True)
    loss.item()


class TimmLoop:
    """What timm's train.py does in a step on a resident batch: normalise, passes, optimizer, weight average."""

    def __init__(self, network: nn.Module, batch):
        from timm.utils import ModelEmaV3

        self._network, self._batch = network, batch
        self._optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
        self._average = ModelEmaV3(network, decay=0.995)
        self._images = batch.images.permute(0, 3, 1, 2).contiguous()  # its loader gives NCHW bytes
        self._mean = torch.full((3, 1, 1), 127.5, device=DEVICE)
        self._steps = 0

    def __call__(self) -> None:
        for _ in range(STEPS):
            self._steps += 1
            pixels = self._images.float().sub_(self._mean).div_(self._mean)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            with torch.autocast(DEVICE, AUTOCAST, enabled=ON_GPU):
                loss = nn.functional.cross_entropy(self._network(pixels), self._batch.targets, label_smoothing=0.1)
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._average.update(self._network, step=self._steps)
        loss.item()


def loading(folder: Path) -> Iterator[Row]:
    """The loader's batches, against decoding and augmenting alone on one core."""
    names = [path.name for path in photos(folder)] * (FILES // 64)
    samples = Samples(folder / "photos", names, np.zeros(len(names), np.int64))
    augmentation = Augmentation(size=SIDE)
    order = Order(num_samples=len(samples), seed=0, batch_size=BATCH_SIZE, world_size=1, grad_accum_steps=1)
    views = TrainViews(samples, augmentation, 0)
    draws = [draw for batch in order.micro_batches(0, 0) for draw in batch]
    torch.set_num_threads(1)
    count = min(len(draws), 200 if ON_GPU else 8)
    alone = take_turns({"alone": lambda: views.__getitems__(draws[:count])}, ROUNDS)["alone"]
    workers = min(available_cpus(), 16)
    loader = TrainLoader(samples, augmentation, order, rank=0, workers=workers, pin_memory=ON_GPU)
    done, start_s = 0, None
    for batch in loader.epoch(0):
        if start_s is None:
            start_s = time.perf_counter()  # the processes are there
            continue
        done += len(batch.images)
        if time.perf_counter() - start_s > SECONDS:
            break
    found = done / (time.perf_counter() - start_s)
    ceiling = workers * count / min(alone)
    yield Row(
        f"training views of {PHOTO[0]}x{PHOTO[1]} photos by {workers} loader processes", f"{short(found)} images/s",
        f"{found / ceiling:.0%} of {workers} times one core alone, {rate(count, alone)}",
    )  # fmt: skip


def prediction(folder: Path) -> Iterator[Row]:
    """The job from start to end, against decoding alone and inferring alone."""
    bundle = model(folder)
    many = repeat(folder / "photos", folder / "many", FILES)
    ours = run_job(bundle, many, folder / "out.csv", ["--engine", "torch", "-b", str(BATCH_SIZE)])
    alone = alone_elsewhere(bundle, many, "torch", SECONDS)
    decode, infer = alone["decode_per_s"], alone["infer_per_s"]
    ceiling = min(decode, infer) if ON_GPU else 1 / (1 / decode + 1 / infer)
    yield Row(
        f"photos of {PHOTO[0]}x{PHOTO[1]} to rows, one process, {available_cpus()} CPUs",
        f"{short(ours['per_s'])} images/s",
        f"{ours['per_s'] / ceiling:.0%} of the ceiling; decoding alone {short(decode)}, inferring alone {short(infer)}",
    )  # fmt: skip
    yield Row(
        "command to first row", f"{short(ours['first_row_s'])} s", f"{ours['cpu_ms']:.2f} ms of CPU a photo in all"
    )
    engine = build_engine(load_bundle(bundle), engine="torch", batch_size=BATCH_SIZE, device=DEVICE)
    images = torch.randint(0, 256, (BATCH_SIZE, SIDE, SIDE, 3), dtype=torch.uint8).numpy()

    def infer_some() -> None:
        for handle in [engine.submit(images) for _ in range(4 * STEPS)]:
            handle.result()

    seconds = take_turns({"infer": infer_some}, ROUNDS)["infer"]
    settled = engine.settled / (ROUNDS + 1) / (4 * STEPS * BATCH_SIZE)
    what = f"engine alone: {engine.name} {engine.precision}, batch {BATCH_SIZE}"
    yield Row(what, rate(4 * STEPS * BATCH_SIZE, seconds), f"{settled:.1%} of random pictures settled in float32")
    yield Row("device busy while the engine infers", f"{busy_share(infer_some):.0%}", "100%")
    yield Row("peak memory of the engine", f"{peak_mib():.0f} MiB", memory_there())
    engine.close()


def decoding_on_the_device(folder: Path) -> Iterator[Row]:
    """``--decode gpu``: the decoder alone against one core, then the job against the one that decodes on the CPUs."""
    from flowers.data.gpu_decoder import GpuDecoder
    from flowers.data.images import read_image

    if importlib.util.find_spec("torchcodec") is None:
        yield Row("--decode gpu", "not measured", "TorchCodec is not there")
        return
    bundle = model(folder)
    view = load_bundle(bundle).preprocessing
    decoder = GpuDecoder(view, torch.device(DEVICE))
    datas = [path.read_bytes() for path in photos(folder)]

    def core() -> None:
        for data in datas:
            view.view(read_image(data, min_short_side=view.min_short_side, to_srgb=view.to_srgb))

    def device() -> None:
        assert all(seen is not None for seen in decoder.views([decoder.prepare(data) for data in datas]))

    seconds = take_turns({"core": core, "device": device}, ROUNDS)
    against = f"{times_faster(seconds['core'], seconds['device'])} one core, {rate(len(datas), seconds['core'])}"
    yield Row(
        f"photos of {PHOTO[0]}x{PHOTO[1]} to views by --decode gpu, one thread",
        rate(len(datas), seconds["device"]),
        against,
    )
    if ON_GPU:
        many = repeat(folder / "photos", folder / "many again", FILES)
        flags = ["--engine", "torch", "-b", str(BATCH_SIZE)]
        rates = {
            decode: run_job(bundle, many, folder / f"{decode}.csv", [*flags, "--decode", decode])["per_s"]
            for decode in ("cpu", "gpu")
        }
        yield Row(
            f"photos to rows with --decode gpu, {available_cpus()} CPUs",
            f"{short(rates['gpu'])} images/s",
            f"{short(rates['cpu'])} images/s with --decode cpu",
        )


def start_up(folder: Path) -> Iterator[Row]:
    """Imports, and the first use of the device."""
    from bench_startup import run

    first = f"import torch; matrix = torch.ones(8, 8, device='{DEVICE}'); (matrix @ matrix).cpu()"
    ways = {"ours": "import flowers.prediction.predict", "device": first}
    commands = {name: lambda code=code: run(["-c", code]) for name, code in ways.items()}
    seconds = take_turns(commands, min(ROUNDS, 3), warm_up=ON_GPU)
    against = f"import torch and a first product on the device, {duration(seconds['device'])}"
    yield Row("importing all that prediction needs", duration(seconds["ours"]), against)


def model(folder: Path) -> Path:
    """A bundle with a random head, and random weights where there are none."""
    try:
        backbone = build_backbone(MODEL, WEIGHTS, SIDE)
    except Exception as error:
        print(f"random weights: {error}")
        backbone = build_backbone(MODEL, "none", SIDE)
    spec = HeadSpec(NUM_CLASSES, backbone.num_features)
    names = ClassIndex(*[tuple(f"{number:03}" for number in range(NUM_CLASSES))] * 2)
    state = Classifier(backbone.network, build_head(spec)).state_dict()
    save_bundle(Bundle(MODEL, spec, names, backbone.preprocessing, {}, {}, state), folder / "bundle")
    return folder / "bundle"


def photos(folder: Path) -> list[Path]:
    """Drawn photos; the same ones at each call."""
    place = folder / "photos"
    if not place.exists():
        place.mkdir()
        for seed in range(64 if ON_GPU else 8):
            (place / f"{seed:03}.jpg").write_bytes(draw_photo(*PHOTO, seed))
    return sorted(place.iterdir())


def busy_share(work: Callable[[], None]) -> float:
    """Share of the time in which the device computes: the union of its kernels' times, by torch's profiler.

    On a CPU, that of torch's operations.
    """
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]
    with profile(activities=activities) as profiler:
        start_s = time.perf_counter()
        work()
        spent_us = 1e6 * (time.perf_counter() - start_s)
    kind = torch.autograd.DeviceType.CUDA if ON_GPU else torch.autograd.DeviceType.CPU
    events = [e for e in profiler.events() if e.device_type == kind and not getattr(e, "is_user_annotation", False)]
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    busy_us = last = 0.0
    for begin, end in spans:
        busy_us += max(0.0, end - max(begin, last))
        last = max(last, end)
    return busy_us / spent_us


def peak_mib() -> float:
    """Of the device's memory; on a CPU of this process's."""
    if ON_GPU:
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_there() -> str:
    """The device's memory."""
    if not ON_GPU:
        return "of this process"
    return f"of {torch.cuda.get_device_properties(0).total_memory / 2**20:.0f} MiB"


MEASUREMENTS = {training_steps: 60, prediction: 60, loading: 20, start_up: 20, decoding_on_the_device: 40}
"""In this order, with the seconds that each may take on a GPU."""


def main() -> int:
    """Measure what there is time for; 1 if a measurement failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos(folder)
        for measurement, seconds in MEASUREMENTS.items():
            name = measurement.__name__.replace("_", " ")
            if results.seconds_left() < (seconds if ON_GPU else 5):
                results.add_measurement(Row(name, "not measured", "no time was left"))
                continue
            start_s = time.perf_counter()
            try:
                for row in measurement(folder):
                    results.add_measurement(row)
            except Exception as error:
                traceback.print_exc()
                results.add_measurement(Row(name, "failed", " ".join(f"{type(error).__name__}: {error}".split())[:200]))
                failed = 1
            print(f"{name}: {time.perf_counter() - start_s:.1f} s", flush=True)
            if ON_GPU:
                torch.cuda.empty_cache()
    with contextlib.suppress(OSError):
        print((results.FOLDER / "results.md").read_text())
    return failed


if __name__ == "__main__":
    if DEVICE is None:
        sys.exit("tests/gpu/run.sh starts this")
    if not ON_GPU:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    sys.exit(main())
