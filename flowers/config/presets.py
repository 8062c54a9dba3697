"""Recipes: named sets of defaults for the flags of ``jobs/train.py``. What the user gives, as a flag or in a config
file, wins; a run's saved config holds what came out, so it needs no recipe to be repeated.
"""

from typing import NamedTuple

from flowers.errors import UsageError


class Recipe(NamedTuple):
    """One named set.

    Attributes:
        defaults: field names of ``TrainConfig`` to values, as they would stand in a config file.
        models: those that the recipe is about, the first by default; empty if it serves any.
    """

    defaults: dict[str, object]
    models: tuple[str, ...] = ()


RECIPES = {
    # The two ends, as measured in tests/bench/README.md: a head in a minute, all weights in half an hour on two cores.
    "fast": Recipe({"finetune": "head"}),
    "best": Recipe({"finetune": "staged", "epochs": 40, "refit_head": True}),
    # The blog post of 2018: a frozen network, a head of one hidden layer, three epochs. Its log-softmax and negative
    # log-likelihood are the cross-entropy. Two things are as they should be, not as they were: the frozen batch norm
    # keeps its statistics (there it went on counting), and what a rotation brings in is grey (there black).
    "original2018": Recipe(
        {
            "model": "densenet121", "finetune": "head", "feature_cache": False, "hidden": 400, "dropout": 0.5,
            "optimizer": "adam", "lr": 0.001, "weight_decay": 0.0, "schedule": "constant", "warmup_epochs": 0.0,
            "epochs": 3, "batch_size": 64, "label_smoothing": 0.0, "eval_every": 40, "mixed_precision": "no",
            "image_size": 224, "resize": 225, "rotation": 30.0, "scale": [0.08, 1.0], "hflip": 0.5,
        },
        ("densenet121", "vgg13", "vgg16"),
    ),
}  # fmt: skip


def recipe_defaults(name: str) -> dict[str, object]:
    """The flags that a recipe sets.

    Raises:
        UsageError: there is no such recipe.
    """
    if name not in RECIPES:
        raise UsageError(f"--recipe: got {name!r}, expected one of {', '.join(RECIPES)}")
    return RECIPES[name].defaults


def check_model(recipe: str | None, model: str) -> None:
    """Refuse a network that the recipe is not about.

    Raises:
        UsageError: it is another one.
    """
    models = RECIPES[recipe].models if recipe is not None else ()
    if models and model not in models:
        raise UsageError(f"--recipe {recipe} is about {', '.join(models)}: got --model {model}; leave the recipe out")
