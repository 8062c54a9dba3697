"""A temperature in a model: probs that say how often an answer is right, without changing one answer."""

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

from flowers.errors import ModelError
from flowers.files import old_name, replace_folder
from flowers.models.bundle import DESCRIPTION_FILE, MOST_TEMPERATURE, Bundle, write_bundle
from flowers.models.weights import WEIGHTS_FILE

OUTPUT = ("head.output.weight", "head.output.bias")


def with_temperature(bundle: Bundle, temperature: float) -> Bundle:
    """Return the same model with its logits divided by a temperature.

    The last layer of the head is linear, so its tensors are divided, once and for all: every engine, every exported
    file and every older version of this code obeys, and the hash tells the two models apart. ``made`` keeps the
    temperature, all told. Which photos are unfamiliar does not change.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.

    Raises:
        ModelError: the temperature, or the one that the model says it has, is not a positive number.
    """
    earlier = bundle.made.get("temperature", 1.0)
    for value in (temperature, earlier):
        if not isinstance(value, int | float) or not 0 < value <= MOST_TEMPERATURE:
            raise ModelError(f"temperature: got {value!r}, expected a positive number up to {MOST_TEMPERATURE:g}")
    tensors = {name: (bundle.state_dict[name].double() / temperature).float() for name in OUTPUT}
    made = {**bundle.made, "temperature": earlier * temperature}
    familiarity = bundle.familiarity and bundle.familiarity.scaled(temperature)
    return dataclasses.replace(bundle, made=made, state_dict={**bundle.state_dict, **tensors}, familiarity=familiarity)


def without_temperature(bundle: Bundle) -> Bundle:
    """Return the same model with its logits as they were trained, for training to go on from.

    Raises:
        ModelError: the temperature that the model says it has is not a positive number.
    """
    if "temperature" not in bundle.made:
        return bundle
    earlier = with_temperature(bundle, 1.0).made["temperature"]
    found = with_temperature(bundle, 1 / earlier)
    return dataclasses.replace(found, made={name: found.made[name] for name in found.made if name != "temperature"})


def store(bundle: Bundle) -> None:
    """Write a model into the folder that it was loaded from; all else there, figures say, stays.

    Raises:
        ModelError: the folder is a checkpoint of training, which goes on from its weights as they are.
        FlowersError: the disk is full or the place cannot be written; the earlier model is untouched.
    """
    if (bundle.folder / "state.json").exists():
        raise ModelError(f"{bundle.folder} is a checkpoint, to resume from: calibrate the run's best/ or last/ instead")
    place = bundle.folder.resolve()  # "." has no name that another folder could take
    named = place.with_name(place.name.removeprefix(".").removesuffix(".old"))
    if place == old_name(named):  # where ``load_bundle`` finds it after a save that was killed between two renames
        place = named  # to which ``replace_folder`` brings it back
    with replace_folder(place) as folder:
        for entry in place.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.copytree(entry, folder / entry.name, symlinks=True, copy_function=_link)
            elif entry.name not in (DESCRIPTION_FILE, WEIGHTS_FILE):
                _link(entry, folder / entry.name)
        write_bundle(bundle, folder)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, where the file system knows such; there may be gigabytes beside a model."""
    with contextlib.suppress(OSError):
        os.link(source, target, follow_symlinks=False)
        return
    shutil.copy2(source, target, follow_symlinks=False)
