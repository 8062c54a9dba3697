"""Photos of none of the classes: how well the stored score tells them, against other scores of the same network.

    python tests/bench/bench_unfamiliar.py                      # the real photos, where the checkout has them beside it
    python tests/bench/bench_unfamiliar.py --far FOLDER         # and other pictures that are no flowers

Of the classes of a data set some are left out, and the head of train.py's default flags is fitted to the others. Near:
all photos of the classes left out. Far: noise, plain colours, shapes, text, screenshots and the project's own drawn
flowers. Known: validation photos of the other classes; what is marked of a fifth of them is told by a score that was
fitted to the other four.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from measuring import FLOWERS102, ROOT, Row, run_alone
from PIL import Image, ImageDraw, ImageFont

SIDE, FOLDS = 256, 5
WORDS = (
    "file",
    "edit",
    "view",
    "page",
    "table",
    "price",
    "date",
    "error",
    "warning",
    "save",
    "house",
    "street",
    "report",
)
KINDS = ("noise", "plain", "shapes", "text", "screens", "drawn")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--data-dir", type=Path, default=FLOWERS102, help="train/ and valid/ with class folders")
    parser.add_argument("--model", default="efficientnet_lite0+2")
    parser.add_argument("--weights", default="default", help="as in jobs/train.py")
    parser.add_argument("--views", type=int, default=1, help="as in jobs/train.py")
    parser.add_argument("--left-out", type=int, default=20, help="classes that are not trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="each draws other classes")
    parser.add_argument("--pictures", type=int, default=40, help="far pictures of each kind")
    parser.add_argument("--far", type=Path, help="folder of far pictures to measure, too")


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    import flowers
    from flowers.data.folders import load_image_folders
    from flowers.models.bundle import load_bundle

    with tempfile.TemporaryDirectory() as temporary:
        run, drawn = Path(temporary, "run"), Path(temporary, "far")
        flags = ["--data-dir", options.data_dir, "--output-dir", run, "--no-report", "--no-calibrate"]
        flags += ["--model", options.model, "--weights", options.weights, "--views", options.views]
        command = [sys.executable, ROOT / "jobs" / "train.py", *map(str, flags)]
        subprocess.run(command, check=True, capture_output=True)
        splits = {name: np.load(run / "features" / f"{name}.npy") for name in ("train", "valid")}
        bundle = load_bundle(run)
        paths = {kind: list(draw(kind, options.pictures, drawn)) for kind in KINDS}
        if options.far is not None:
            paths[options.far.name] = sorted(path for path in options.far.rglob("*") if path.is_file())
        with flowers.load(run) as model:
            far = {kind: model.embed(found) for kind, found in paths.items()}
    far = {kind: features[np.isfinite(features).all(1)] for kind, features in far.items()}
    data = load_image_folders(options.data_dir)
    targets = {"train": np.asarray(data.train.targets), "valid": np.asarray(data.valid.targets)}
    blocks = bundle.head.unit_blocks
    rounds = [one_round(splits, targets, far, blocks, options.left_out, seed) for seed in options.seeds]
    return rows_of(rounds, [*far], options, len(data.classes))


def one_round(splits: dict, targets: dict, far: dict, blocks: tuple[int, ...], left_out: int, seed: int) -> dict:
    """Leave classes out, train on the others: AUROC of each score, and shares that are marked."""
    from flowers.models.familiarity import fit_familiarity
    from flowers.reports.calibration import fit_temperature, softmax
    from flowers.training.flags import FIT_DEFAULTS
    from flowers.training.linear_head import HeadProblem, fit_linear_head

    num_classes = int(targets["train"].max()) + 1
    out = np.random.default_rng(seed).choice(num_classes, left_out, replace=False)
    index = np.full(num_classes, -1)
    index[np.setdiff1d(np.arange(num_classes), out)] = np.arange(num_classes - left_out)
    own = {name: index[found] for name, found in targets.items()}
    of = {name: (splits[name][own[name] >= 0], own[name][own[name] >= 0]) for name in splits}

    def problem(features: np.ndarray, found: np.ndarray) -> HeadProblem:
        count, views, width = features.shape
        rows, repeated = features.reshape(count * views, width), np.repeat(found, views)
        return HeadProblem(rows, repeated, num_classes - left_out, blocks or (width,), None, views, bool(blocks))

    defaults = {name: FIT_DEFAULTS[name] for name in ("weight_decay", "label_smoothing")}
    head = fit_linear_head(problem(*of["train"]), **defaults)

    def raw_logits(features: np.ndarray) -> np.ndarray:
        seen = problem(features[:, None], np.zeros(len(features), np.int64)).seen(slice(None))
        return head.logits(seen).numpy().astype(np.float64)

    known, known_targets = of["valid"][0][:, 0], of["valid"][1]
    temperature = fit_temperature(raw_logits(known), known_targets) or 1.0  # None where no one fits best

    def logits(features: np.ndarray) -> np.ndarray:
        return raw_logits(features) / temperature

    near = np.concatenate([splits[name][own[name] < 0, 0] for name in splits])
    groups = {"known": known, "near": near, "far": np.concatenate([*far.values()]), **far}
    found = fit_familiarity(softmax(logits(known)), known)
    ours = {"ours": lambda features: found.scores(softmax(logits(features)), features)}
    areas: dict[str, dict[str, float]] = {}
    for name, score in {**ours, **other_scores(logits, of["train"][0][:, 0])}.items():
        scores = {group: score(features) for group, features in groups.items()}
        areas[name] = {group: auroc(scores["known"], scores[group]) for group in groups if group != "known"}
    marked = []
    for fold in range(FOLDS):
        own_fold = np.arange(len(known)) % FOLDS == fold
        others = fit_familiarity(softmax(logits(known[~own_fold])), known[~own_fold])
        marked.append(others.unfamiliar(softmax(logits(known[own_fold])), known[own_fold]))
    shares = {name: found.unfamiliar(softmax(logits(groups[name])), groups[name]).mean() for name in ("near", "far")}
    return {"areas": areas, "shares": {"known": np.concatenate(marked).mean(), **shares}}


def other_scores(logits: Callable, trained: np.ndarray) -> dict[str, Callable]:
    """What the score was chosen from: each from features [N, D] to [N], lower for less familiar photos."""
    from flowers.reports.calibration import softmax

    center = trained.mean(0)
    scale = np.sqrt(np.square(trained - center).mean())
    _, axes = np.linalg.eigh((trained - center).T.astype(np.float64) @ (trained - center))
    beside = axes[:, :-64]  # ViM's residual: what lies outside the 64 main directions

    def unit(features: np.ndarray) -> np.ndarray:
        centred = (features - center) / scale
        return centred / np.linalg.norm(centred, axis=1, keepdims=True)

    stored = unit(trained)

    def stands_out(features: np.ndarray) -> np.ndarray:
        found = logits(features)
        return (found.max(1) - found.mean(1)) / found.std(1)

    def negative_entropy(features: np.ndarray) -> np.ndarray:
        probs = softmax(logits(features))
        return (probs * np.log(np.maximum(probs, 1e-38))).sum(1)

    return {
        "max probability": lambda features: softmax(logits(features)).max(1),
        "entropy": negative_entropy,
        "energy": lambda features: np.logaddexp.reduce(logits(features), axis=1),
        "max logit over the logits' deviation": stands_out,
        "5th nearest neighbour": lambda features: np.sort(unit(features) @ stored.T, axis=1)[:, -5],
        "residual": lambda features: -np.linalg.norm((features - center) @ beside, axis=1),
    }


def auroc(known: np.ndarray, others: np.ndarray) -> float:
    """Probability that a known photo scores above another one."""
    both = np.concatenate([known, others])
    _, places, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float((ranks[: len(known)].sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(others)))


def rows_of(rounds: list[dict], kinds: list[str], options: argparse.Namespace, num_classes: int) -> list[Row]:
    """Means over the seeds, with the spread of ours."""

    def mean(name: str, group: str) -> float:
        return float(np.mean([found["areas"][name][group] for found in rounds]))

    def said(group: str) -> str:
        values = [found["areas"]["ours"][group] for found in rounds]
        return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    shares = {group: [found["shares"][group] for found in rounds] for group in ("known", "near", "far")}
    told = {group: f"{np.mean(of):.1%} ({min(of):.1%} to {max(of):.1%})" for group, of in shares.items()}
    names = [name for name in rounds[0]["areas"] if name != "ours"]
    what = f"photos of {options.left_out} of {num_classes} species left out, {len(rounds)} draws"
    return [
        Row(f"{what}: AUROC", said("near"), "; ".join(f"{name} {mean(name, 'near'):.3f}" for name in names)),
        Row(
            "pictures of no flower, the same heads: AUROC",
            said("far"),
            "; ".join(f"{name} {mean(name, 'far'):.3f}" for name in names),
        ),
        Row(
            "the same by kind",
            ", ".join(f"{kind} {mean('ours', kind):.3f}" for kind in kinds),
            "max probability: " + ", ".join(f"{kind} {mean('max probability', kind):.3f}" for kind in kinds),
        ),
        Row(
            "marked as unfamiliar at the default threshold, of known photos that it was not fitted on",
            told["known"],
            f"of species left out {told['near']}, of pictures of no flower {told['far']}",
        ),
    ]


def draw(kind: str, count: int, folder: Path) -> Iterator[Path]:
    """Draw pictures of a kind, the same each time."""
    from flowers.datasets.drawn import draw_photo
    from flowers.datasets.drawn_species import SPECIES

    folder.mkdir(exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng([KINDS.index(kind), number])
        path = folder / f"{kind}-{number:03}.jpg"
        if kind == "drawn":
            path.write_bytes(draw_photo([*SPECIES][number % len(SPECIES)], rng))
        else:
            PAINTERS[kind](rng).save(path, quality=88)
        yield path


def noise(rng: np.random.Generator) -> Image.Image:
    """Random pixels, fine or coarse."""
    cells = 2 ** int(rng.integers(1, 9))
    pixels = rng.integers(0, 256, (cells, cells, 3), np.uint8)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def plain(rng: np.random.Generator) -> Image.Image:
    """One colour, or one that turns into another."""
    ends = rng.integers(0, 256, (2, 3)) if rng.random() < 0.5 else np.tile(rng.integers(0, 256, 3), (2, 1))
    shares = np.linspace(0, 1, SIDE)[:, None, None]
    pixels = ends[0] * (1 - shares) + ends[1] * shares
    return Image.fromarray(np.broadcast_to(pixels, (SIDE, SIDE, 3)).astype(np.uint8))


def shapes(rng: np.random.Generator) -> Image.Image:
    """Ellipses, rectangles and lines."""
    image = Image.new("RGB", (SIDE, SIDE), colour(rng))
    canvas = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 20)):
        x, y, width, height = (int(value) for value in (*rng.integers(-20, SIDE, 2), *rng.integers(10, 140, 2)))
        box = (x, y, x + width, y + height)
        form = rng.integers(3)
        if form == 2:
            canvas.line(box, fill=colour(rng), width=int(rng.integers(1, 12)))
        else:
            (canvas.ellipse, canvas.rectangle)[form](box, fill=colour(rng), outline=colour(rng), width=3)
    return image


def text(rng: np.random.Generator) -> Image.Image:
    """A page of words."""
    ground, ink = ((250, 250, 250), (20, 20, 20)) if rng.random() < 0.7 else ((25, 25, 25), (230, 230, 230))
    image, size = Image.new("RGB", (380, SIDE), ground), int(rng.integers(9, 32))
    for y in range(8, SIDE, int(1.5 * size)):
        words(ImageDraw.Draw(image), rng, (8, y), 30, ink, size)
    return image


def screens(rng: np.random.Generator) -> Image.Image:
    """A window with a bar, a list and cards."""
    width, height = (640, 400) if rng.random() < 0.5 else (360, 700)
    ground, ink = ((245, 246, 248), (40, 40, 40)) if rng.random() < 0.6 else ((30, 30, 34), (220, 220, 220))
    image = Image.new("RGB", (width, height), ground)
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, 0, width, 36), fill=colour(rng))
    words(canvas, rng, (12, 10), 6, (255, 255, 255), 13)
    for y in range(50, height, 26):
        words(canvas, rng, (10, y), 1, ink, 13)
    for y in range(50, height - 100, 110):
        canvas.rounded_rectangle((125, y, width - 15, y + 95), 8, outline=ink)
        canvas.rectangle((135, y + 10, 195, y + 70), fill=colour(rng))
        for line in range(4):
            words(canvas, rng, (205, y + 10 + 18 * line), 6, ink, 13)
    return image


def words(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, at: tuple, count: int, ink: tuple, size: int) -> None:
    """Write words in one line."""
    canvas.text(at, " ".join(rng.choice(WORDS, count)), fill=ink, font=ImageFont.load_default(size))


def colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """A random one."""
    return tuple(int(value) for value in rng.integers(0, 256, 3))


PAINTERS = {"noise": noise, "plain": plain, "shapes": shapes, "text": text, "screens": screens}


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
