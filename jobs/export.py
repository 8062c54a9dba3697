"""Write a trained model for other programs: ONNX, OpenVINO, torch.export, timm, torchvision; checked on real photos.

python jobs/export.py --checkpoint runs/train --format onnx --output flowers.onnx
python jobs/export.py --checkpoint runs/train --format openvino --precision int8 --output flowers.xml
python jobs/export.py --checkpoint BUNDLE --format torch-export --output flowers.pt2 --check-images PHOTOS
python jobs/export.py --checkpoint runs/train --format timm --output FOLDER --model-card
python jobs/export.py --from-state-dict model.pth --model resnet18 --classes classes.txt --output BUNDLE
python jobs/export.py --average runs/a runs/b runs/c --output MODEL
"""

from flowers.cli import run
from flowers.config.export import ExportConfig


def main(config: ExportConfig) -> int:
    """Export, import a state dict, or average models, as the flags say; 0 when the file is checked and written."""
    if config.from_state_dict is not None:
        from flowers.models.state_dicts import import_state_dict

        return import_state_dict(config)
    if config.average:
        from flowers.exports.average import export_average

        return export_average(config)
    from flowers.exports.export import export

    return export(config)


def cli() -> None:
    """The console command ``flowers-export``."""
    run(main, ExportConfig)


if __name__ == "__main__":
    cli()
