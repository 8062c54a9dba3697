"""Serve a page in the browser: drop a photo, see the five best classes and which pixels mattered.

python jobs/demo.py --checkpoint runs/train
python jobs/demo.py --checkpoint flowers.onnx
python jobs/demo.py --checkpoint runs/train --examples photos --port 8000
"""

from flowers.cli import run
from flowers.config.demo import DemoConfig


def main(config: DemoConfig) -> int:
    """Serve the page until Ctrl-C; 0 then."""
    from flowers.demo.serve import demo

    return demo(config)


def cli() -> None:
    """The console command ``flowers-demo``."""
    run(main, DemoConfig, interactive=True)


if __name__ == "__main__":
    cli()
