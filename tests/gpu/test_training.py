"""Training on the device: every stage in every precision, killed and resumed, and what only a GPU does."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bench_train_step import resident_trainer
from jobs_in_processes import Job, free_port, without
from safetensors.torch import load_file
from torch import Tensor
from traps import die_in_step, save_first_weights

CONVNET = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", 32]
TRANSFORMER = ["--model", "timm/test_vit", "--weights", "none", "--image-size", 96]  # without batch norm
SHORT = ["-j", 0, "-b", 8, "--epochs", 2, "--save-every", 2, "--log-interval", 2, "--no-report"]  # 8 steps
KILLED_AT = 6


def prepare(device: str, trap: Callable = print, *arguments: object) -> None:
    """Run in each process before its job: OpenVINO is hidden, as on machines with GPUs, then comes a trap."""
    from flowers.engines import openvino_engine

    openvino_engine.why_not = lambda: "is hidden"
    if device == "cuda" and int(os.environ["WORLD_SIZE"]) > 1:  # all processes on one GPU, where NCCL cannot work
        import accelerate

        kwargs = accelerate.InitProcessGroupKwargs
        accelerate.InitProcessGroupKwargs = lambda **values: kwargs(backend="gloo", **values)
        os.environ["LOCAL_RANK"] = "0"
    trap(*arguments)


def start(folder: Path, device: str, flags: list, *trap: object, processes: int = 1) -> Job:
    return Job("train", flags, folder=folder, processes=processes, before=prepare, arguments=(device, *trap))


def weights(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / "last" / "model.safetensors")


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Euclidean, over all weights that are trained."""
    names = [name for name, tensor in a.items() if tensor.is_floating_point() and "running" not in name]
    return sum(float((a[name].double() - b[name].double()).square().sum()) for name in names) ** 0.5


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("finetune", ["head", "full", "staged"])
def test_a_killed_run_resumes_bit_for_bit(
    finetune: str, precision: str, device: str, sample_set: Path, tmp_path: Path
) -> None:
    if device == "cpu" and (precision == "fp16" or finetune != "full"):
        pytest.skip("fp16 needs a GPU" if precision == "fp16" else "tests/test_resume.py shows it on CPUs")
    flags = [*CONVNET, *SHORT, "--data-dir", sample_set, "--finetune", finetune, "--mixed-precision", precision]
    flags += ["--deterministic", *(["--tune-head"] if finetune == "staged" else [])]  # whose head is fitted at once
    whole = start(tmp_path, device, [*flags, "--output-dir", "whole"])
    assert whole.wait() == [0], whole.output
    assert re.search(rf"device +{device}", whole.output)
    killed = start(tmp_path, device, [*flags, "--output-dir", "run"], die_in_step, KILLED_AT)
    assert killed.wait() == [-signal.SIGKILL], killed.output
    resumed = start(tmp_path, device, [*flags, "--output-dir", "run"])
    assert resumed.wait() == [0], resumed.output
    for name in ("best/model.safetensors", "last/model.safetensors", "history.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_without_deterministic_kernels_a_resumed_run_stays_close(
    precision: str, device: str, on_gpu: None, sample_set: Path, tmp_path: Path
) -> None:
    """The promise on GPUs without --deterministic: the distance is at most a tenth of the way that training went."""
    flags = [*CONVNET, *SHORT, "--data-dir", sample_set, "--finetune", "full", "--mixed-precision", precision]
    whole = start(tmp_path, device, [*flags, "--output-dir", "whole"], save_first_weights, str(tmp_path / "first"))
    assert whole.wait() == [0], whole.output
    killed = start(tmp_path, device, [*flags, "--output-dir", "run"], die_in_step, KILLED_AT)
    assert killed.wait() == [-signal.SIGKILL], killed.output
    resumed = start(tmp_path, device, [*flags, "--output-dir", "run"])
    assert resumed.wait() == [0], resumed.output
    found, expected = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert distance(found, expected) < 0.1 * distance(expected, load_file(tmp_path / "first"))


@pytest.fixture(scope="module")
def alone(device: str, sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list, dict, dict]:
    """Flags of a run, and the weights with which it begins and ends on one process."""
    network = CONVNET if device == "cuda" else TRANSFORMER  # on CPUs batch norm is per process
    flags = [*network, *SHORT, "--data-dir", sample_set, "--finetune", "full", "--mixed-precision", "no"]
    flags += ["--deterministic", "--model-ema-decay", 0]
    folder = tmp_path_factory.mktemp("alone")
    job = start(folder, device, [*flags, "--output-dir", "run"], save_first_weights, str(folder / "first"))
    assert job.wait() == [0], job.output
    return flags, load_file(folder / "first"), weights(folder / "run")


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_that_share_the_device_train_as_one(
    processes: int, device: str, alone: tuple[list, dict, dict], tmp_path: Path
) -> None:
    """DDP over one process and over two; on GPUs batch norm is over the images of both."""
    flags, first, expected = alone
    flags = [*without(flags, "-b"), "--output-dir", "run", "-b", 8 // processes]
    trap = [join_group_of_one, free_port()] if processes == 1 else []
    group = start(tmp_path, device, flags, *trap, processes=processes)
    assert group.wait() == [0] * processes, group.output
    found = weights(tmp_path / "run")
    if processes == 1:
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert distance(found, expected) < 0.01 * distance(expected, first)


def join_group_of_one(port: int) -> None:
    """What a launcher of one process sets."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


# in this process


@pytest.fixture
def trainer_of(device: str, fresh_accelerator: None) -> Callable:
    """Trainer and batch of these flags, on the device."""

    def build(*flags: object, network: list = TRANSFORMER):
        torch.manual_seed(0)
        trainer, batch = resident_trainer([*network, "--warmup-epochs", 0, *flags])
        assert trainer.accelerator.device.type == device
        return trainer, batch

    return build


def state(trainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.stage.model.classifier.state_dict().items()}


def test_accumulated_gradients_are_those_of_the_whole_batch(trainer_of: Callable) -> None:
    found = []
    for count in (1, 2):
        trainer, batch = trainer_of("-b", 8 // count, "--grad-accum-steps", count, "--mixed-precision", "no", "--lr", 1)
        if count == 1:
            halves = [type(batch)(*(tensor[part] for tensor in batch)) for part in (slice(0, 4), slice(4, 8))]
        before = state(trainer)
        trainer.step([batch] if count == 1 else halves, 8)
        trainer.read_losses()
        found.append((before, state(trainer)))
    (before, whole), (_, accumulated) = found
    assert distance(whole, before) > 0
    assert distance(accumulated, whole) < 1e-3 * distance(whole, before)


def test_the_weight_average_follows_the_weights(trainer_of: Callable, device: str) -> None:
    trainer, batch = trainer_of("-b", 4, "--mixed-precision", "no", "--model-ema-decay", 0.2)
    name = "head.output.weight"
    expected = state(trainer)[name]
    for step in (1, 2, 3):
        trainer.step([batch], 4)
        trainer.progress.step = step
        expected = torch.lerp(expected, state(trainer)[name], 1 - min(0.2, (1 + step) / (10 + step)))
    with trainer.averaged():
        averaged = state(trainer)[name]
    assert averaged.device.type == device
    assert torch.allclose(averaged, expected, atol=1e-6)
    assert not torch.allclose(averaged, state(trainer)[name], atol=1e-6)


def test_images_and_weights_are_channels_last(trainer_of: Callable) -> None:
    trainer, batch = trainer_of("-b", 4, "--mixed-precision", "bf16", network=CONVNET)
    seen: list[bool] = []
    for module in trainer.stage.model.classifier.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda module, images, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    trainer.step([batch], 4)
    assert seen
    assert all(seen)
    for tensor in trainer.stage.model.classifier.parameters():
        assert tensor.ndim < 4 or tensor.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_step_is_the_eager_one(trainer_of: Callable, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpu":  # real compilation takes most of a minute there, and other tests do it
        compiler = torch.compile
        monkeypatch.setattr(torch, "compile", lambda module, **options: compiler(module, backend="eager", **options))
    found = []
    for flags in ([], ["--compile"]):
        trainer, batch = trainer_of("-b", 4, "--mixed-precision", "no", "--lr", 1, *flags)
        before = state(trainer)
        trainer.step([batch], 4)
        loss = trainer.read_losses()
        found.append((loss, before, state(trainer)))
    (loss, before, eager), (compiled_loss, _, compiled) = found
    assert compiled_loss == pytest.approx(loss, rel=1e-3)
    assert distance(compiled, eager) < 0.02 * distance(eager, before)


def test_an_overflow_skips_the_step_and_halves_the_scale(trainer_of: Callable, on_gpu: None) -> None:
    trainer, batch = trainer_of("-b", 4, "--mixed-precision", "fp16")
    scaler = trainer.accelerator.scaler
    trainer.step([batch], 4)
    scaler.update(new_scale=2.0**60)
    before = state(trainer)
    trainer.step([batch], 4)
    assert distance(before, state(trainer)) == 0
    assert scaler.get_scale() == 2.0**59
    scaler.update(new_scale=128.0)
    trainer.step([batch], 4)
    assert distance(before, state(trainer)) > 0
    trainer.read_losses(check_weights=True)


def test_the_head_stage_gives_its_memory_back(
    device: str, sample_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None
) -> None:
    from flowers.config.train import TrainConfig
    from flowers.engines import openvino_engine
    from flowers.training import train

    held: list[int] = []
    prepare_stage = train.prepare_stage

    def weigh(*args):
        held.append(held_bytes(device))
        return prepare_stage(*args)

    monkeypatch.setattr(train, "prepare_stage", weigh)
    monkeypatch.setattr(openvino_engine, "why_not", lambda: "is hidden")
    config = TrainConfig(
        sample_set, tmp_path / "run", model="timm/test_resnet", weights="none", finetune="staged", image_size=32,
        epochs=1, workers=0, report=False,
    )  # fmt: skip
    train.train(config)
    first, second = held
    assert second - first < 2**20, f"{(second - first) / 2**20:.1f} MiB of the head's stage were kept"


def held_bytes(device: str) -> int:
    """Of tensors on the device."""
    import gc

    gc.collect()
    if device == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
        return torch.cuda.memory_allocated()
    tensors = [value for value in gc.get_objects() if type(value) in (Tensor, torch.nn.Parameter)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
