"""Exported files, each in its own runtime: float32, bf16 and int8, same network, same pictures, one run.

    python tests/bench/bench_exports.py                     # Lite0 with a quick head on real photos
    python tests/bench/bench_exports.py --checkpoint RUN    # a trained one

The plain loop is eager PyTorch in contiguous float32. Agreement is what jobs/export.py itself found on the photos of
valid/: the share of photos whose best class is that of the bundle in float32; int8 is calibrated on photos of train/.
"""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from bench_engines import PLAIN, plain_loop
from measuring import FLOWERS102, Row, photos_in, rate, run_alone, take_turns, times_faster
from models import convert_once, quick_bundle, read_views

from flowers.config.export import ExportConfig
from flowers.engines.exported import load_exported
from flowers.engines.exported_engine import build_exported_engine
from flowers.errors import UsageError
from flowers.exports import graph
from flowers.exports.export import export
from flowers.machine import cpus_per_process
from flowers.models.bundle import load_bundle

REFERENCE = "openvino float32"
WAYS = {
    REFERENCE: ("openvino", "float32", "float32"),
    "openvino, computed in bf16": ("openvino", "float32", "bf16"),
    "openvino int8": ("openvino", "int8", "auto"),
    "onnx float32": ("onnx", "float32", "auto"),
    "onnx int8": ("onnx", "int8", "auto"),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--checkpoint", type=Path, help="a bundle; default: Lite0 with a quick head")
    parser.add_argument("--data-dir", type=Path, default=FLOWERS102, help="with train/, valid/ and photos/")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    torch.set_num_threads(cpus_per_process())
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        checkpoint = options.checkpoint or quick_bundle(Path(folder) / "bundle")
        bundle = load_bundle(checkpoint)
        photos = read_views(photos_in(options.data_dir / "photos")[: options.images], bundle.preprocessing)
        agreement, engines = {}, {}
        stack.enter_context(patch.object(graph, "write_onnx", convert_once(Path(folder))))
        for name, (format, precision, computed) in WAYS.items():
            path = Path(folder, f"{precision}{'.onnx' if format == 'onnx' else '.xml'}")
            if not path.exists():
                export(
                    ExportConfig(
                        path, checkpoint, format, precision=precision, min_agreement=0.0, check_count=options.images,
                        check_images=options.data_dir / "valid",
                        calibration_images=options.data_dir / "train" if precision == "int8" else None,
                    )
                )  # fmt: skip
            report = json.loads(path.with_name(path.name + ".json").read_text())
            try:
                engine = build_exported_engine(load_exported(path), precision=computed, batch_size=options.batch_size)
            except UsageError as error:  # bf16, where the CPU has none
                print(f"{name}: {error}")
                continue
            agreement[name] = report["agreement"]["same_top1"]
            engines[name] = stack.enter_context(contextlib.closing(engine))

        def through(engine) -> None:
            batches = np.array_split(photos, -(-len(photos) // options.batch_size))
            for handle in [engine.submit(batch) for batch in batches]:
                handle.result()

        ways = {PLAIN: plain_loop(bundle, photos, options.batch_size, torch.float32, torch.contiguous_format)}
        ways |= {name: lambda engine=engine: through(engine) for name, engine in engines.items()}
        seconds = take_turns(ways, options.rounds)
    return [
        Row(
            f"{bundle.model} exported, {name}",
            rate(len(photos), seconds[name]),
            f"{times_faster(seconds[PLAIN], seconds[name])} the {PLAIN}, {rate(len(photos), seconds[PLAIN])}; "
            f"{times_faster(seconds[REFERENCE], seconds[name])} {REFERENCE}; the file's classes are the bundle's on "
            f"{agreement[name]:.1%} of {options.images} photos",
        )
        for name in engines
    ]


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
