"""Cached features: a frozen backbone runs once per view, and the head trains on its features in seconds.

The images are cut into pieces, which the ranks share; rank 0 joins the pieces into one ``.npy`` per split in the run
folder, which all ranks map. A resumed run finds that file, or the pieces that an earlier start finished, and does not
run the backbone over them again. Damaged ones are noticed, by the SHA-256 beside the file and the CRC-32 in each
piece, and computed again.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowers import console
from flowers.data.loader_processes import default_workers
from flowers.data.loaders import Batch, ViewLoader
from flowers.data.order import Draw, eval_batches
from flowers.data.paths import readable
from flowers.data.scan import file_stamps
from flowers.distributed import from_main, sums_of_ranks
from flowers.engines.engine import Engine, KeyedNetwork, build_engine
from flowers.errors import ProcessError, StoppedError, system_reason
from flowers.files import NPZ_DAMAGE, file_digest, make_folder, remove, write_atomically, write_json
from flowers.parsing import read_mapping
from flowers.retries import retries
from flowers.stopping import agree_to_stop
from flowers.training.bad_images import listing_bad_images, warn_of_damaged
from flowers.training.batches import ENGINE_PRECISION, through_engine
from flowers.training.fingerprint import images_digest
from flowers.training.linear_head import HeadProblem
from flowers.training.stage import Stage

MANY_PIECES = 64  # of a small set, so that all ranks have work
LARGEST_PIECE = 1024  # images of one view: a stop waits for a piece, a kill loses one


class FeatureBatches:
    """Batches of cached features, for the head alone, in the order in which images would come.

    Args:
        features: by split, float32 [N, views, D]; a training sample's view changes in turn from epoch to epoch.
    """

    def __init__(self, stage: Stage, features: dict[str, np.ndarray]):
        self._stage, self._features = stage, features
        self._targets = {name: np.asarray(samples.targets, np.int64) for name, samples in stage.data.splits.items()}

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The micro-batches of a training epoch; ``images`` holds features [B, D]."""
        for draws in self._stage.order.micro_batches(epoch, self._stage.accelerator.process_index, start_step):
            yield self._batch("train", draws, epoch)

    def inputs(self, batch: Batch) -> Tensor:
        """The features [B, D]."""
        return batch.images

    def evaluation(self, split: str) -> list[Batch]:
        """The evaluation batches of a split, in memory."""
        num_images, accelerator = len(self._targets[split]), self._stage.accelerator
        rank, world_size = accelerator.process_index, accelerator.num_processes
        batches = eval_batches(num_images, self._stage.config.batch_size, rank, world_size)
        return [self._batch(split, draws) for draws in batches]

    def problem(self) -> HeadProblem:
        """All training features [images * views, D], view by view of an image, as L-BFGS fits a head to them."""
        features, stage = self._features["train"], self._stage
        count, views, width = features.shape
        return HeadProblem(
            features.reshape(count * views, width),
            np.repeat(self._targets["train"], views),
            stage.model.head.num_classes,
            getattr(stage.model.classifier.backbone, "widths", (width,)),
            None if stage.order.sample_weights is None else np.repeat(stage.order.sample_weights, views),
            views,
            bool(stage.model.head.unit_blocks),
        )

    def _batch(self, split: str, draws: list[Draw], epoch: int | None = None) -> Batch:
        features = self._features[split]
        rows = np.array([draw.index for draw in draws])
        views = 0 if epoch is None else (rows + epoch) % features.shape[1]
        weights = torch.tensor([draw.weight for draw in draws])
        targets = torch.from_numpy(self._targets[split][rows])
        return Batch(torch.from_numpy(features[rows, views]), targets, weights, torch.from_numpy(rows))


def features_of_splits(stage: Stage, other_run: Path | None = None) -> dict[str, np.ndarray]:
    """Run the backbone over all splits with the fastest engine available, or map the files of an earlier start.

    All splits are read now, so that an unreadable image of test/ is found before hours of training.

    Args:
        other_run: a run folder whose features are taken where they are the same.

    Returns:
        By split, float32 [N, views, D], memory-mapped.

    Raises:
        DataError: images cannot be read; all of them are named.
        StoppedError: a rank was asked to stop; finished pieces are kept.
    """
    config, model, folder = stage.config, stage.model, stage.run_dir / "features"
    network = KeyedNetwork(config.model, model.classifier.backbone)
    engine = build_engine(
        network,
        model.preprocessing,
        precision=ENGINE_PRECISION[config.mixed_precision],
        batch_size=config.batch_size,
        device=stage.accelerator.device,
    )
    console.say(f"features by {engine.description}")
    # Everything that features depend on. The sizes of the images too: one may have been replaced since an earlier
    # start. (Not times: copies have their own.)
    key = {"backbone": network.key, "engine": engine.name, "precision": engine.precision}
    key["preprocessing"] = model.preprocessing.to_dict()

    found, num_damaged = {}, 0.0
    with listing_bad_images(stage.data.splits, config.workers):
        for name, samples in stage.data.splits.items():
            views = config.views if name == "train" else 1
            drawn = "plain" if views == 1 else f"{views} of {stage.augmentation}, seed {config.seed}"
            own = {**key, "views": drawn, "images": images_digest(samples)}
            if stage.accelerator.is_main_process:  # only its key is compared and written
                sizes = file_stamps(samples.full_path, len(samples))[:, 0]
                own["bytes"] = hashlib.sha256(sizes.tobytes()).hexdigest()
            if other_run is not None and _are_there(other := other_run / "features" / f"{name}.npy", own):
                console.say(f"features of {name}: those of {console.plain(readable(other_run))}")
                found[name] = np.load(other, mmap_mode="r")
                continue
            workers = default_workers(config.workers)
            images = ViewLoader(samples, model.preprocessing, stage.augmentation, config.seed, workers)
            found[name] = extract_features(stage, engine, images, views, folder / f"{name}.npy", own)
            num_damaged += sums_of_ranks(stage.accelerator, [float(images.num_damaged)])[0]
    if config.on_bad_image == "fail":  # else they have been counted already
        warn_of_damaged(int(num_damaged))
    return found


class Piece(NamedTuple):
    """Neighbouring images in one view, whose features one rank computes and writes, all or nothing.

    Attributes:
        view: 0 is evaluation's, others are drawn.
        first: place of the first image.
        end: place behind the last one.
    """

    view: int
    first: int
    end: int

    @property
    def file_name(self) -> str:
        """Of its features, float32 [end - first, D]. An ``.npz`` holds their CRC-32, which numpy checks."""
        return f"{self.view}-{self.first}-{self.end}.npz"

    def batches(self, batch_size: int) -> Iterator[list[Draw]]:
        """Its images in batches of one shape; the gaps are filled with draws of weight 0."""
        for first in range(self.first, self.end, batch_size):
            places = range(first, first + batch_size)
            yield [Draw(min(place, self.end - 1), self.view, place, float(place < self.end)) for place in places]


def pieces_of(num_images: int, views: int, batch_size: int) -> list[Piece]:
    """All pieces, of whole batches, the same for any number of processes."""
    size = batch_size * max(1, min(num_images // MANY_PIECES, LARGEST_PIECE) // batch_size)
    firsts = range(0, num_images, size)
    return [Piece(view, first, min(first + size, num_images)) for first in firsts for view in range(views)]


def extract_features(stage: Stage, engine: Engine, images: ViewLoader, views: int, path: Path, key: dict) -> np.ndarray:
    """Run the backbone over every view of all images, or map the file of an earlier start.

    A stopped or killed start leaves its finished pieces for a start with any number of processes.

    Args:
        engine: computes the features of uint8 images.
        views: of each image.
        path: the .npy file to write.
        key: everything that the features depend on; a file with another key is not used.

    Returns:
        float32 [N, views, D], memory-mapped.

    Raises:
        StoppedError: a rank was asked to stop.
        ProcessError: a file of another process is not visible here.
    """
    folder = path.with_suffix(".parts")
    if _are_there(path, key):
        from_main(lambda: remove(folder))  # of a start that was killed just before it did so
    else:
        from_main(lambda: _settle(folder, key))
        pieces = pieces_of(len(images), views, engine.batch_size)
        there = from_main(lambda: _whole_pieces(folder))
        missing = [piece for piece in pieces if piece.file_name not in there]
        _compute(stage, engine, images, missing, path)
        stage.accelerator.wait_for_everyone()
        from_main(lambda: _join(pieces, folder, path, key))
    return np.load(path, mmap_mode="r")


def _are_there(path: Path, key: dict) -> bool:
    """True if an earlier start left these features, undamaged.

    Rank 0 looks, as views of a network file system may differ, and reads the file once to check its SHA-256.
    """

    def look() -> bool:
        found = read_mapping(path.with_suffix(".json"))
        written = found.pop("file", None)
        if found != key:
            return False
        try:
            if file_digest(path) == written:
                return True
        except OSError:
            pass  # gone, or not a file
        console.warn(f"{readable(path)} is damaged or gone: its features are computed again")
        return False

    return from_main(look)


def _settle(folder: Path, key: dict) -> None:
    """Keep the pieces of an earlier start if they are of the same features."""
    if read_mapping(folder / "key.json") != key:
        remove(folder)
        make_folder(folder)
        write_json(folder / "key.json", key)


def _whole_pieces(folder: Path) -> set[str]:
    """Names of the pieces of an earlier start; damaged ones are removed.

    Listed, not looked up one by one: NFS caches for a while that a file does not exist.
    """
    whole, damaged = set(), 0
    for name in os.listdir(folder):
        try:
            if name.endswith(".npz"):
                _load(folder / name)
                whole.add(name)
        except (OSError, *NPZ_DAMAGE):
            damaged += 1
            remove(folder / name)
    if damaged:
        console.warn(f"{readable(folder)}: {damaged} damaged files of features are computed again")
    return whole


def _compute(stage: Stage, engine: Engine, images: ViewLoader, missing: list[Piece], path: Path) -> None:
    """Compute this rank's share of the missing pieces; after each piece all ranks agree to continue or stop."""
    accelerator, stop, folder, title = stage.accelerator, stage.stop, path.with_suffix(".parts"), path.stem
    world_size, size = accelerator.num_processes, engine.batch_size
    mine = missing[accelerator.process_index :: world_size]
    rounds = -(-len(missing) // world_size)
    total = sum(piece.end - piece.first for piece in missing)
    loaded = images.load(draws for piece in mine for draws in piece.batches(size))
    with console.progress(f"features of {title}", total) as meter, contextlib.closing(loaded):
        computed = through_engine(loaded, engine)
        for number in range(rounds):
            for piece in mine[number : number + 1]:
                features = []
                for batch in itertools.islice(computed, -(-(piece.end - piece.first) // size)):
                    features.append(batch.images[batch.weights > 0].numpy())
                    meter.advance(len(features[-1]) * world_size)
                with write_atomically(folder / piece.file_name, "wb") as file:
                    np.savez(file, features=np.concatenate(features))
            if number + 1 < rounds and agree_to_stop(accelerator, stop):
                reason = stop.reason() or "another process was asked"
                raise StoppedError(
                    f"stopped before the features of {title}/ were complete ({reason}); finished parts are kept; run "
                    "the same command to resume"
                )


def _join(pieces: list[Piece], folder: Path, path: Path, key: dict) -> None:
    """Write all pieces as one array, then its key, whose presence marks the array as complete.

    Raises:
        ProcessError: a piece of another process is not visible here.
    """
    for old in (path.with_suffix(".json"), path):
        remove(old)
    views = 1 + max(piece.view for piece in pieces)
    with write_atomically(path, "wb") as file:
        for first in range(0, len(pieces), views):
            images = np.stack([_read(folder / piece.file_name) for piece in pieces[first : first + views]], axis=1)
            if first == 0:
                header = np.lib.format.header_data_from_array_1_0(images)
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (pieces[-1].end, *images.shape[1:])})
            file.write(images.tobytes())
    write_json(path.with_suffix(".json"), {**key, "file": file_digest(path)})
    remove(folder)


def _load(path: Path) -> np.ndarray:
    def load() -> np.ndarray:
        with np.load(path, allow_pickle=False) as file:
            return file["features"]

    return retries.read(load, path)


def _read(path: Path) -> np.ndarray:
    try:
        return _load(path)
    except OSError as error:
        raise ProcessError(
            f"{path}: cannot be read ({system_reason(error)}): the run folder must be one that all machines share"
        ) from None
    except NPZ_DAMAGE as error:
        raise ProcessError(f"{path}: damaged since it was written ({error}); start the same command again") from None
