"""Tells photos of none of the classes: how far the best class stands out from the others, for where the features lie.

The score of a photo is (max - mean of its logits) / sqrt(1 + s^2 + d^2). Here s is the deviation of its logits, and d
the squared distance of its features from the mean feature, each in units of its median over known photos. s makes the
score fall for species that resemble several classes alike; d for people, text, screenshots or noise, whose logits may
be as large as those of any flower. The 1 does so for small logits of features near the mean, which a network that was
trained as a whole makes of what it does not know. The score needs one vector and a few numbers, works for any head, and
does not depend on a temperature. What it was chosen from is in tests/bench/README.md.
"""

import base64
import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from flowers.errors import ModelError

SHARE = 0.98
"""Share of known photos that the fitted threshold keeps."""
MIN_FITTED, MAX_FITTED = 100, 20_000
"""Photos that the score is fitted on; of more it takes some, spread evenly."""
_SMALLEST = 1e-38  # about the smallest float32: a probability of 0 has a finite logit
_NUMBERS = ("spread", "distance", "threshold", "share")


@dataclass(frozen=True, eq=False)
class Familiarity:
    """The fitted score and its threshold.

    Attributes:
        center: float32 [D], mean feature.
        spread: median deviation of a photo's logits.
        distance: median distance of a photo's features from the center.
        threshold: photos of a lower score are unfamiliar.
        share: of known photos that the threshold keeps.
        images: how many photos it was fitted on.
    """

    center: np.ndarray
    spread: float
    distance: float
    threshold: float
    share: float
    images: int

    def scores(self, probs: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Scores of photos; each depends on its own row alone, to the last bit, whatever the batch.

        Args:
            probs: [N, num_classes].
            features: [N, D], what the head saw.

        Returns:
            float64 [N], lower for less familiar photos; NaN where an input is not finite.
        """
        with np.errstate(invalid="ignore"):
            far = np.square(features.astype(np.float64) - self.center).sum(1)
            return _scores(probs, far, self.spread, self.distance)

    def unfamiliar(self, probs: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Tell which photos are like none of the classes: bool [N], see ``scores``."""
        return self.scores(probs, features) < self.threshold

    def scaled(self, temperature: float) -> "Familiarity":
        """The same judgement of logits that are divided by a temperature from now on."""
        return dataclasses.replace(self, spread=self.spread / temperature)

    def to_dict(self) -> dict:
        """Plain values for JSON, the center as base64 of little-endian float32."""
        values = {name: getattr(self, name) for name in (*_NUMBERS, "images")}
        return {**values, "center": base64.b64encode(self.center.astype("<f4").tobytes()).decode("ascii")}

    @classmethod
    def from_dict(cls, values: object, width: int) -> "Familiarity":
        """Read what ``to_dict`` wrote.

        Args:
            width: D, the features that the head takes.

        Raises:
            ModelError: no mapping, a field too many or too few, or a value that cannot be.
        """
        fields = set(cls.__dataclass_fields__)
        if not isinstance(values, dict) or set(values) != fields:
            got = sorted(map(str, values)) if isinstance(values, dict) else type(values).__name__
            raise ModelError(f"unfamiliar: got {got}, expected exactly the fields {sorted(fields)}")
        for name in (*_NUMBERS, "images"):
            value = values[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
                raise ModelError(f"unfamiliar: {name} is {value!r}, expected a positive number")
        try:
            center = np.frombuffer(base64.b64decode(values["center"], validate=True), "<f4")
        except (ValueError, TypeError):
            center = np.empty(0, "<f4")
        if len(center) != width or not np.isfinite(center).all():
            raise ModelError(f"unfamiliar: center holds no {width} finite numbers, as many as the head takes features")
        return cls(**{**values, "center": center})


def step_of(count: int) -> int:
    """Of so many photos, every how manieth the score is fitted on."""
    return math.ceil(count / MAX_FITTED)


def fit_familiarity(probs: np.ndarray, features: np.ndarray, share: float = SHARE) -> Familiarity | None:
    """Fit the score on known photos that the head was not trained on.

    The threshold is the largest for which a further known photo is kept with this probability (as in split conformal
    prediction); each photo's score is taken without its own part of the mean feature.

    Args:
        probs: [N, num_classes].
        features: [N, D].

    Returns:
        None where that is not possible: fewer than ``MIN_FITTED`` photos, one class, or all photos alike.
    """
    count = len(probs)
    if count < MIN_FITTED or probs.shape[1] < 2:
        return None
    center = features.mean(0, dtype=np.float64).astype(np.float32)
    far = np.square(features.astype(np.float64) - center).sum(1) * (count / (count - 1)) ** 2
    spread, distance = float(np.median(_logits(probs).std(1))), math.sqrt(np.median(far))
    if not (0 < spread < math.inf and 0 < distance < math.inf):
        return None
    scores = np.sort(_scores(probs, far, spread, distance))
    threshold = float(scores[max(1, math.floor((1 - share) * (count + 1))) - 1])
    return Familiarity(center, spread, distance, threshold, share, count) if threshold > 0 else None


def _logits(probs: np.ndarray) -> np.ndarray:
    """Logits up to one constant a photo, which the score does not depend on."""
    return np.log(np.maximum(probs, _SMALLEST, dtype=np.float64))


def _scores(probs: np.ndarray, far: np.ndarray, spread: float, distance: float) -> np.ndarray:
    """Scores from probs [N, num_classes] and squared distances from the center [N]."""
    logits = _logits(probs)
    stands_out = (logits.max(1) - logits.mean(1)) / spread
    return stands_out / np.sqrt(1 + np.square(logits.std(1) / spread) + np.square(far / distance**2))
