"""Recipes are defaults that can be seen and overruled; original2018 does what the blog post of 2018 did."""

import json
import re
from pathlib import Path

import pytest
import yaml
from jobs_in_processes import Job
from safetensors.torch import load_file
from test_resume import die_in_step, result, save_first_weights

from flowers import cli
from flowers.config.presets import RECIPES
from flowers.config.train import TrainConfig
from flowers.data.preprocessing import Preprocessing
from flowers.errors import UsageError
from flowers.models.bundle import load_bundle
from flowers.training.flags import check_flags

BLOG = ["--data-dir", "x", "--recipe", "original2018"]


def test_original2018_is_what_the_blog_says() -> None:
    config = cli.parse(TrainConfig, BLOG)
    check_flags(config)
    assert (config.model, config.finetune, config.feature_cache) == ("densenet121", "head", False)
    assert (config.hidden, config.dropout, config.label_smoothing) == (400, 0.5, 0)
    assert (config.optimizer, config.lr, config.weight_decay) == ("adam", 0.001, 0)
    assert (config.schedule, config.warmup_epochs) == ("constant", 0)
    assert (config.epochs, config.batch_size, config.eval_every) == (3, 64, 40)
    assert (config.rotation, config.scale, config.hflip) == (30, (0.08, 1.0), 0.5)
    assert (config.image_size, config.resize) == (224, 225)


def test_fast_is_the_default_and_best_trains_all_weights() -> None:
    plain, fast, best = (
        cli.parse(TrainConfig, ["--data-dir", "x", "--recipe", name]) for name in ("None", "fast", "best")
    )
    assert {**cli.to_plain(fast), "recipe": None} == cli.to_plain(plain)
    assert (best.finetune, best.epochs, best.refit_head) == ("staged", 40, True)
    assert cli.parse(TrainConfig, ["--data-dir", "x", "--recipe", "best", "--epochs", "5"]).epochs == 5


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: original2018\nepochs: 7\nbatch_size: 32\nfeature_cache: true\nscale: [0.3, 0.9]\n")
    flags = ["--data-dir", "x", "--config", str(file), "-b", "8", "--arch", "vgg16"]
    config = cli.parse(TrainConfig, flags)
    assert (config.model, config.batch_size, config.epochs) == ("vgg16", 8, 7)
    assert (config.feature_cache, config.scale) == (True, (0.3, 0.9))
    assert (config.hidden, config.recipe) == (400, "original2018")
    assert cli.parse(TrainConfig, [*flags, "--no-feature-cache", "--hidden", "None"]).hidden is None


@pytest.mark.parametrize("recipe", [None, *RECIPES])
def test_the_config_of_a_run_repeats_it(recipe: str | None, tmp_path: Path) -> None:
    config = cli.parse(TrainConfig, ["--data-dir", "x", "--recipe", str(recipe), "--dropout", "0.25"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(cli.to_plain(config)))
    assert cli.to_plain(cli.parse(TrainConfig, ["--config", str(file)])) == cli.to_plain(config)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_made_of_true_flags(recipe: str) -> None:
    config = cli.parse(TrainConfig, ["--data-dir", "x", "--recipe", recipe])
    for name, value in RECIPES[recipe].defaults.items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value), name
    check_flags(config)


def test_a_wrong_recipe_or_network_is_told_in_one_line() -> None:
    with pytest.raises(UsageError, match="--recipe: got 'original2019', expected fast, best or original2018"):
        cli.parse(TrainConfig, ["--data-dir", "x", "--recipe", "original2019"])
    with pytest.raises(UsageError, match="is about densenet121, vgg13, vgg16: got --model resnet18"):
        check_flags(cli.parse(TrainConfig, [*BLOG, "--model", "resnet18"]))


@pytest.mark.processes
@pytest.mark.parametrize("model", RECIPES["original2018"].models)
def test_original2018_trains_the_head_of_each_network(model: str, tmp_path: Path) -> None:
    """Four steps with random weights on tiny images: which layers learn, which do not, and what is printed."""
    data = draw(tmp_path / "data", train=8)
    flags = ["--recipe", "original2018", "--model", model, "--weights", "none", "--data-dir", data, "-j", 0]
    flags += ["--image-size", 32, "--resize", 33, "-b", 4, "--epochs", 1, "--eval-every", 3, "--output-dir", "run"]
    job = Job("train", flags, folder=tmp_path, before=save_first_weights, arguments=(str(tmp_path / "first"),))
    assert job.wait() == [0], job.output
    first, last = load_file(tmp_path / "first"), load_file(tmp_path / "run" / "last" / "model.safetensors")
    head = {f"head.{layer}.{kind}" for layer in ("hidden", "output") for kind in ("weight", "bias")}
    changed = {name for name, tensor in first.items() if (tensor != last[name]).any()}
    assert changed == head
    assert first["head.hidden.weight"].shape == (400, 1024 if model == "densenet121" else 512 * 7 * 7)
    assert first["head.output.weight"].shape == (2, 400)
    statistics = [name for name in first if name.endswith(("running_mean", "num_batches_tracked"))]
    assert bool(statistics) == (model == "densenet121")
    assert re.search(r"training +head: [\d,]+ of [\d,]+ parameters, adam, lr 0.001$", job.output, re.M)
    printed = r"epoch 1/1, step 3: train loss \d\.\d{4}; valid loss \d\.\d{4} top1 [01]\.\d{4} top5 1\.0000"
    assert len(re.findall(printed, job.output)) == 1
    assert len(re.findall(r"^epoch 1/1: train loss .* valid loss", job.output, re.M)) == 1
    assert load_bundle(tmp_path / "run").preprocessing == Preprocessing(33, 32, to_srgb=True)


@pytest.mark.processes
def test_a_kill_between_two_validations_of_an_epoch_changes_nothing(sample_set: Path, tmp_path: Path) -> None:
    """The training loss that is printed is that since the last validation, also where a kill lies between them."""
    flags = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 32, "--no-feature-cache", "-j", 0]
    flags += ["--data-dir", sample_set, "-b", 4, "--epochs", 2, "--schedule", "constant", "--hidden", 8]
    flags += ["--dropout", 0.5, "--eval-every", 3, "--save-every", 4]
    whole = Job("train", [*flags, "--output-dir", "whole"], folder=tmp_path)
    assert whole.wait() == [0], whole.output
    killed = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path, before=die_in_step, arguments=(6,))
    assert killed.wait() == [-9], killed.output
    last = Job("train", [*flags, "--output-dir", "run"], folder=tmp_path)
    assert last.wait() == [0], last.output
    assert "resumed from step-00000004" in last.output
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    validations = [line for line in history if line["event"] == "valid" and line["epoch"] == 1]
    assert [line["step"] for line in validations] == [3, 6, 8]
    epoch_loss = sum(line["train_loss"] * steps for line, steps in zip(validations, (3, 3, 2), strict=True)) / 8
    assert epoch_loss == pytest.approx(next(line["loss"] for line in history if line["event"] == "train"))


def draw(folder: Path, *, train: int) -> Path:
    from flowers.datasets.drawn import draw_garden

    draw_garden(folder, species=2, train=train, valid=2, test=0, image_size=64, seed=0)
    return folder
