"""Words for wrong words: the flag that was meant, under its name in other tools too."""

import difflib
from collections.abc import Collection, Sequence

OTHER_NAMES = {
    "--model": "--model-name-or-path --model-name",
    "--weights": "--pretrained --scratch --initial-checkpoint --finetune-from",
    "--lr": "--learning-rate --base-lr --blr --lr-base --lr0",
    "--optimizer": "--opt --optim",
    "--schedule": "--sched --scheduler --lr-scheduler --lr-scheduler-type",
    "--weight-decay": "--wd",
    "--min-lr": "--lr-min --eta-min --cooldown-lr",
    "--max-grad-norm": "--clip-grad --clip-grad-norm",
    "--epochs": "--num-epochs --num-train-epochs",
    "--warmup-epochs": "--lr-warmup-epochs --warmup",
    "--batch-size": (
        "--bs --batch --train-batch-size --eval-batch-size --per-device-train-batch-size "
        "--per-device-eval-batch-size --batch-sizes"
    ),
    "--grad-accum-steps": "--accum-iter --gradient-accumulation-steps",
    "--auto-augment": "--aa --trivial-augment --rand-augment --randaugment",
    "--label-smoothing": "--smoothing",
    "--mixup-alpha": "--mixup",
    "--cutmix-alpha": "--cutmix",
    "--mix-off-epochs": "--mixup-off-epoch --close-mosaic",
    "--random-erasing": "--reprob --random-erase",
    "--rotation": "--degrees",
    "--hflip": "--fliplr --hflip-prob",
    "--vflip": "--flipud --vflip-prob",
    "--dropout": "--drop --drop-rate",
    "--grad-checkpointing": "--gradient-checkpointing",
    "--drop-path": "--drop-path-rate",
    "--interpolation": "--train-interpolation",
    "--mean": "--image-mean",
    "--std": "--image-std",
    "--image-size": "--img-size --imgsz --input-size --val-crop-size",
    "--resize": "--val-resize-size",
    "--train-size": "--train-crop-size",
    "--model-ema-decay": "--model-ema --ema",
    "--patience": "--early-stopping-patience",
    "--finetune": "--freeze --linear-probe",
    "--output-dir": "--output --out --save-dir --run-dir --experiment --name",
    "--checkpoint": (
        "--model-name-or-path --model-name --model --model-path --weights --ckpt --initial-checkpoint --run-dir"
    ),
    "--resume": "--ckpt --resume-from-checkpoint",
    "--data-dir": (
        "--data-path --dataset --dataset-name --train-dir --train-data-dir --val-dir --validation-dir --input"
    ),
    "--input": "--data-path --dataset --data-dir --data --source --images --image --input-dir --recursive",
    "--val-fraction": "--val-split --validation-split",
    "--split": "--val-split --validation-split",
    "--class-names": "--class-map",
    "--classes": "--class-map",
    "--output": "--out --output-dir --results-file --results-dir --save-dir",
    "--mixed-precision": "--amp --amp-dtype --fp16 --bf16 --half --precision",
    "--precision": "--amp --amp-dtype --fp16 --bf16 --half --mixed-precision",
    "--compile": "--torchcompile --torch-compile",
    "--engine": "--torchcompile --torch-compile --compile --backend --device",
    "--workers": "--num-workers --dataloader-num-workers",
    "--keep": "--checkpoint-hist --save-total-limit",
    "--save-every": "--save-freq --save-steps",
    "--eval-every": "--eval-steps",
    "--log-interval": "--print-freq --logging-steps",
    "--log-with": "--log-wandb --report-to --wandb --tracker --trackers",
    "--project": "--wandb-project --project-name",
    "--run-name": "--wandb-run-name",
    "--topk": "--top-k",
    "--min-prob": "--conf --threshold",
    "--tta": "--augment",
    "--ext": "--extensions",
    "--max-train-images": "--max-train-samples",
    "--max-images": "--max-eval-samples --max-val-samples --max-samples",
}
"""Flags, and what timm, torchvision, transformers, ultralytics and mae call them; of several the first that a job has
is meant."""


def unknown_flag(word: str, known: Collection[str]) -> str:
    """Say that there is no such flag and which was meant: the same in other letters, another tool's, or the nearest."""
    name = "--" + word.lstrip("-").lower()
    if name in known:
        return f"{word}: no such flag; did you mean {name}?"
    same = [flag for flag, others in OTHER_NAMES.items() if name in others.split()]
    here = next((flag for flag in same if flag in known), None)
    if here is not None:
        return f"{word}: no such flag; here it is {here}"
    near = [] if same else difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"{word}: no such flag" + (f"; did you mean {near[0]}?" if near else "")


def missing(options: Sequence) -> str:
    """Say which flags are missing, and what the only one takes."""
    if len(options) == 1:
        return f"{options[0].spelled} is missing, expected {options[0].expected}"
    return " and ".join(option.spelled for option in options) + " are missing"


def either(words: Sequence[str]) -> str:
    """ "a, b or c"."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
