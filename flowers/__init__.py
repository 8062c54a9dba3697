"""Fine-tune pre-trained image classifiers and classify whole folders of photos.

The Python API, whose parts are imported when they are first used: ``load`` (a ``Model`` that gives ``Prediction``
objects), ``train`` with a ``TrainConfig``, ``predict_folder`` with a ``PredictConfig``, and ``FlowersError``, the base
of all errors that they raise. See ``flowers.api``.
"""

__version__ = "0.1.0"
__all__ = ["FlowersError", "Model", "PredictConfig", "Prediction", "TrainConfig", "load", "predict_folder", "train"]


def __getattr__(name: str) -> object:
    """Import the API when it is first used, so that ``import flowers`` and ``--help`` take no time."""
    if name not in __all__:
        raise AttributeError(f"module 'flowers' has no attribute {name!r}")
    from flowers import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
