"""A trained model to measure with, made in seconds."""

import shutil
from collections.abc import Callable
from pathlib import Path

from measuring import FLOWERS102, photos_in


def quick_bundle(folder: Path, train: Path = FLOWERS102 / "train", per_class: int = 5) -> Path:
    """Lite0 with a linear head trained on some real photos of each class, so that its answers are as sure as real ones.

    Returns:
        ``folder``, now a bundle.
    """
    import numpy as np
    import torch
    from torch import nn

    from flowers.data.folders import ClassIndex
    from flowers.engines.engine import build_engine
    from flowers.models.backbones import build_backbone
    from flowers.models.bundle import Bundle, save_bundle
    from flowers.models.heads import Classifier, HeadSpec, build_head

    backbone = build_backbone("efficientnet_lite0")
    by_class: dict[str, list[Path]] = {}
    for path in photos_in(train):
        by_class.setdefault(path.parent.name, []).append(path)
    classes = tuple(by_class)
    paths = [path for found in by_class.values() for path in sorted(found)[:per_class]]
    targets = torch.tensor([classes.index(path.parent.name) for path in paths])
    engine = build_engine(backbone.network, backbone.preprocessing, precision="float32")  # one head on every machine
    images = read_views(paths, backbone.preprocessing)
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
    names = ClassIndex(classes, classes)
    save_bundle(Bundle("efficientnet_lite0", spec, names, backbone.preprocessing, {}, {}, state), folder)
    return folder


def read_views(paths: list[Path], view) -> "np.ndarray":  # noqa: F821
    """What a network with this preprocessing sees of the photos: uint8 [N, S, S, 3]."""
    import numpy as np

    from flowers.data.images import read_image

    return np.stack([view.view(read_image(path, min_short_side=view.min_short_side)) for path in paths])


def convert_once(folder: Path) -> Callable:
    """Return a ``graph.write_onnx`` for several exports of one bundle, which converts each network once.

    Formats and precisions mostly start from the same ONNX file, and making it is most of the time of an export.

    Args:
        folder: keeps the files.
    """
    from flowers.exports.graph import ProbsNetwork, write_onnx

    def write(network: ProbsNetwork, images: "np.ndarray", path: Path) -> None:  # noqa: F821
        kept = folder / f"{network.pixels.dtype}-{network.layout}-{images.dtype}.onnx"
        if not kept.exists():
            write_onnx(network, images, kept)
        shutil.copyfile(kept, path)

    return write
