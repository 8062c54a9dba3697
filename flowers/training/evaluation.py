"""One evaluation job: a trained model, a split, its figures as a table and a JSON file."""

import dataclasses
import json

import torch

from flowers import console, processes
from flowers.config.evaluate import EvaluateConfig
from flowers.data.folders import load_split
from flowers.errors import UsageError
from flowers.files import write_atomically
from flowers.models.bundle import load_bundle
from flowers.training.loop import evaluate
from flowers.training.sources import AUTOCAST, eval_loader


def evaluate_bundle(config: EvaluateConfig) -> int:
    """Measure a model on a split with the training loop's own evaluation.

    Returns:
        0.

    Raises:
        FlowersError: no such model or split, images that cannot be read, an output that cannot be written.
    """
    if config.batch_size < 1:
        raise UsageError(f"--batch-size: got {config.batch_size}, expected at least 1")
    bundle = load_bundle(config.checkpoint)
    samples = load_split(config.data_dir, config.split, bundle.classes)
    accelerator = processes.start(config.mixed_precision, default_precision="no")
    classifier = bundle.build().to(accelerator.device, memory_format=torch.channels_last)
    dtype = AUTOCAST[accelerator.mixed_precision]
    loader = eval_loader(config, accelerator, samples, bundle.preprocessing)
    network = accelerator.prepare_model(classifier, evaluation_mode=True)
    with console.progress(f"evaluate {config.split}", len(samples)) as meter:
        metrics = evaluate(
            accelerator,
            network,
            lambda batch: bundle.preprocessing.normalize(batch.images, dtype),
            loader,
            len(samples),
            lambda count: meter.advance(count * accelerator.num_processes),
        )
    output = config.output or config.checkpoint / f"metrics-{config.split}.json"
    figures = {"split": config.split, "data_dir": str(config.data_dir), "model_hash": bundle.hash}
    figures |= dataclasses.asdict(metrics)

    def write() -> None:
        with write_atomically(output) as file:
            json.dump(figures, file, indent=1)

    processes.on_main_process(accelerator, write)
    row = (config.split, metrics.images, f"{metrics.loss:.4f}", f"{metrics.top1:.4f}", f"{metrics.top5:.4f}")
    console.table(f"{bundle.model} on {config.data_dir}", ("split", "images", "loss", "top1", "top5"), [row])
    written = [("figures", output)]
    photos = ("--input", "PHOTOS", "--output", "predictions.csv")
    console.done("evaluated", written, [console.job_command("predict", "--checkpoint", config.checkpoint, *photos)])
    return 0
