"""What turns gradients into a good model: the optimizer, the schedule, losses, mixing, the weight average.

Everything here is a pure function of its arguments or keeps its whole state in ``state_dict``, so that a resumed
run and a run on another number of processes do the same.
"""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def build_optimizer(name: str, groups: list[dict], device: torch.device) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD with Nesterov momentum 0.9; one fused kernel per step where the device has it.

    The learning rate is set at every step by the loop, from ``learning_rate``.
    """
    fused = device.type in ("cuda", "cpu") and all(p.is_floating_point() for g in groups for p in g["params"])
    kinds = {
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.0, fused=fused),
        "adam": lambda: torch.optim.Adam(groups, lr=0.0, fused=fused),
        "sgd": lambda: torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, fused=fused),
    }
    optimizer = kinds[name]()
    if name == "sgd":
        # Fused, it takes whatever lay in memory for its momentum where fp16's loss scale skips the very first step.
        for parameter in (parameter for group in groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, schedule: str = "cosine") -> float:
    """Learning rate of the update number ``step`` (the first is 0): linear warm-up, then half a cosine to zero.

    Or, of a schedule that is "constant", the peak from there on.

    A function of the update count alone, so one process and eight follow the same curve.

    Source: Loshchilov and Hutter 2017, "SGDR", arXiv:1608.03983 (the cosine, without restarts).
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def step_seed(*key: int) -> int:
    """A seed for torch's generators from (seed, step, micro_step, rank), well mixed, below 2**63."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor, label_smoothing: float) -> Tensor:
    """Sum of the cross-entropies of the images that count.

    A sum, not a mean: the caller divides by the images of the whole step, so that micro-steps, ranks and a short
    last step all weigh every image the same.

    Args:
        logits: [B, num_classes].
        targets: [B] int64 class indices, or [B, num_classes] float probabilities after mixing.
        weights: [B] float, 0 for images that only fill up the batch.
    """
    return (F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing) * weights).sum()


def mix(
    images: Tensor,
    targets: Tensor,
    num_classes: int,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    key: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Blend every image with its mirror in the batch: mixup, CutMix, or a coin's choice where both are on.

    Args:
        images: [B, 3, H, W] float.
        targets: [B] int64.
        key: what the random draw depends on; the same key gives the same blend.

    Returns:
        images [B, 3, H, W] and targets [B, num_classes] as probabilities.

    Source: mixup, Zhang et al. 2018, arXiv:1710.09412; CutMix, Yun et al. 2019, arXiv:1905.04899.
    """
    rng = np.random.default_rng(key)
    use_cutmix = cutmix_alpha > 0 and (mixup_alpha <= 0 or rng.random() < 0.5)
    alpha = cutmix_alpha if use_cutmix else mixup_alpha
    keep = float(rng.beta(alpha, alpha))
    if use_cutmix:
        height, width = images.shape[-2:]
        cut_h, cut_w = round(height * math.sqrt(1 - keep)), round(width * math.sqrt(1 - keep))
        top, left = int(rng.integers(0, height - cut_h + 1)), int(rng.integers(0, width - cut_w + 1))
        box = (..., slice(top, top + cut_h), slice(left, left + cut_w))
        mixed = images.clone()
        mixed[box] = images.flip(0)[box]
        keep = 1 - cut_h * cut_w / (height * width)
    else:
        mixed = images.lerp(images.flip(0), 1 - keep)
    one_hot = F.one_hot(targets, num_classes).to(images.dtype)
    return mixed, one_hot.lerp(one_hot.flip(0), 1 - keep)


class WeightAverage:
    """Exponential moving average of a model's weights and buffers; the average is evaluated and saved.

    The decay grows from 0.1 to its final value, so that the random first weights are soon forgotten:
    ``min(decay, (1 + step) / (10 + step))``.

    Source: Polyak averaging as in Tan and Le 2019, arXiv:1905.11946, section 5.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._model = model
        self._average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number ``step`` (the first is 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, currents = [], []
        for name, tensor in self._model.state_dict().items():
            if tensor.is_floating_point():
                averages.append(self._average[name])
                currents.append(tensor)
            else:
                self._average[name].copy_(tensor)
        torch._foreach_lerp_(averages, currents, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model has the averaged weights."""
        own = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        self._model.load_state_dict(self._average)
        try:
            yield
        finally:
            self._model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors, by the model's names."""
        return self._average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over averaged tensors that ``state_dict`` gave."""
        for name, tensor in self._average.items():
            tensor.copy_(state[name])
