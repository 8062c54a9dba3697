"""Flags of ``jobs/train.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from flowers.config.paths import accept_strings
from flowers.config.presets import RECIPES, recipe_defaults
from flowers.flags import Flag


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a pre-trained image classifier on photos in class folders.

    Runs on one process as it is, and on many under `accelerate launch`.
    """

    data_dir: Annotated[Path, Flag("--data")]
    """Folder with train/ and valid/ (or val/), perhaps test/, one folder a class in each; or a list (.csv, .txt)."""
    output_dir: Path | None = None
    """Run folder: config, history, checkpoints, best and last model; default: runs/DATA-MODEL."""
    config: Path | None = None
    """YAML file of defaults for these flags; a run's own config.yaml works."""
    recipe: Literal[*RECIPES] | None = None
    """Named set of defaults for these flags; what is given beside it wins. original2018: the blog post's set-up."""

    model: Annotated[str, Flag("--arch")] = "efficientnet_lite0"
    """efficientnet_lite0 (1, 2), any torchvision classifier, timm/NAME; NAME+2 adds the features of two more stages."""
    weights: str = "default"
    """default (ImageNet), none (random), a .safetensors or .pth file, a run or model of ours, or torchvision's name."""
    finetune: Literal["head", "full", "staged"] = "head"
    """head: the backbone stays as it is. full: everything is trained. staged: first the head, then everything."""
    hidden: int | None = None
    """Width of one hidden layer in the head; without it the head is linear."""
    dropout: float = 0.0
    """Dropout before the head's last layer."""

    epochs: int | None = None
    """Passes over the training images; default: 50 for a head on cached features, 10 on images, 20 for a network."""
    batch_size: Annotated[int, Flag("-b")] = 32
    """Images per process and micro-step; the global batch is printed."""
    grad_accum_steps: int = 1
    """Micro-steps whose gradients make one step."""
    optimizer: Literal["adamw", "adam", "sgd"] | None = None
    """SGD has Nesterov momentum 0.9; default: adamw for a head, sgd for a network."""
    lr: float | Literal["auto"] | None = None
    """Peak learning rate; the default depends on what is trained and is printed. auto: found by a range test."""
    weight_decay: float | None = None
    """Not applied to biases and normalisation; default: 0.1 for a head, 0.0001 for a network."""
    layer_decay: float = 1.0
    """Share of the learning rate that each block of the backbone has of that of the block above it."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: half a cosine down to zero, or as it is."""
    warmup_epochs: float = 0.5
    """Epochs of linear warm-up."""
    max_grad_norm: float | None = None
    """Clip the gradient to this norm."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""
    mixup_alpha: float = 0.0
    """Beta parameter of mixup; 0 is off."""
    cutmix_alpha: float = 0.0
    """Beta parameter of CutMix; 0 is off."""
    mix_off_epochs: int = 0
    """Epochs at the end without mixup and CutMix."""
    drop_path: float = 0.0
    """Stochastic depth: probability of leaving out the last residual branch, less for those below; 0 is off."""
    freeze_bn: bool = False
    """With --finetune full or staged: batch norm keeps its statistics; give a tenth of the default --lr, 0.003 say."""
    patience: int | None = None
    """Stop when so many epochs in a row have brought no better model."""
    model_ema_decay: float | None = None
    """Evaluate and save an exponential moving average of the weights; 0 is off; default: 0.995 for a network."""
    balance: Literal["none", "classes"] = "none"
    """classes: draw every class equally often, whatever its number of images."""

    image_size: int | None = None
    """Side of the square that the network sees; default: the model's own."""
    train_size: int | None = None
    """Side of the square at training; default: for a network 0.8 of that at evaluation: faster, and better."""
    first_train_size: int | None = None
    """Side in the first epoch; it grows evenly, to --train-size for the last quarter; default: for a network half, but
    --train-size where that is given."""
    resize: int | None = None
    """Short side before the centre crop at evaluation; default: the model's own, for a network nearer to the crop."""
    rotation: float = 30.0
    """Random rotation at training, up to this many degrees either way."""
    scale: tuple[float, float] | None = None
    """Random crop at training: share of the picture's area; default: 0.5 1 for a head, 0.25 1 for a network."""
    hflip: float = 0.5
    """Probability of a left-right flip at training."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation at training."""
    random_erasing: float = 0.0
    """Probability of blanking a random rectangle at training."""
    auto_augment: Literal["none", "trivial"] | None = None
    """trivial: one random operation of TrivialAugment a view at training; default: for a network."""
    feature_cache: bool = True
    """With --finetune head: run the frozen backbone once per view and keep the features."""
    views: int = 1
    """Views of each training image in the feature cache: the plain one, then augmented ones."""
    tune_head: bool = False
    """With cached features: try learning rates, smoothing, weight decay and a hidden layer, and take the best."""

    val_fraction: float = 0.2
    """Share of train/ that becomes valid/ when there is no valid/; stratified, seeded, saved."""
    class_names: Path | None = None
    """JSON file: class folder to display name; default: cat_to_name.json in the data folder, if there."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do about images that cannot be read: list all and fail before the first step, or leave them out."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keep decoded images, a little larger than the training size, shared by the processes of a machine."""
    workers: Annotated[int | None, Flag("-j")] = None
    """Loader processes per process; default: the CPUs it may use, divided by the local processes."""

    eval_every: int | None = None
    """Also evaluate every so many steps, not only at the end of each epoch."""
    save_every: str = "epoch"
    """Checkpoint each epoch, every N steps (200) or every N minutes (10m)."""
    keep: int = 2
    """Checkpoints kept; at least two."""
    resume: str = "auto"
    """auto: go on with the run in --output-dir if there is one. never: refuse if there is one. Or a checkpoint."""
    max_hours: float | None = None
    """Save and stop with exit code 75 after this many hours."""
    log_interval: int = 10
    """Steps between readings of the loss."""
    log_with: str | None = None
    """A tracker of Accelerate's: tensorboard, wandb, ..."""
    report: bool = True
    """At the end also write a page to look at, report.html."""

    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Default: what `accelerate launch` says; else bf16 for whole networks where the device has it, no for heads."""
    compile: bool = False
    """Compile the network with torch.compile."""
    seed: int = 0
    """Fixes order, augmentation, head initialisation and dropout."""

    @staticmethod
    def preset(recipe: str) -> dict[str, object]:
        """Defaults that ``--recipe`` puts in the place of these; see ``flowers.cli.parse``."""
        return recipe_defaults(recipe)

    def __post_init__(self) -> None:
        accept_strings(self)

    @property
    def run_dir(self) -> Path:
        """The run folder; ``runs/DATA-MODEL`` by default, so that another data set or model gets one of its own."""
        return self.output_dir or Path("runs") / f"{self.data_dir.resolve().stem}-{Path(self.model).name}"
