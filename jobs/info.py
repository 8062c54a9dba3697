"""Describe a model, checkpoint or run folder: network, classes, accuracy, how it was made, size, hash.

python jobs/info.py runs/train
python jobs/info.py flowers.onnx
python jobs/info.py runs/train/checkpoints/step-00000320 --json
"""

from flowers.cli import run
from flowers.config.info import InfoConfig


def main(config: InfoConfig) -> int:
    """Tell as the flags say; 0 when it is a model that loads."""
    from flowers.exports.info import info

    return info(config)


def cli() -> None:
    """The console command ``flowers-info``."""
    run(main, InfoConfig, interactive=True)


if __name__ == "__main__":
    cli()
