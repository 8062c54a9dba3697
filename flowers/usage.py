"""Words for wrong words: the flag that was meant, under its name in other tools too."""

import difflib
from collections.abc import Collection, Sequence

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    # timm, torchvision, transformers, ultralytics, mae: the flag of the same meaning here, the first that a job has
    "--learning-rate": ("--lr",),
    "--base-lr": ("--lr",),
    "--blr": ("--lr",),
    "--lr-base": ("--lr",),
    "--lr0": ("--lr",),
    "--opt": ("--optimizer",),
    "--optim": ("--optimizer",),
    "--sched": ("--schedule",),
    "--scheduler": ("--schedule",),
    "--lr-scheduler": ("--schedule",),
    "--lr-scheduler-type": ("--schedule",),
    "--wd": ("--weight-decay",),
    "--lr-min": ("--min-lr",),
    "--eta-min": ("--min-lr",),
    "--cooldown-lr": ("--min-lr",),
    "--clip-grad": ("--max-grad-norm",),
    "--clip-grad-norm": ("--max-grad-norm",),
    "--num-epochs": ("--epochs",),
    "--num-train-epochs": ("--epochs",),
    "--lr-warmup-epochs": ("--warmup-epochs",),
    "--warmup": ("--warmup-epochs",),
    "--bs": ("--batch-size",),
    "--batch": ("--batch-size",),
    "--train-batch-size": ("--batch-size",),
    "--eval-batch-size": ("--batch-size",),
    "--per-device-train-batch-size": ("--batch-size",),
    "--per-device-eval-batch-size": ("--batch-size",),
    "--accum-iter": ("--grad-accum-steps",),
    "--gradient-accumulation-steps": ("--grad-accum-steps",),
    "--aa": ("--auto-augment",),
    "--trivial-augment": ("--auto-augment",),
    "--rand-augment": ("--auto-augment",),
    "--randaugment": ("--auto-augment",),
    "--smoothing": ("--label-smoothing",),
    "--mixup": ("--mixup-alpha",),
    "--cutmix": ("--cutmix-alpha",),
    "--mixup-off-epoch": ("--mix-off-epochs",),
    "--close-mosaic": ("--mix-off-epochs",),
    "--reprob": ("--random-erasing",),
    "--random-erase": ("--random-erasing",),
    "--degrees": ("--rotation",),
    "--fliplr": ("--hflip",),
    "--hflip-prob": ("--hflip",),
    "--flipud": ("--vflip",),
    "--vflip-prob": ("--vflip",),
    "--drop": ("--dropout",),
    "--drop-rate": ("--dropout",),
    "--drop-path-rate": ("--drop-path",),
    "--train-interpolation": ("--interpolation",),
    "--image-mean": ("--mean",),
    "--image-std": ("--std",),
    "--img-size": ("--image-size",),
    "--imgsz": ("--image-size",),
    "--input-size": ("--image-size",),
    "--val-crop-size": ("--image-size",),
    "--val-resize-size": ("--resize",),
    "--train-crop-size": ("--train-size",),
    "--model-ema": ("--model-ema-decay",),
    "--ema": ("--model-ema-decay",),
    "--early-stopping-patience": ("--patience",),
    "--freeze": ("--finetune",),
    "--linear-probe": ("--finetune",),
    "--model-name-or-path": ("--model", "--checkpoint"),
    "--model-name": ("--model", "--checkpoint"),
    "--model": ("--checkpoint",),
    "--weights": ("--checkpoint",),
    "--ckpt": ("--checkpoint", "--resume"),
    "--model-path": ("--checkpoint",),
    "--pretrained": ("--weights",),
    "--scratch": ("--weights",),
    "--initial-checkpoint": ("--weights", "--checkpoint"),
    "--finetune-from": ("--weights",),
    "--resume-from-checkpoint": ("--resume",),
    "--data-path": ("--data-dir", "--input"),
    "--dataset": ("--data-dir", "--input"),
    "--dataset-name": ("--data-dir",),
    "--train-dir": ("--data-dir",),
    "--train-data-dir": ("--data-dir",),
    "--val-dir": ("--data-dir",),
    "--validation-dir": ("--data-dir",),
    "--data-dir": ("--input",),
    "--data": ("--input",),
    "--source": ("--input",),
    "--images": ("--input",),
    "--image": ("--input",),
    "--input-dir": ("--input",),
    "--input": ("--data-dir",),
    "--val-split": ("--val-fraction", "--split"),
    "--validation-split": ("--val-fraction", "--split"),
    "--class-map": ("--class-names", "--classes"),
    "--output": ("--output-dir",),
    "--out": ("--output", "--output-dir"),
    "--output-dir": ("--output",),
    "--results-file": ("--output",),
    "--results-dir": ("--output",),
    "--save-dir": ("--output-dir", "--output"),
    "--run-dir": ("--output-dir", "--checkpoint"),
    "--experiment": ("--output-dir",),
    "--name": ("--output-dir",),
    "--amp": ("--mixed-precision", "--precision"),
    "--amp-dtype": ("--mixed-precision", "--precision"),
    "--fp16": ("--mixed-precision", "--precision"),
    "--bf16": ("--mixed-precision", "--precision"),
    "--half": ("--mixed-precision", "--precision"),
    "--mixed-precision": ("--precision",),
    "--precision": ("--mixed-precision",),
    "--torchcompile": ("--compile", "--engine"),
    "--torch-compile": ("--compile", "--engine"),
    "--compile": ("--engine",),
    "--backend": ("--engine",),
    "--device": ("--engine",),
    "--num-workers": ("--workers",),
    "--dataloader-num-workers": ("--workers",),
    "--checkpoint-hist": ("--keep",),
    "--save-total-limit": ("--keep",),
    "--save-freq": ("--save-every",),
    "--save-steps": ("--save-every",),
    "--eval-steps": ("--eval-every",),
    "--print-freq": ("--log-interval",),
    "--logging-steps": ("--log-interval",),
    "--log-wandb": ("--log-with",),
    "--report-to": ("--log-with",),
    "--top-k": ("--topk",),
    "--conf": ("--min-prob",),
    "--threshold": ("--min-prob",),
    "--augment": ("--tta",),
    "--recursive": ("--input",),
    "--extensions": ("--ext",),
    "--batch-sizes": ("--batch-size",),
}


def unknown_flag(word: str, known: Collection[str]) -> str:
    """Say that there is no such flag and which was meant: the same in other letters, another tool's, or the nearest."""
    name = "--" + word.lstrip("-").lower()
    meant = name if name in known else next((flag for flag in OTHER_NAMES.get(name, ()) if flag in known), None)
    if meant is not None and name in OTHER_NAMES and meant != name:
        return f"{word}: no such flag; here it is {meant}"
    if meant is None and name in OTHER_NAMES:
        return f"{word}: no such flag"
    near = [meant] if meant else difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"{word}: no such flag" + (f"; did you mean {near[0]}?" if near else "")


def missing(options: Sequence) -> str:
    """Say which flags are missing, and what the only one takes."""
    if len(options) == 1:
        return f"{options[0].spelled} is missing, expected {options[0].expected}"
    return " and ".join(option.spelled for option in options) + " are missing"


def either(words: Sequence[str]) -> str:
    """ "a, b or c"."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
