"""What training all layers adds: batch norm held still, growing views, mixing that ends, patience, rates by depth."""

import copy
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jobs_in_processes import Job, without
from safetensors.torch import load_file
from torch import nn
from traps import around_step

from flowers.cli import parse
from flowers.config.train import TrainConfig
from flowers.data.augment import Augmentation
from flowers.data.folders import load_image_folders
from flowers.data.loaders import Batch, TrainLoader
from flowers.data.order import Order
from flowers.data.splits import ValidationDraw
from flowers.errors import CheckpointError, ModelError, UsageError
from flowers.models.backbones import build_backbone
from flowers.models.bundle import load_bundle
from flowers.models.heads import Classifier
from flowers.training.flags import check_flags
from flowers.training.model import set_grad_checkpointing, train_sizes
from flowers.training.schedule import mixes, view_sizes
from jobs.train import main

TINY = ("--model", "timm/test_efficientnet", "--weights", "none", "--image-size", "64", "--finetune", "full",
        "--epochs", "2", "-b", "16", "-j", "0", "--mixed-precision", "no", "--no-report")  # fmt: skip
FLAGS = ("--model", "timm/test_resnet", "--weights", "none", "--image-size", "32", "--finetune", "full", "-j", "0")


def train(sample_set: Path, folder: Path, *flags: object) -> tuple[Path, str]:
    job = Job(
        "train", ("--data-dir", sample_set, "--output-dir", "run", *without(FLAGS, *flags), *flags), folder=folder
    )
    assert job.wait() == [0], job.output
    return folder / "run", job.output


def history(run_dir: Path, event: str) -> list[dict]:
    lines = map(json.loads, (run_dir / "history.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def test_patience_ends_a_run_that_gets_no_better(sample_set: Path, tmp_path: Path) -> None:
    flags = ("--epochs", "9", "--patience", "2", "--lr", "1e-30", "--freeze-bn")
    run_dir, output = train(sample_set, tmp_path, *flags)
    assert len(history(run_dir, "train")) == 3
    assert "no better model in 2 epochs (--patience): stopping after epoch 3" in output
    assert (run_dir / "metrics.json").exists()
    assert "is finished already" in train(sample_set, tmp_path, *flags)[1]


def test_two_processes_run_out_of_patience_together(sample_set: Path, tmp_path: Path) -> None:
    flags = ("--epochs", "9", "--patience", "1", "--lr", "1e-30", "--freeze-bn")
    job = Job("train", ("--data-dir", sample_set, "--output-dir", "run", *FLAGS, *flags), folder=tmp_path, processes=2)
    assert job.wait() == [0, 0], job.output
    assert len(history(tmp_path / "run", "train")) == 2


def test_frozen_batch_norm_keeps_its_statistics_while_weights_learn(sample_set: Path, tmp_path: Path) -> None:
    flags = ("--epochs", "2", "--freeze-bn", "--layer-decay", "0.9", "--optimizer", "adam")
    run_dir, _ = train(sample_set, tmp_path, *flags)
    state = load_bundle(run_dir / "last").state_dict
    means = [tensor for name, tensor in state.items() if name.endswith("running_mean")]
    assert means
    assert all(not mean.any() for mean in means), "a random network's means start at zero"
    scales = [state[name.replace("running_mean", "weight")] for name in state if name.endswith("running_mean")]
    assert all((scale != 1).any() for scale in scales), "the scales are weights and learn"


def test_views_grow_to_their_full_size() -> None:
    def sizes(epochs: int, first: int | None, last: int) -> list[int]:
        config = TrainConfig(data_dir=Path("data"), epochs=epochs, first_train_size=first, train_size=last)
        return view_sizes(config)

    assert sizes(8, 96, 160) == [96, 112, 112, 128, 144, 144, 160, 160]
    assert sizes(3, None, 160) == [160, 160, 160]
    assert sizes(1, 96, 150) == [96]
    assert sizes(2, 96, 150) == [96, 150]
    assert sizes(3, 7, 40) == [7, 16, 40]


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        ((), (48, 32)),
        (("--first-train-size", "40"), (48, 40)),
        (("--train-size", "64"), (64, None)),
        (("--train-size", "64", "--first-train-size", "40"), (64, 40)),
        (("--finetune", "head", "--no-feature-cache"), (64, None)),
    ],
)
def test_sizes_not_given_have_the_defaults_that_help_says(flags: tuple, sizes: tuple) -> None:
    config = parse(TrainConfig, ["--data-dir", "x", *without(FLAGS, *flags), *flags])
    assert train_sizes(config, build_backbone("shufflenet_v2_x0_5", "none").network, 64) == sizes


def test_views_do_not_shrink() -> None:
    config = parse(TrainConfig, ["--data-dir", "x", *FLAGS, "--first-train-size", "96"])
    with pytest.raises(UsageError, match="--first-train-size: got 96, expected at most --train-size, here 48"):
        train_sizes(config, build_backbone("shufflenet_v2_x0_5", "none").network, 64)


@pytest.mark.parametrize("how", ["head", "full"])
def test_an_image_size_that_the_network_does_not_take_is_refused(how: str) -> None:
    config = TrainConfig(data_dir=Path("data"), model="squeezenet1_1", finetune=how, image_size=16)
    with pytest.raises(UsageError, match="--image-size: got 16, but squeezenet1_1 does not take images of 16 pixels"):
        train_sizes(config, build_backbone("squeezenet1_1", "none", 16).network, 16)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_each_epoch_its_size(sample_set: Path, workers: int) -> None:
    data = load_image_folders(sample_set, draw=ValidationDraw(0.2, seed=0))
    order = Order(len(data.train), 0, 8, 1)
    loader = TrainLoader(data.train, Augmentation(48), order, rank=0, workers=workers, sizes=[32, 48])
    for epoch, size in enumerate((32, 48)):
        assert {batch.images.shape for batch in loader.epoch(epoch)} == {(8, size, size, 3)}


def test_growing_views_train(sample_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []

    def record(_: object, micro_batches: list[Batch]) -> None:
        sides.append(micro_batches[0].images.shape[1])

    around_step(before=record, into=monkeypatch.setattr)
    weights_of(sample_set, tmp_path / "run", "--epochs", "2", "--first-train-size", "32", "--train-size", "48")
    assert sides == [32, 32, 48, 48]


def weights_of(sample_set: Path, run_dir: Path, *flags: object) -> dict[str, torch.Tensor]:
    """What a short run in this process ends with."""
    words = ("--data-dir", sample_set, "--output-dir", run_dir, *without(TINY, *flags), *flags)
    assert main(parse(TrainConfig, [str(word) for word in words])) == 0
    return load_file(run_dir / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def default_weights(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return weights_of(sample_set, tmp_path_factory.mktemp("default") / "run")


def test_compiled_training_is_training(
    sample_set: Path, tmp_path: Path, default_weights: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Growing views, evaluation, weight average and names of tensors, with a compiler that changes no number.

    It is given one size at a time: for all sizes at once the real one fails on some networks (shufflenet).
    """
    sides = set()

    def as_it_is(program: torch.fx.GraphModule, inputs: list) -> Callable:
        sides.update(side for value in inputs if value.ndim == 4 for side in value.shape[2:])
        return program.forward

    monkeypatch.setenv("CXX", sys.executable)  # is looked for, and not used
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=as_it_is))
    compiled = weights_of(sample_set, tmp_path / "run", "--compile")
    assert {type(side) for side in sides} == {int}
    assert compiled.keys() == default_weights.keys()
    assert all(torch.equal(compiled[name], tensor) for name, tensor in default_weights.items())


def test_compilation_without_a_compiler(sample_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match=r"--compile needs a C\+\+ compiler and found none .*, or leave it out"):
        weights_of(sample_set, tmp_path / "run", "--compile")


ACTING = [
    "--optimizer adamw", "--lr 0.1", "--weight-decay 0.1", "--layer-decay 0.5", "--schedule constant",
    "--warmup-epochs 0", "--max-grad-norm 0.01", "--label-smoothing 0", "--mixup-alpha 1", "--cutmix-alpha 1",
    "--freeze-bn", "--model-ema-decay 0", "--train-size 64", "--first-train-size 48",
    "--rotation 0", "--scale 1 1", "--hflip 0", "--vflip 1", "--color-jitter 0.5", "--random-erasing 1",
    "--auto-augment none", "--auto-augment rand", "--dropout 0.5", "--min-lr 0.01",
    "--mean 0.1 0.2 0.3", "--std 0.1 0.2 0.3", "--interpolation bilinear",
]  # fmt: skip


@pytest.mark.parametrize("flag", ACTING)
def test_every_part_of_the_recipe_acts(
    flag: str, default_weights: dict[str, torch.Tensor], sample_set: Path, tmp_path: Path
) -> None:
    """A flag that nothing read would give the weights of a run without it, which are the same each time."""
    weights = weights_of(sample_set, tmp_path / "run", *flag.split())
    assert any(not torch.equal(tensor, default_weights[name]) for name, tensor in weights.items())


def test_without_a_flag_the_weights_are_the_same(
    default_weights: dict[str, torch.Tensor], sample_set: Path, tmp_path: Path
) -> None:
    weights = weights_of(sample_set, tmp_path / "run")
    assert all(torch.equal(tensor, default_weights[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("finetune", ["head", "staged"])
def test_normalisation_that_is_given_is_used_stored_and_said(
    finetune: str, sample_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ("--mean", "0.1", "0.2", "0.3", "--std", "0.4", "0.5", "0.6", "--interpolation", "bilinear")
    one = ("--finetune", finetune, "--epochs", "1", *flags)
    weights_of(sample_set, tmp_path / "run", *one)
    assert "mean 0.1 0.2 0.3, std 0.4 0.5 0.6, bilinear resizing" in " ".join(capsys.readouterr().out.split())
    view = load_bundle(tmp_path / "run" / "last").preprocessing
    assert (view.mean, view.std, view.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    assert view.to_srgb, "the default of new trainings"
    weights_of(sample_set, tmp_path / "run", *one)  # finished: the same flags fit
    with pytest.raises(CheckpointError, match="--std was .*0.6.*, is now None; resume with the old value"):
        weights_of(sample_set, tmp_path / "run", *one[:8], *one[12:])


def test_normalisation_stays_in_a_run_that_goes_on_from_another(sample_set: Path, tmp_path: Path) -> None:
    weights_of(sample_set, tmp_path / "a", "--epochs", "1", "--mean", "0.1", "0.2", "0.3", "--color-profiles", "ignore")
    words = ["--data-dir", sample_set, "--continue-from", tmp_path / "a", "--epochs", 1, "-j", 0, "--no-report"]
    converted = ["--mean", 0.4, 0.4, 0.4, "--color-profiles", "convert"]
    for name, more, mean in (("b", [], 0.1), ("c", converted, 0.4)):
        assert main(parse(TrainConfig, [str(word) for word in (*words, "--output-dir", tmp_path / name, *more)])) == 0
        view = load_bundle(tmp_path / name).preprocessing
        assert (view.mean[0], view.to_srgb) == (mean, more == converted)


def test_grad_checkpointing_changes_no_weight(
    sample_set: Path, tmp_path: Path, default_weights: dict[str, torch.Tensor]
) -> None:
    weights = weights_of(sample_set, tmp_path / "run", "--grad-checkpointing")
    assert weights.keys() == default_weights.keys()
    assert all(torch.equal(tensor, default_weights[name]) for name, tensor in weights.items())


def test_grad_checkpointing_in_bfloat16_computes_the_same_again() -> None:
    """Depthwise convolutions have their own backward pass there, in the second forward pass too."""
    torch.manual_seed(0)
    plain = Classifier(build_backbone("timm/test_efficientnet", "none").network, nn.Identity()).train()
    thrifty = copy.deepcopy(plain)
    set_grad_checkpointing(thrifty.backbone)
    images = torch.randn(4, 3, 64, 64)
    for classifier in (plain, thrifty):
        with torch.autocast("cpu", torch.bfloat16):
            loss = classifier(images).square().mean()
        loss.backward()
    for one, two in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite0+2", "resnet18", "timm/test_vit"])
def test_grad_checkpointing_keeps_less_and_gives_the_same(name: str) -> None:
    torch.manual_seed(0)
    plain = build_backbone(name, "none").network.train()
    thrifty = copy.deepcopy(plain)
    set_grad_checkpointing(thrifty)
    kept, images = [], torch.randn(2, 3, *(160, 160) if "vit" in name else (64, 64))
    for network in (plain, thrifty):
        storages: dict[int, int] = {}
        own = {tensor.data_ptr() for tensor in network.state_dict().values()}

        def pack(tensor: torch.Tensor, storages: dict = storages, own: set = own) -> torch.Tensor:
            if tensor.data_ptr() not in own:
                storages[tensor.data_ptr()] = tensor.nbytes
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(images).square().mean()
            kept.append(sum(storages.values()))
        loss.backward()
    assert kept[1] < 0.6 * kept[0]
    for one, two in zip(plain.parameters(), thrifty.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    assert all(map(torch.equal, plain.state_dict().values(), thrifty.state_dict().values()))


def test_a_network_without_blocks_is_told_in_one_line() -> None:
    with pytest.raises(ModelError, match="--grad-checkpointing: .* has no sequence of blocks"):
        set_grad_checkpointing(build_backbone("alexnet", "none").network)


def test_a_floor_above_the_peak_is_refused(sample_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--min-lr: got 1, expected at most the peak learning rate, here 0.0212"):
        weights_of(sample_set, tmp_path / "run", "--min-lr", "1")


def test_one_image_a_step_is_too_few_for_batch_norm_of_one_pixel(sample_set: Path, tmp_path: Path) -> None:
    """In a network whose last maps are of one pixel; the flag that the message names helps."""
    flags = ("--image-size", "32", "-b", "1", "--epochs", "1")
    with pytest.raises(UsageError, match="--batch-size 1: batch norm in this network needs two images or more"):
        weights_of(sample_set, tmp_path / "run", *flags)
    weights_of(sample_set, tmp_path / "run", *flags, "--freeze-bn")


def test_mixing_ends_before_the_run() -> None:
    config = TrainConfig(data_dir=Path("data"), epochs=4, mixup_alpha=0.2, mix_off_epochs=1)
    assert [mixes(config, epoch) for epoch in range(4)] == [True, True, True, False]
    assert not mixes(TrainConfig(data_dir=Path("data"), epochs=4), 0)


def test_the_last_epochs_see_whole_images(sample_set: Path, tmp_path: Path) -> None:
    """The first epochs are those of a run that mixes throughout, the last is not."""
    flags = ("--epochs", "2", "--mixup-alpha", "1", "--schedule", "constant", "--warmup-epochs", "0")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    mixed, _ = train(sample_set, tmp_path / "a", *flags)
    ended, _ = train(sample_set, tmp_path / "b", *flags, "--mix-off-epochs", "1")
    assert history(mixed, "train")[0] == history(ended, "train")[0]
    assert history(mixed, "train")[1]["loss"] != history(ended, "train")[1]["loss"]


def test_stochastic_depth_trains_and_is_gone_afterwards(sample_set: Path, tmp_path: Path) -> None:
    flags = ("--model", "efficientnet_b0", "--drop-path", "0.5", "--epochs", "1", "--batch-size", "16")
    run_dir, _ = train(sample_set, tmp_path, *flags)
    classifier = load_bundle(run_dir / "last").build().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(classifier(images), classifier(images))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--layer-decay", "0"), "--layer-decay: got 0.0, expected a share above 0, at most 1"),
        (("--finetune", "head", "--freeze-bn"), "--freeze-bn are about training the backbone"),
        (("--patience", "0"), "--patience: got 0, expected at least 1"),
        (("--drop-path", "1"), "--drop-path: got 1.0, expected a share from 0 to below 1"),
        (("--warmup-epochs", "inf"), "--warmup-epochs: got inf, expected a finite number"),
        (("--hflip", "1.5"), "--hflip: got 1.5, expected a share from 0 to 1"),
        (("--vflip", "-1"), "--vflip: got -1.0, expected a share from 0 to 1"),
        (("--finetune", "head", "--grad-checkpointing"), "--grad-checkpointing: no effect, as a frozen backbone"),
        (("--compile", "--grad-checkpointing"), "--grad-checkpointing: no effect, as --compile decides"),
        (("--mean", "124", "116", "104"), "--mean: got 124 116 104, expected three numbers from 0 to 1"),
        (("--std", "0", "1", "1"), "--std: got 0 1 1, expected three numbers from 1e-06 to 1"),
        (("--min-lr", "-1"), "--min-lr: got -1.0, expected at least 0"),
        (("--min-lr", "0.1", "--schedule", "constant"), "--min-lr: no effect with --schedule constant"),
        (
            ("--finetune", "head", "--optimizer", "lbfgs", "--min-lr", "0.1"),
            "--min-lr: no effect with --optimizer lbfgs",
        ),
        (("--finetune", "head", "--vflip", "0.5"), "--vflip: no effect, as features are cached from a single"),
        (
            ("--first-train-size", "64", "--train-size", "48"),
            "--first-train-size: got 64, expected at most --train-size 48",
        ),
        (
            ("--finetune", "head", "--random-erasing", "1"),
            "--random-erasing: no effect, as features are cached from a single unaugmented view",
        ),
        (("--finetune", "head", "--auto-augment", "trivial"), "add --views K or --no-feature-cache"),
        (("--finetune", "head", "--rotation", "10", "--scale", "0.2", "1"), "--rotation, --scale: no effect"),
        (("--finetune", "head", "--cache", "ram"), "--cache ram keeps decoded images, but with cached features each"),
    ],
)
def test_what_cannot_be_is_refused(flags: tuple, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_flags(parse(TrainConfig, ["--data-dir", "x", *without(FLAGS, *flags), *flags]))
    assert message in str(caught.value)
