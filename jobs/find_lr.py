"""Look for a learning rate before training: a range test on a few steps, on any number of processes.

python jobs/find_lr.py --data-dir data/sample
python jobs/find_lr.py --data-dir data/flowers102 --finetune full --optimizer sgd --output curve.png
flowers-launch jobs/find_lr.py --data-dir data/flowers102 --model densenet121
"""

from flowers.cli import run
from flowers.config.find_lr import FindLrConfig


def main(config: FindLrConfig) -> int:
    """Test learning rates as the flags say; 0 when done."""
    from flowers.training.find_lr import find_lr

    return find_lr(config)


def cli() -> None:
    """The console command ``flowers-find-lr``."""
    run(main, FindLrConfig)


if __name__ == "__main__":
    cli()
