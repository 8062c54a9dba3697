"""A model and photos so small that a prediction job takes a fraction of a second."""

from pathlib import Path

import numpy as np
import torch
from odd_files import encode

from flowers.data.folders import ClassIndex
from flowers.data.preprocessing import Preprocessing
from flowers.models.backbones import build_backbone
from flowers.models.bundle import Bundle, save_bundle
from flowers.models.heads import Classifier, HeadSpec, build_head

SIDE = 32
CLASSES = ClassIndex(("1", "10", "2", "a b"), ("daisy", 'rose, "red"', "tulip", "été"))


def make_bundle(folder: Path, classes: ClassIndex = CLASSES, seed: int = 0, model: str = "timm/test_resnet") -> Path:
    """Save a model with random weights whose answers differ from photo to photo."""
    torch.manual_seed(seed)
    backbone = build_backbone(model, "none", SIDE)
    spec = HeadSpec(len(classes.folders), backbone.num_features)
    classifier = Classifier(backbone.network, build_head(spec))
    preprocessing = Preprocessing(resize=36, crop=SIDE, to_srgb=True)
    rng = np.random.default_rng(seed)
    views = np.stack([preprocessing.view(draw_photo(rng)) for _ in range(64)])
    with torch.no_grad():
        images = preprocessing.normalize(torch.from_numpy(views))
        for module in classifier.train().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1 - 0.9**30  # one pass does what thirty would: batch norm gets to know its inputs
        classifier(images)
        logits = classifier.eval()(images)
        head = classifier.head.output
        head.bias.sub_(logits.mean(0))
        head.weight.mul_(2 / logits.std(0)[:, None])
        head.bias.mul_(2 / logits.std(0))
    save_bundle(Bundle(model, spec, classes, preprocessing, {}, {}, classifier.state_dict()), folder)
    return folder


def make_photos(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Draw photos of coarse random colours, some of them in folders below; returns their sorted paths."""
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        path = f"{'below/' if index % 3 == 0 else ''}{index:04d}.jpg"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encode(draw_photo(rng), "JPEG"))
        paths.append(path)
    return sorted(paths)


def draw_photo(rng: np.random.Generator) -> np.ndarray:
    """Thirty squares of random colours: uint8 [40, 48, 3]."""
    return rng.integers(0, 256, (5, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
