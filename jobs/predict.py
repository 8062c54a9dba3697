"""Classify every photo of a folder into a CSV with one row per file, on any number of processes.

python jobs/predict.py --checkpoint runs/train/best --input photos --output predictions.csv --topk 5
python jobs/predict.py --checkpoint runs/train --input photos --copy-to sorted --report
python jobs/predict.py --from predictions.csv --min-prob 0.8 --copy-to sorted
flowers-launch --num-processes 2 jobs/predict.py --checkpoint runs/train --input photos.tar
"""

from flowers.cli import run
from flowers.config.predict import PredictConfig


def main(config: PredictConfig) -> int:
    """Classify as the flags say; 0 when done, 75 when stopped: start again and it goes on."""
    if config.from_table is not None:
        from flowers.prediction.from_table import predict_from_table

        return predict_from_table(config)
    from flowers.prediction.predict import predict

    return predict(config)


def cli() -> None:
    """The console command ``flowers-predict``."""
    run(main, PredictConfig)


if __name__ == "__main__":
    cli()
