"""Asynchronous successive halving on images seen (Li et al., arXiv:1810.05934), its rungs rebuilt from the journal."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence

from gfe_study.config.options import Asha
from gfe_study.metrics import DIVERGED, IMAGES_SEEN


class Halving:
    """Which trials are not worth going on with.

    A rung is a number of images seen: `grace_images` · `reduction`^k. A trial reaches it with its first point at
    or beyond it, and goes on if its value there is among the best 1/`reduction`, rounded up, of those that have
    reached the rung so far. Nothing is stopped on a rung that nobody else has reached.

    Args:
        options: grace and reduction.
        metric: the metric by which trials are judged, and `mode`, which end of it is good.
        budget: images at which trials end by themselves; rungs lie below.
    """

    def __init__(self, options: Asha, metric: str, mode: str, budget: int) -> None:
        self._metric, self._reduction = metric, options.reduction
        self._sign = 1 if mode == "min" else -1
        self.rungs: dict[float, dict[str, float]] = {}
        self._sorted: dict[float, list[float]] = defaultdict(list)
        rung = options.grace_images
        while rung < budget:
            self.rungs[rung] = {}
            rung *= options.reduction

    def record(self, fingerprint: str, points: Sequence[dict[str, float]]) -> float | None:
        """Take in a trial's points, perhaps known ones; the highest rung that it has reached, if any."""
        reached = None
        for rung, values in self.rungs.items():
            point = next((p for p in points if p[IMAGES_SEEN] >= rung and self._metric in p), None)
            if point is not None and not point.get(DIVERGED):
                if fingerprint not in values:
                    values[fingerprint] = self._sign * point[self._metric]
                    insort(self._sorted[rung], values[fingerprint])
                reached = rung
        return reached

    def stops(self, fingerprint: str, points: Sequence[dict[str, float]]) -> str | None:
        """Why a trial that has come as far as these points is stopped; None if it goes on."""
        rung = self.record(fingerprint, points)
        if rung is None:
            return None
        values = self.rungs[rung]
        better = bisect_left(self._sorted[rung], values[fingerprint])
        places = math.ceil(len(values) / self._reduction)
        if better < places:
            return None
        return f"successive halving at {rung:,.0f} images: {better} of {len(values)} trials were better there"
