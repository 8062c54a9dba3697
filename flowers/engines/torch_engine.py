"""A network in PyTorch, from uint8 pixels to probabilities: eager, compiled, or to be converted."""

import contextlib
import copy
import os
import shutil
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from flowers.data.preprocessing import Preprocessing
from flowers.errors import UsageError
from flowers.machine import keep_freed_memory
from flowers.models.heads import Classifier, pooled

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Infer = Callable[[np.ndarray], list[np.ndarray]]


class PixelNetwork(nn.Module):
    """Normalisation, backbone, head and softmax as one network, for inference only.

    The backbone computes in ``dtype``; normalisation, head and softmax always in float32.

    Args:
        network: a Classifier, or a backbone alone; it becomes part of this one and is changed.
        fold: batch norms into convolutions.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        dtype: torch.dtype = torch.float32,
        fold: bool = False,
    ):
        super().__init__()
        network = network.eval().requires_grad_(False)
        has_head = isinstance(network, Classifier)
        backbone = network.backbone if has_head else network
        if fold:
            size = preprocessing.crop
            backbone = fold_batch_norms(backbone, preprocessing.normalize(torch.from_numpy(drawn_pictures(1, size))))
        self.backbone = backbone.to(dtype=dtype, memory_format=torch.channels_last)
        self.head = network.head.float() if has_head else None
        self.dtype = dtype
        std = torch.tensor(preprocessing.std)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("offset", -torch.tensor(preprocessing.mean) / std)
        self.eval()

    def in_precision(self, dtype: torch.dtype) -> "PixelNetwork":
        """A copy whose backbone computes in ``dtype``."""
        copied = copy.deepcopy(self)
        copied.backbone.to(dtype)
        copied.dtype = dtype
        return copied

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images uint8 [B, S, S, 3] to features float32 [B, D], and with a head probs float32 [B, num_classes]."""
        pixels = (images.float() * self.scale + self.offset).to(self.dtype).permute(0, 3, 1, 2)
        features = pooled(self.backbone(pixels)).float()
        if self.head is None:
            return (features,)
        return features, self.head(features).softmax(1)


def torch_worker(network: PixelNetwork, device: torch.device, compiled: bool) -> Callable[[], Infer]:
    """Return a factory that each thread of a pool calls once for its own function from images to outputs.

    On a CPU every thread computes alone, so that results do not depend on how many there are.

    Raises:
        UsageError: compilation for the CPU without a C++ compiler.
    """
    network = network.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    if compiled:
        if device.type == "cpu":
            check_compiler("--engine compile", "use --engine torch")
        # frozen weights are folded (batch norm into convolutions) and packed for the CPU
        network = torch.compile(network, dynamic=False, options={"freezing": True} if device.type == "cpu" else {})
    if device.type == "cuda":
        # By default convolutions round float32 to 11 bits there; but float32 is what settles doubts.
        torch.backends.cudnn.allow_tf32 = False
        torch.cuda.synchronize(device)  # the weights are there before other streams read them

    def start() -> Infer:
        if device.type == "cpu":
            torch.get_num_threads()  # the first look takes over torch's setting; later ones leave ours alone
            torch.set_num_threads(1)
        if device.type == "cuda" and device.index is not None:
            # A thread begins at the first GPU; going back there after each batch would take up memory of it.
            torch.cuda.set_device(device)
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None

        def infer(images: np.ndarray) -> list[np.ndarray]:
            with torch.no_grad(), torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
                on_device = torch.from_numpy(images).to(device, non_blocking=stream is not None)
                return [output.cpu().numpy() for output in network(on_device)]

        return infer

    return start


def drawn_pictures(count: int, size: int) -> np.ndarray:
    """Coloured clouds, uint8 [count, size, size, 3], always the same: random detail of all scales."""
    rng = np.random.default_rng(0)
    total = torch.zeros(count, 3, size, size)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        detail = torch.from_numpy(rng.standard_normal((count, 3, cells, cells), np.float32))
        total += nn.functional.interpolate(detail, (size, size), mode="bilinear") * (2 / cells)
    return (120 + 50 * total).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def check_compiler(flag: str, instead: str) -> None:
    """Look for what compilation for the CPU needs.

    Args:
        flag: what asked for it.
        instead: what to do without.

    Raises:
        UsageError: there is no C++ compiler.
    """
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(map(shutil.which, wanted)):
        raise UsageError(
            f"{flag} needs a C++ compiler and found none ({' or '.join(wanted)}): install one, or {instead}"
        )


FOLD_TOLERANCE = 1e-3  # of the outputs' own size; rounding gives less than a hundredth of it


@torch.no_grad()
def fold_batch_norms(network: nn.Module, images: Tensor) -> nn.Module:
    """Fold batch norms into the convolutions before them: in evaluation both are one linear map.

    Eager PyTorch would read and write every activation once more for each of them. (Compilers do the same by
    themselves.)
    Which convolution stands before which batch norm is seen in a pass; what else looks at a convolution's output is
    not, so the copy has to give the same outputs.

    Args:
        network: float32, in evaluation mode.
        images: [B, 3, S, S] normalised, float32, to try it with.

    Returns:
        A copy with as few batch norms as possible; the network itself where the copy's outputs differ.

    Source: Jacob et al. 2018, "Quantization and training of neural networks", arXiv:1712.05877, section 3.2.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    folded = copy.deepcopy(network)
    pairs, outputs = _folding_pairs(folded, images)
    names = {module: name for name, module in folded.named_modules()}
    for conv, norm in pairs:
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        parent, _, own = names[norm].rpartition(".")
        setattr(folded.get_submodule(parent), own, _rest_of(norm))
    difference = (folded(images) - outputs).abs().max()
    return folded if difference <= FOLD_TOLERANCE * outputs.abs().max() else network


def _folding_pairs(network: nn.Module, images: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """Convolutions and the batch norms that take their outputs, each used once; and the network's outputs."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor too, so that its id is not given to another one
    uses: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_conv(conv: nn.Conv2d, _: tuple, output: Tensor) -> None:
        uses[conv] += 1
        made[id(output)] = conv, output

    def before_norm(norm: nn.BatchNorm2d, inputs: tuple) -> None:
        uses[norm] += 1
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], norm))

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not is_parametrized(module):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d) and _rest_of(module) is not None:
            hooks.append(module.register_forward_pre_hook(before_norm))
    outputs = network(images)
    for hook in hooks:
        hook.remove()
    return [(conv, norm) for conv, norm in pairs if uses[conv] == uses[norm] == 1], outputs


def _rest_of(norm: nn.BatchNorm2d) -> nn.Module | None:
    """Return the rest of a batch norm once it is folded, in timm's the activation; None if it cannot be folded."""
    if norm.running_var is None:
        return None
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if hasattr(norm, "drop") and hasattr(norm, "act"):
        return nn.Sequential(norm.drop, norm.act)
    return None
