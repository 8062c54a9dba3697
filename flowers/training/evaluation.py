"""Evaluation of a network, or of a saved model as it was in its training, on a split."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowers import console, distributed
from flowers.config.evaluate import EvaluateConfig
from flowers.data.folders import Samples
from flowers.data.loaders import Batch
from flowers.engines.engine import Engine, KeyedNetwork, build_engine
from flowers.models.bundle import Bundle
from flowers.reports.answers import Answers
from flowers.reports.metrics import FeatureTable, LogitTable, Metrics, Tally
from flowers.training.batches import AUTOCAST, eval_loader, to_device
from flowers.training.calibrated import features_of_some

ENGINE_PRECISION = {None: "auto", "no": "float32", "fp16": "fp16", "bf16": "bf16"}
IN_FLIGHT = 3  # batches that wait in the engine while the next one is read


@torch.inference_mode()
def evaluate(
    accelerator: Accelerator,
    network: nn.Module,
    inputs: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    num_images: int,
    meter: console.Meter | None = None,
    logits: LogitTable | None = None,
    features: FeatureTable | None = None,
) -> Metrics:
    """Measure a network on a split, every image exactly once over all ranks.

    Args:
        inputs: gives the network's input for a batch.
        batches: this rank's share; rows of weight 0 only pad the shape.
        num_images: of the whole split.
        meter: shows the progress of all ranks.
        logits: filled with the logits of this rank's images.
        features: filled with what the head sees of them.

    Raises:
        TrainingError: an image was missed or counted twice.
    """
    network.eval()
    tally = Tally(num_images, accelerator.device)
    with features.watching() if features is not None else contextlib.nullcontext():
        for batch in to_device(iter(batches), accelerator.device):
            scores = network(inputs(batch))
            tally.update(batch.indices, batch.weights, scores, batch.targets)
            if logits is not None:
                logits.update(batch.indices, batch.weights, scores)
            if features is not None:
                features.take(batch.indices, batch.weights)
            if meter is not None:
                meter.advance(len(batch.targets) * accelerator.num_processes)
    return tally.result(accelerator.reduce)


def measure(
    config: EvaluateConfig, accelerator: Accelerator, bundle: Bundle, samples: Samples, keep_logits: bool
) -> tuple[Metrics, Answers | None, str, list[str]]:
    """Run the model over the split, every image once; all ranks get the same result.

    A head that was trained on cached features is measured on features of the same engine, as in training.

    Returns:
        The figures; the answers, unless the logits are too many; what computed them, for the user; the images that are
        damaged, but were measured as they decode.
    """
    trained = as_trained(bundle)
    classifier = bundle.build().to(accelerator.device, memory_format=torch.channels_last)
    dtype = AUTOCAST[accelerator.mixed_precision]
    loader = eval_loader(config, accelerator, samples, bundle.preprocessing)
    table = LogitTable(len(samples), len(bundle.classes)) if keep_logits else None
    seen = features_of_some(len(samples), bundle, classifier.head) if config.calibrate else None
    engine = None
    if trained.get("finetune") == "head" and trained.get("feature_cache") is True and config.mixed_precision is None:
        engine = build_engine(
            KeyedNetwork(bundle.model, classifier.backbone),
            bundle.preprocessing,
            precision=ENGINE_PRECISION.get(precision_in_training(trained) if trained.get("mixed_precision") else None),
            batch_size=config.batch_size,
            device=accelerator.device,
        )
    module = classifier if engine is None else classifier.head
    network = accelerator.prepare_model(module, evaluation_mode=True)
    batches = loader if engine is None else _with_features(loader, engine)
    computed_by = engine.description if engine is not None else f"torch, precision {accelerator.mixed_precision}"
    console.say(f"measured by {computed_by}")

    def inputs(batch: Batch) -> Tensor:
        return bundle.preprocessing.normalize(batch.images, dtype) if engine is None else batch.images

    with console.progress(f"evaluate {config.split}", len(samples)) as meter:
        metrics = evaluate(accelerator, network, inputs, batches, len(samples), meter, table, seen)
    if engine is not None:
        engine.close()
    of_ranks = distributed.from_all(lambda: loader.damaged)
    damaged = [samples.paths[index] for index in sorted({place for found in of_ranks for place in found})]
    if table is None:
        return metrics, None, computed_by, damaged
    logits, features = (found and found.result(accelerator.reduce, accelerator.device) for found in (table, seen))
    return metrics, Answers(config.split, samples, bundle.classes, logits, features), computed_by, damaged


def _with_features(batches: Iterable[Batch], engine: Engine) -> Iterator[Batch]:
    """The batches with features [B, D] in the place of their images; some are in the engine at a time."""
    waiting: deque = deque()
    for batch in batches:
        waiting.append((batch, engine.submit(batch.images.numpy())))
        if len(waiting) > IN_FLIGHT:
            batch, handle = waiting.popleft()
            yield batch._replace(images=torch.from_numpy(handle.result().features))
    for batch, handle in waiting:
        yield batch._replace(images=torch.from_numpy(handle.result().features))


def as_trained(bundle: Bundle) -> Mapping[str, object]:
    """The flags that a model was trained with; empty where its model.json does not tell them."""
    flags = bundle.made.get("config")
    return flags if isinstance(flags, dict) else {}


def precision_in_training(trained: Mapping[str, object]) -> str | None:
    """The precision of the network in training; None: the fastest one, as the default for whole networks is."""
    asked = trained.get("mixed_precision")
    if isinstance(asked, str) and asked in AUTOCAST and (asked != "fp16" or torch.cuda.is_available()):
        return asked
    return None if trained.get("finetune") in ("full", "staged") else "no"
