"""Data-efficiency curves: loss over the number of images, their areas, and where two of them cross.

Between the sizes measured a curve is taken to be straight in the logarithm of the size, and nowhere to follow a power
law. Arms are compared seed by seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gfe_study import names
from gfe_study.analysis.stats.crossing import Crossing, find_crossings
from gfe_study.analysis.stats.intervals import Paired, holm, mean_interval, paired, subtract
from gfe_study.metrics import IMAGES_SEEN, TEST_LOSS, UNIQUE_IMAGES, Better, info_of

AXES = {IMAGES_SEEN: "images seen", UNIQUE_IMAGES: "unique images"}
"""What a curve can run over, and how it is called."""


@dataclass(frozen=True, eq=False)
class DataEfficiency:
    """Losses of arms and seeds at numbers of images.

    Attributes:
        losses: index (`arm`, `seed`), one column per size in ascending order; NaN where there is no finite loss.
        axis: the sizes' name, one of `AXES`.
        confidence: of every interval.
        better: whether lower or higher values are better.
    """

    losses: pd.DataFrame
    axis: str
    confidence: float = 0.95
    better: Better = "lower"

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, axis: str, metric: str = TEST_LOSS, confidence: float = 0.95
    ) -> DataEfficiency:
        """From one row per (arm, seed, size).

        Args:
            frame: columns `arm`, `seed`, the axis and the metric; a loss that is not finite counts as not there.
            axis: `images_seen` or `unique_images`.
            metric: a loss, or another metric; `metrics` knows which direction is better.
            confidence: of every interval.

        Raises:
            ValueError: an unknown axis, a column that is not there, a size that is not a positive number, or two
                rows of one arm, seed and size.
        """
        if axis not in AXES:
            raise ValueError(f"axis must be one of {', '.join(AXES)}, got {axis!r}")
        needed = [names.ARM, names.SEED, axis, metric]
        missing = [column for column in needed if column not in frame.columns]
        if missing:
            raise ValueError(f"a data-efficiency curve needs the columns {', '.join(needed)}; not there: {missing}")
        sizes = frame[axis]
        if not (np.isfinite(sizes) & (sizes > 0)).all():
            raise ValueError(f"{axis} must be positive, for its logarithm is drawn; leave out the rows where it is not")
        key = [names.ARM, names.SEED, axis]
        twice = frame.loc[frame.duplicated(key), key]
        if len(twice):
            arm, seed, size = twice.iloc[0]
            raise ValueError(f"two rows of arm {arm!r}, seed {seed}, at {size:,g} {AXES[axis]}; keep one")
        finite = frame.assign(**{metric: frame[metric].where(np.isfinite(frame[metric]))})
        losses = finite.set_index(key)[metric].unstack(axis).sort_index(axis="columns")
        return cls(losses.loc[list(frame[names.ARM].unique())], axis, confidence, info_of(metric).better or "lower")

    @property
    def arms(self) -> list[str]:
        """In the order of the frame."""
        return list(dict.fromkeys(str(arm) for arm in self.losses.index.get_level_values(names.ARM)))

    def missing(self) -> pd.DataFrame:
        """`arm`, `seed` and size of every loss that other seeds of the arm have and this one does not."""
        gaps = [
            (arm, seed, size)
            for arm in self.arms
            for size in self._sizes([arm])
            for seed, loss in self._of(arm)[size].items()
            if math.isnan(loss)
        ]
        return pd.DataFrame(gaps, columns=[names.ARM, names.SEED, self.axis])

    def points(self) -> pd.DataFrame:
        """The mean curves: `arm`, the size, `seeds`, and `mean`, `low`, `high` of Student's interval at each size."""
        rows = []
        for arm in self.arms:
            for size in self._sizes([arm]):
                found = mean_interval(self._of(arm)[size].dropna(), self.confidence)
                rows.append((arm, size, found.count, found.mean, found.low, found.high))
        return _table(rows, [names.ARM, self.axis, "seeds", "mean", "low", "high"])

    def areas_by_seed(self, arms: Sequence[str] | None = None) -> pd.DataFrame:
        """Area under each seed's curve over the logarithm of the size, over the width of that; seed × arm.

        ∫ loss d(log n) / (log n_max - log n_min) by trapezoids: a mean loss, which gives every doubling of the images
        the same weight. Over the sizes that all the arms have, so that areas compare; NaN for a seed that lacks one
        of them, and everywhere if there are fewer than two.
        """
        arms = self.arms if arms is None else list(arms)
        sizes = self._sizes(arms)
        if len(sizes) < 2:
            areas = pd.Series(np.nan, index=self.losses.index)
        else:
            logs = np.log(sizes)
            areas = self.losses[sizes].apply(lambda curve: np.trapezoid(curve, logs) / np.ptp(logs), axis="columns")
        return areas.unstack(names.ARM).reindex(columns=arms).rename_axis(columns=names.ARM)

    def areas(self) -> pd.DataFrame:
        """`arm`, `seeds`, and the interval of the mean area: `mean`, `low`, `high`; `from` and `to`, the sizes."""
        sizes = self._sizes(self.arms) or [math.nan]
        rows = []
        for arm, areas in self.areas_by_seed().items():
            there = areas.dropna()
            found = mean_interval(there, self.confidence) if len(there) else None
            interval = (found.count, found.mean, found.low, found.high) if found else (0, None, None, None)
            rows.append((arm, *interval, sizes[0], sizes[-1]))
        return _table(rows, [names.ARM, "seeds", "mean", "low", "high", "from", "to"])

    def compare_areas(self, treatment: str, reference: str) -> Paired:
        """The areas of two arms, over the sizes that both have, paired by seed.

        Raises:
            ValueError: an unknown arm, or no seed that has all sizes in both.
        """
        self._check(treatment, reference)
        both = self.areas_by_seed([treatment, reference]).dropna()
        if not len(both):
            raise ValueError(f"no seed of both {treatment!r} and {reference!r} has two sizes and all that they share")
        return paired(both[treatment], both[reference], confidence=self.confidence)

    def differences(self, treatment: str, reference: str) -> pd.DataFrame:
        """Two arms at every size that both have, paired by seed.

        Columns: the size, `seeds`, `difference`, `low`, `high`, `p_value`, `p_permutation`, `p_holm` (of `p_value`,
        over the sizes).

        Raises:
            ValueError: an unknown arm.
        """
        self._check(treatment, reference)
        rows = []
        for size in self._sizes([treatment, reference]):
            both = pd.DataFrame({arm: self._of(arm)[size] for arm in (treatment, reference)}).dropna()
            if len(both):
                of = paired(both[treatment], both[reference], confidence=self.confidence)
                rows.append((size, of.count, of.difference, of.low, of.high, of.p_value, of.p_permutation, None))
        columns = [self.axis, "seeds", "difference", "low", "high", "p_value", "p_permutation", "p_holm"]
        table = _table(rows, columns)
        tested = table["p_value"].notna()
        table.loc[tested, "p_holm"] = holm([float(p) for p in table.loc[tested, "p_value"]])
        return table

    def crossing(self, first: str, second: str) -> Crossing:
        """Where the mean curves of two arms cross; see `analysis.crossing`.

        Of the sizes that both arms have, and the seeds that have all of these in both.

        Raises:
            ValueError: an unknown arm.
        """
        self._check(first, second)
        sizes = self._sizes([first, second])
        curves = [self._of(arm)[sizes].dropna() for arm in (first, second)]
        seeds = curves[0].index.intersection(curves[1].index)
        differences = subtract(curves[0].loc[seeds], curves[1].loc[seeds])
        return find_crossings(
            first, second, AXES[self.axis], np.array(sizes), differences, self.confidence, self.better
        )

    def crossings(self) -> pd.DataFrame:
        """Every two arms: `first`, `second`, and of each range of a crossing `crosses_at` (NaN if the mean curves do
        not cross in it), `low`, `high`, both NaN without an interval, and the whole finding in words, `text`.

        Two arms that cannot cross have one row, without numbers.
        """
        rows = []
        for first, second in itertools.combinations(self.arms, 2):
            found = self.crossing(first, second)
            rows += [(first, second, *numbers, found.text) for numbers in found.rows()]
        return _table(rows, ["first", "second", "crosses_at", "low", "high", "text"])

    def _of(self, arm: str) -> pd.DataFrame:
        """Seed × size of one arm."""
        return self.losses.loc[[arm]].droplevel(names.ARM)

    def _sizes(self, arms: Sequence[str]) -> list[float]:
        """The sizes at which every one of these arms has a loss."""
        there = self.losses.notna().groupby(level=names.ARM).any().loc[list(arms)].all()
        return [float(size) for size in there.index[there]]

    def _check(self, *arms: str) -> None:
        unknown = [arm for arm in arms if arm not in self.arms]
        if unknown:
            raise ValueError(f"unknown arm {unknown[0]!r}; there are {', '.join(self.arms)}")


def _table(rows: Sequence[tuple[object, ...]], columns: Sequence[str]) -> pd.DataFrame:
    """Numbers that are not there, None, become NaN."""
    table = pd.DataFrame(rows, columns=list(columns))
    numbers = [column for column in columns if column not in (names.ARM, "first", "second", "text")]
    return table.astype(dict.fromkeys(numbers, float)).astype({"seeds": int} if "seeds" in columns else {})
