"""Flags of ``jobs/train.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from flowers.config.presets import RECIPES, recipe_defaults
from flowers.config.values import read_values
from flowers.flags import Flag

DEFAULT_MODEL = "efficientnet_lite0"
DEFAULT_OF_A_HEAD = "efficientnet_lite0+2"
OF_STEPS = (
    "epochs", "lr", "schedule", "min_lr", "warmup_epochs", "max_grad_norm", "model_ema_decay", "eval_every", "patience",
    "hidden", "dropout", "continue_from",
)  # fmt: skip
"""Flags with a meaning only for a head that is trained step by step; ``lbfgs`` fits one at once."""


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a pre-trained image classifier on photos in class folders.

    Runs on one process as shown, and on several under flowers-launch or `accelerate launch`.
    """

    GROUPS: ClassVar = {
        "data_dir": "data and run folder",
        "model": "model",
        "finetune": "what is trained",
        "epochs": "optimiser",
        "image_size": "image size and augmentation",
        "eval_every": "validation and saving",
        "mixed_precision": "machine",
    }
    """First field of each group of flags in --help, and its title."""
    must_exist: ClassVar = ("data_dir", "continue_from")
    """Fields of paths that are looked for before anything is imported."""

    data_dir: Annotated[Path, Flag("--data", takes="a folder or list of images")]
    """Folder with train/ and valid/ (or val/) and, if you like, test/, each with one folder per class; or photos
    directly in class folders; or tar shards of either, such as WebDataset's; or a list (.csv or .txt)."""
    output_dir: Path | None = None
    """Run folder for config, history, checkpoints, the best and the last model. Default: runs/DATA-MODEL."""
    recipe: Literal[*RECIPES] | None = None
    """Named set of defaults for these flags; flags and --config win. fast: a head on the frozen network, as without a
    recipe. best: staged, 40 epochs, --refit-head. original2018: the settings of the blog post of 2018."""
    val_fraction: float = 0.2
    """Share of train/ that becomes the validation split where there is no valid/. Drawn per class, fixed by --seed,
    saved in the run folder."""
    group: tuple[str, ...] = ()
    """Images that belong together (a plant, a camera, a burst): the drawn validation split cuts no group. One or more
    of: a regular expression whose first group, or whole match, in an image's path names its group; a table (.csv) with
    the columns path,group; the duplicates that prepare.py check --output found (.json)."""
    class_names: Path | None = None
    """JSON file that maps class folders to display names. Default: cat_to_name.json in the data folder, if it
    exists."""
    add: Annotated[tuple[Path, ...] | None, Flag(takes="predictions tables")] = None
    """Tables of jobs/predict.py: their photos of status ok become further training images, with the class that was
    predicted. They are never held out for validation."""
    corrections: Annotated[tuple[Path, ...] | None, Flag(takes="CSVs of path,class")] = None
    """Corrected labels, such as jobs/audit.py makes: CSV of path,class; the class - leaves an image out. Paths are
    those of the data, or of a table of --add, whose unsure photos are taken too if they stand here. Photos stay as they
    are."""
    exclude: tuple[str, ...] = ()
    """Leave out files and folders that fit one of these patterns, by name or by path below the data folder:
    --exclude '*_small.jpg' thumbs."""
    max_images: int | None = None
    """For a trial run: take at most this many images of each split, in the proportions of the classes and at least one
    of each; chosen by --seed. Default: all."""
    max_train_images: int | None = None
    """The same for the training images alone. Default: all."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """Unreadable images: fail lists all of them before the first step and stops; skip leaves them out."""
    max_pixels: int = 100_000_000
    """Images of more pixels count as unreadable; some formats get half or a quarter of this. Each takes up to 20 bytes
    of memory per pixel."""
    balance: Literal["none", "classes"] = "none"
    """classes: draw every class equally often, whatever its number of images."""

    model: Annotated[str | None, Flag("--arch")] = None
    """efficientnet_lite0 (or lite1, lite2), any torchvision classifier, or timm/NAME. NAME+2 adds the features of two
    more stages; timm/NAME+avg is a vision transformer whose patches are averaged (fc_norm). Default:
    efficientnet_lite0; for a head on cached features efficientnet_lite0+2."""
    weights: str = "default"
    """default (ImageNet), none (random initialisation), a .safetensors or .pth file, a flowers run or model folder, or
    the name of a torchvision weights entry. A new head is trained; see --continue-from."""
    continue_from: Path | None = None
    """Start a new run from the network and the head of a run, model or checkpoint; its photos and epochs may be others.
    Classes the model knows keep their rows of the head, new ones are added."""
    hidden: int | None = None
    """Width of one hidden layer in the head. Default: no hidden layer, a linear head."""
    dropout: float = 0.0
    """Dropout probability before the last layer of the head."""

    finetune: Literal["head", "full", "staged"] = "head"
    """head: train a new head on a frozen backbone. full: train the whole network. staged: train the head first, then
    the whole network."""
    feature_cache: bool = True
    """With --finetune head: run the frozen backbone once per view and train on the stored features."""
    views: int = 1
    """Views of each training image in the feature cache: the plain image first, then augmented ones."""
    tune_head: bool | Literal["wide"] = False
    """With cached features: choose the weight decay of the head by cross-validation on the training images, then fit
    it to all of them. wide: choose also the network's stages, the image size and the number of views, unless they are
    given; takes five to ten times as long."""
    refit_head: bool = False
    """After --finetune full or staged, fit a new linear head at once to the mean of the network's weights before and
    after training, on four views of each image and in float32: more accurate and better calibrated, for little more
    time. The default network shows it two more stages. The run of the network is kept in the folder network/."""
    freeze_bn: bool = False
    """Freeze batch-norm statistics (with --finetune full or staged). Use about a tenth of the default learning rate,
    e.g. --lr 0.003."""
    drop_path: float = 0.0
    """Stochastic depth: probability of dropping the last residual block, falling linearly to 0 at the first; 0 disables
    it."""
    grad_checkpointing: bool = False
    """Compute the activations of each block again in the backward pass instead of keeping them: less memory, about a
    third more time, the same results (with --finetune full or staged)."""

    epochs: int | None = None
    """Passes over the training images. Default: 50 for a head on cached features, 10 for a head on images, 20 for a
    whole network; lbfgs needs one."""
    batch_size: Annotated[int, Flag("-b")] = 32
    """Images per process and micro-step. The global batch is this times the processes and --grad-accum-steps."""
    grad_accum_steps: int = 1
    """Micro-steps whose gradients are accumulated into one optimizer step."""
    optimizer: Literal["adamw", "adam", "sgd", "lbfgs"] | None = None
    """sgd uses Nesterov momentum of 0.9. lbfgs fits a linear head to all cached features at once, in seconds. Default:
    sgd for a whole network; for a head lbfgs, or adamw with --epochs, --lr or another flag about its steps."""
    lr: float | Literal["auto"] | None = None
    """Peak learning rate. auto: chosen by a range test. Default: 0.03 for sgd; for adamw and adam 0.003 (head) or
    0.0003 (whole network); all at a global batch of 32, scaled with its square root."""
    weight_decay: float | None = None
    """Weight decay; not applied to biases and normalisation layers. Default: 0.1 for a head, 0.0001 for a whole
    network; with lbfgs a penalty on the weights of scaled features, 0.001."""
    layer_decay: float = 1.0
    """Layer-wise learning-rate decay: each backbone block trains at this fraction of the rate of the block above it."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: half a cosine down to --min-lr, or constant."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine; blocks below the head have their share of it with --layer-decay."""
    warmup_epochs: float = 0.5
    """Epochs of linear warm-up."""
    max_grad_norm: float | None = None
    """Clip gradients to this norm. Default: no clipping."""
    label_smoothing: float | None = None
    """Share of the target that is spread evenly over all classes. Default: 0.1; with lbfgs
    0.05, whose head is then made as sure as it is right on training images held out."""
    model_ema_decay: float | None = None
    """Evaluate and save an exponential moving average (EMA) of the weights with this decay; 0 disables it. Default:
    0.995 for a whole network, 0 for a head."""

    image_size: int | None = None
    """Side of the square image at evaluation, in pixels. Default: the size that the model was pre-trained with."""
    train_size: int | None = None
    """Side of the square image in training. Default: the evaluation size for a head; 0.8 of it for a whole network,
    which is faster and more accurate."""
    first_train_size: int | None = None
    """Training image size in the first epoch. It grows linearly to --train-size over the first three quarters of
    training. Default: half the evaluation size when the whole network is trained, or --train-size if that is given."""
    resize: int | None = None
    """Short side before the centre crop at evaluation. Default: that of the model; closer to the crop when the whole
    network is trained."""
    mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue that is subtracted from pixels from 0 to 1; stored in the model. Default for this and
    the following two flags: the values that the model was pre-trained with."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of red, green and blue that pixels are divided by after that."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Interpolation used for resizing, at evaluation and in training."""
    color_profiles: Literal["convert", "ignore"] | None = None
    """convert: photos with a color profile such as Display P3, Adobe RGB or one of CMYK are converted to sRGB, in
    training and wherever the model runs. ignore: their numbers are taken as they are. Default: convert; with
    --continue-from as the model did."""
    rotation: float = 30.0
    """Random rotation in training, up to this many degrees in both directions."""
    scale: tuple[float, float] | None = None
    """Random crop in training: smallest and largest share of the image area. Default: 0.5 1 for a head, 0.25 1 for a
    whole network."""
    hflip: float = 0.5
    """Probability of a horizontal flip in training."""
    vflip: float = 0.0
    """Probability of a vertical flip in training, for pictures without an up and down."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation changes in training; 0 disables it."""
    random_erasing: float = 0.0
    """Probability of erasing a random rectangle in training."""
    auto_augment: Literal["none", "trivial", "rand"] | None = None
    """trivial: one random TrivialAugment operation of any strength per training view. rand: two RandAugment operations
    of moderate strength. Default: trivial for a whole network, none for a head."""
    mixup_alpha: float = 0.0
    """Beta parameter of mixup; 0 disables it."""
    cutmix_alpha: float = 0.0
    """Beta parameter of CutMix; 0 disables it."""
    mix_off_epochs: int = 0
    """Number of last epochs without mixup and CutMix."""

    eval_every: int | None = None
    """Also validate every N steps, not only after each epoch. Default: after each epoch only."""
    patience: int | None = None
    """Stop after this many epochs in a row without a better model. Default: train all epochs."""
    save_every: str = "epoch"
    """Save a checkpoint each epoch, every N steps (200) or every N minutes (10m)."""
    keep: int = 2
    """Checkpoints to keep, at least two."""
    resume: str = "auto"
    """auto: resume the run in --output-dir if there is one. never: refuse to start if there is one. Or the path of a
    checkpoint."""
    max_hours: float | None = None
    """Save and stop with exit code 75 after this many hours; the same command resumes. Default: no limit."""
    calibrate: bool = True
    """Fit a temperature on the validation images at the end, so that a probability says how often an answer is right,
    the threshold of predict --min-prob auto, and what tells photos of none of the classes. They are stored in the model
    if there are enough images."""
    report: bool = True
    """Write a self-contained page about the model, report.html, at the end."""
    log_interval: int = 10
    """Steps between readings of the training loss; trackers get a point at each."""
    log_with: tuple[str, ...] | None = None
    """One or more trackers that Accelerate supports: tensorboard, wandb, mlflow, ... They get training loss, learning
    rate and images per second each --log-interval steps, and the validation figures. Default: none."""
    project: str = "flowers"
    """Project in which trackers file the run."""
    run_name: str | None = None
    """Name of the run in trackers. Default: the name of the run folder."""

    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Arithmetic of the network. Default: what `accelerate launch` was told; else bf16 for a whole network where the
    device supports it, no for a head."""
    compile: bool = False
    """Compile the network with torch.compile."""
    deterministic: bool = False
    """On a GPU, use only kernels that give the same bits every time, so that a resumed run is bit-identical to one that
    was never stopped; some networks become slower. On a CPU this holds without the flag."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keep decoded images, slightly larger than the training size, in memory or on disk; shared by the processes of a
    machine."""
    workers: Annotated[int | None, Flag("-j")] = None
    """Loader processes per training process; 0 loads in the process itself. Default: the available CPUs divided by the
    local processes."""
    seed: int = 0
    """Seed of data order, augmentation, head initialisation and dropout."""

    @staticmethod
    def preset(recipe: str) -> dict[str, object]:
        """Defaults that ``--recipe`` puts in the place of these; see ``flowers.cli.parse``."""
        return recipe_defaults(recipe)

    def __post_init__(self) -> None:
        read_values(self)

    @property
    def run_dir(self) -> Path:
        """The run folder; ``runs/DATA-MODEL`` by default, so that another data set or model gets one of its own."""
        return (
            self.output_dir or Path("runs") / f"{self.data_dir.resolve().stem}-{Path(self.model or DEFAULT_MODEL).name}"
        )

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names in ``--log-with``, each once; commas separate them as spaces do."""
        names = (name.strip() for word in self.log_with or () for name in word.split(","))
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def uses_features(self) -> bool:
        """True if the frozen backbone runs once per view and the head trains on the cached features."""
        return self.finetune == "head" and self.feature_cache

    @property
    def fits_at_once(self) -> bool:
        """True if a linear head on cached features is fitted by L-BFGS: no flag asks for small steps."""
        if self.optimizer is not None or not self.uses_features:
            return self.optimizer == "lbfgs"
        stepwise = (*OF_STEPS, "weight_decay", "label_smoothing")
        return all(getattr(self, name) == getattr(TrainConfig, name) for name in stepwise)
