"""Wrong labels found by the audit, against the plain lowest probability and cleanlab on the same predictions.

    python tests/bench/bench_labels.py                          # the real photos, where the checkout has them beside it
    python tests/bench/bench_labels.py --data-dir CLASS_FOLDERS --seeds 0

A share of the labels is changed to a class drawn at random; the audit's own out-of-fold probabilities rank all photos.
Precision is that of as many photos as were changed, recall that of one and a half times as many. Real mistakes of the
published labels count as wrong accusations here, so no ranking reaches 1. cleanlab is in the extra `test`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import FLOWERS102, ROOT, Row, run_alone

RECALL_AT = 1.5


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this script."""
    parser.add_argument("--data-dir", type=Path, default=FLOWERS102 / "train", help="class folders")
    parser.add_argument("--model", default="efficientnet_lite0+2")
    parser.add_argument("--weights", default="default", help="as in jobs/audit.py")
    parser.add_argument("--share", type=float, default=0.05, help="of the labels to change")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=5)


def measure(options: argparse.Namespace) -> list[Row]:
    """Rows of the table."""
    from flowers.audit.held_out import FeatureRows, assign_folds, held_out_probs
    from flowers.audit.neighbours import find_neighbours
    from flowers.data.folders import load_image_folders
    from flowers.data.grouping import groups
    from flowers.models.backbones import build_backbone
    from flowers.reports.label_errors import judge

    data = load_image_folders(options.data_dir)
    targets, num_classes = data.train.targets, len(data.classes)
    with tempfile.TemporaryDirectory() as temporary:
        network = ["--model", options.model, "--weights", options.weights]
        flags = ["--data-dir", options.data_dir, "--output-dir", temporary, *network]
        subprocess.run([sys.executable, ROOT / "jobs" / "audit.py", *flags], check=True, capture_output=True)
        features = np.load(Path(temporary, "features", "train.npy"))[:, 0]
    widths = build_backbone(options.model, "none").network.widths
    rows = FeatureRows([features], np.arange(len(features)), widths)
    same = groups(len(targets), find_neighbours(features, "cpu").pairs)
    changed = round(options.share * len(targets))
    found: dict[str, list[tuple[float, float]]] = {}
    seconds, accused = [], []
    for seed in options.seeds:
        rng = np.random.default_rng(seed)
        wrong = np.zeros(len(targets), bool)
        wrong[rng.choice(len(targets), changed, replace=False)] = True
        given = np.where(wrong, (targets + rng.integers(1, num_classes, len(targets))) % num_classes, targets)
        start_s = time.perf_counter()
        probs = np.empty((len(given), num_classes), np.float32)
        folds = assign_folds(given, same, options.folds, seed)
        for fold in range(options.folds):
            probs[folds == fold] = held_out_probs(rows, given, folds == fold, num_classes, "cpu")
        verdicts = judge(probs, given)
        seconds.append(time.perf_counter() - start_s)
        accused.append((verdicts.wrong.sum(), wrong[verdicts.wrong].mean()))
        rankings = {"ours": verdicts.own, "lowest probability": probs[np.arange(len(given)), given]}
        rankings |= {f"cleanlab {name}": scores for name, scores in by_cleanlab(given, probs).items()}
        for name, scores in rankings.items():
            order = np.argsort(scores, kind="stable")
            hits = wrong[order]
            found.setdefault(name, []).append((hits[:changed].mean(), hits[: int(RECALL_AT * changed)].sum() / changed))
    ours = found.pop("ours")
    listed = ", ".join(f"{count} with {precision:.0%} wrong" for count, precision in accused)
    return [
        Row(
            f"{changed} of {len(targets)} labels changed, seeds {' '.join(map(str, options.seeds))}: precision at that "
            f"number, recall at {RECALL_AT} times",
            said(ours),
            "; ".join(f"{name} {said(pairs)}" for name, pairs in found.items()),
        ),
        Row(
            "the same: photos in labels.csv",
            listed,
            f"{changed} changed; {np.median(seconds):.1f} s for the heads of {options.folds} folds, without features",
        ),
    ]


def by_cleanlab(given: np.ndarray, probs: np.ndarray) -> dict[str, np.ndarray]:
    """Its scores, the lowest the most suspicious."""
    from cleanlab.rank import get_label_quality_scores

    methods = ("self_confidence", "normalized_margin")
    return {name: get_label_quality_scores(given, probs.astype(np.float64), method=name) for name in methods}


def said(pairs: list[tuple[float, float]]) -> str:
    """Mean precision and recall, and those of each seed."""
    precision, recall = np.mean(pairs, axis=0)
    each = ", ".join(f"{one:.3f} {other:.3f}" for one, other in pairs)
    return f"{precision:.3f}, {recall:.3f} ({each})"


if __name__ == "__main__":
    run_alone(measure, add_flags, __doc__)
