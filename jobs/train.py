"""Fine-tune a pre-trained classifier on photos in class folders.

python jobs/train.py --data-dir data/sample
python jobs/train.py --data-dir data/flowers102 --model densenet121 --finetune full --mixed-precision bf16
python jobs/train.py --data-dir data/sample --add predictions.csv --corrections corrections.csv
flowers-launch --num-processes 2 jobs/train.py --data-dir data/flowers102 --output-dir runs/flowers
"""

from flowers.cli import run
from flowers.config.train import TrainConfig


def main(config: TrainConfig) -> int:
    """Train as the flags say; 0 when done, 75 when stopped and saved."""
    from flowers.training.train import train

    return train(config)


def cli() -> None:
    """The console command ``flowers-train``."""
    run(main, TrainConfig)


if __name__ == "__main__":
    cli()
