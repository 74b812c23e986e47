"""What decoders could do at moments of their training: flows (Figure 1), reconstructions (5), latents (6 and 7)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gfe_study import names
from gfe_study.analysis.judge.evidence import Arrays, Evidence
from gfe_study.analysis.report.exhibits.base import Exhibit, seeds_text
from gfe_study.analysis.report.style import PAGE, PALETTE, clipped, draw_samples, drawing, figure
from gfe_study.analysis.stats.embedding import NEIGHBOURS, embed_all, label_accuracy, trusted
from gfe_study.analysis.stats.intervals import mean_interval
from gfe_study.analysis.store.tidy import RUN_ID
from gfe_study.metrics import IMAGES_SEEN

MOST_ARMS = 4
"""Arms that are drawn; the tables have them all."""
MOST_PICTURES = 10
LAST = "last"


@dataclass(frozen=True, eq=False)
class Snapshots:
    """The snapshots of one trial: arrays by name, and the images seen at which they were taken."""

    arm: str
    seed: int
    dataset: str
    arrays: Arrays
    points: tuple[int, ...]

    def of(self, point: int, name: str) -> np.ndarray:
        return self.arrays[f"{point}/{name}"]

    def has(self, point: int, name: str) -> bool:
        return f"{point}/{name}" in self.arrays


def snapshots(evidence: Evidence) -> Iterator[Exhibit]:
    """Everything that is drawn from snapshots."""
    known = list(all_snapshots(evidence))
    if not known:
        return
    first = list({each.arm: each for each in reversed(known)}.values())[::-1]
    shown = _shown(evidence, first)
    told = f" {len(shown)} of {len(first)} arms." if len(shown) < len(first) else ""
    flows = [each for each in shown if any(each.has(point, "flow/nfe") for point in each.points)]
    if flows:
        yield _flows(flows, evidence.values.whole, told)
    yield from _reconstructions(evidence, shown, told)
    yield from _latents(evidence, known, shown, told)


def _shown(evidence: Evidence, first: list[Snapshots]) -> list[Snapshots]:
    """One trial of some arms, of every method, its first arm and then its last ones, in the order of the arms."""
    methods = evidence.chosen.drop_duplicates(names.ARM).set_index(names.ARM)[names.METHOD]
    order = {arm: place for place, arm in enumerate(evidence.arms)}
    of_method: dict[str, list[Snapshots]] = {}
    for each in sorted(first, key=lambda each: order[each.arm]):
        of_method.setdefault(str(methods[each.arm]), []).append(each)
    outermost = [[own[0], *own[:0:-1]] for own in of_method.values()]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*outermost))
    taken = [each for each in turns if each is not None][:MOST_ARMS]
    return sorted(taken, key=lambda each: order[each.arm])


def all_snapshots(evidence: Evidence) -> Iterator[Snapshots]:
    """The snapshots of the chosen trials, by arm and seed."""
    chosen = evidence.chosen
    for arm in evidence.arms:
        for trial in chosen[chosen[names.ARM] == arm].sort_values(names.SEED).to_dict("records"):
            arrays = evidence.snapshots(str(trial[RUN_ID]))
            if arrays is not None:
                points = tuple(sorted({int(key.partition("/")[0]) for key in arrays if "/" in key}))
                if not points:
                    continue
                yield Snapshots(arm, int(trial[names.SEED]), str(trial[names.DATASET]), arrays, points)


def chosen_text(evidence: Evidence, shown: list[Snapshots]) -> str:
    """Which trials are drawn."""
    seeds = ", ".join(map(str, sorted({each.seed for each in shown})))
    whose = (
        f"of each arm, the best configuration by {evidence.chosen_by}" if len(shown) > 1 else "the best configuration"
    )
    return f"{whose}; seed {seeds}"


def draw_rows(grid: np.ndarray, rows: list[tuple[str, np.ndarray]], unit: str) -> None:
    """Samples in a row of axes each, as many as there are axes, with what they are beside them."""
    draw_samples(grid, [samples[: grid.shape[1]] for _, samples in rows], unit)
    for (text, _), line in zip(rows, grid, strict=True):
        line[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=6.5)


def _moment(point: int) -> str:
    return f"after {point:,} images seen"


def _flows(shown: list[Snapshots], what: str, told: str) -> Exhibit:
    columns = max(len(each.points) for each in shown)
    data = []
    with drawing():
        fig = figure(PAGE, 1.9 * len(shown) + 0.3)
        grid = fig.subplots(len(shown), columns, squeeze=False, sharey="row")
        for row, each in enumerate(shown):
            for column in range(columns):
                axes = grid[row][column]
                if column >= len(each.points) or not each.has(each.points[column], "flow/nfe"):
                    axes.set_axis_off()
                    continue
                data.append(_draw_flow(axes, each, each.points[column]))
                axes.set_title(_moment(each.points[column]))
            grid[row][0].set_ylim(0, None)  # of all panels: they share it
            grid[row][0].set_ylabel(f"{clipped(each.arm)}\n‖z − z*‖ / ‖z₀ − z*‖".strip())
    axis = "flow time t where the solver follows the flow, else decoder evaluations"
    return Exhibit(
        "flows",
        "Convergence of the latent along its flow, at moments of training",
        f"Distance of z from the end of its flow z*, of {len(set(data[0]['image']))} test {what}s (one line each), "
        f"over {axis}; {_seeds(shown)}. As in Figure 1 of the paper.{told}",
        fig,
        data=pd.concat(data, ignore_index=True),
    )


def _draw_flow(axes: Axes, each: Snapshots, point: int) -> pd.DataFrame:
    table = pd.DataFrame(
        {name: each.of(point, f"flow/{name}") for name in ("image", "nfe", "time", "loss", "distance")}
    )
    along = "time" if table["time"].notna().any() else "nfe"
    for place, (_, path) in enumerate(table.groupby("image")):
        start = float(path["distance"].iloc[0])
        if start > 0:
            axes.plot(path[along], path["distance"] / start, color=PALETTE[place % len(PALETTE)], linewidth=0.8)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlabel("flow time t" if along == "time" else "decoder evaluations")
    return table.assign(arm=each.arm, seed=each.seed, images_seen=point)


def _seeds(shown: list[Snapshots]) -> str:
    seeds = sorted({each.seed for each in shown})
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"


def _reconstructions(evidence: Evidence, shown: list[Snapshots], told: str) -> Iterator[Exhibit]:
    several = len({each.dataset for each in shown}) > 1
    shown = sorted(shown, key=lambda each: [one.dataset for one in shown].index(each.dataset))
    rows: list[tuple[str, np.ndarray]] = []
    for before, each in itertools.pairwise([None, *shown]):
        assert each is not None
        if before is None or before.dataset != each.dataset:
            rows.append(
                (f"test {evidence.values.whole}s{f' of {each.dataset}' if several else ''}", each.arrays["target"])
            )
        rows += [
            (f"{clipped(each.arm)}\n{_moment(point)}".strip(), each.of(point, "reconstruction"))
            for point in _ends(each)
        ]
    count = min(MOST_PICTURES, *(len(samples) for _, samples in rows))
    kind = f"{evidence.values.whole}s"
    with drawing():
        fig = figure(PAGE, 0.52 * len(rows))
        grid = fig.subplots(len(rows), count, squeeze=False)
        draw_rows(grid, rows, evidence.values.unit)
    datasets = " and ".join(dict.fromkeys(each.dataset for each in shown))
    yield Exhibit(
        "reconstructions",
        f"Test {kind} and their reconstructions",
        f"The first {count} test {kind} of {datasets}, and what decoders of {_seeds(shown)} make of them "
        f"early and at the end of training. As in Figure 5 of the paper, which shows 1 % of the training set and "
        f"all of it.{told}",
        fig,
    )


def _ends(each: Snapshots) -> list[int]:
    """The early and the last moment."""
    return sorted({each.points[0], each.points[-1]})


def _latents(evidence: Evidence, known: list[Snapshots], shown: list[Snapshots], told: str) -> Iterator[Exhibit]:
    known, shown = ([each for each in some if "label" in each.arrays] for some in (known, shown))
    measured = pd.DataFrame(
        [
            {
                names.ARM: each.arm,
                IMAGES_SEEN: point,
                LAST: point == each.points[-1],
                names.SEED: each.seed,
                "accuracy": label_accuracy(each.of(point, "latent"), each.arrays["label"]),
            }
            for each in known
            for point in _ends(each)
        ]
    ).dropna()
    if not len(measured) or not shown:
        return
    fig, embedded = _maps(shown)
    rows = []
    for (arm, last), own in measured.groupby([names.ARM, LAST], sort=False):
        found = mean_interval(own["accuracy"], evidence.confidence)
        half = None if found.high is None else found.high - found.mean
        trust = embedded.get((str(arm), bool(last)))
        rows.append((arm, own[IMAGES_SEEN].mean(), found.count, found.mean, half, trust))
    columns = ["arm", "images seen", "seeds", "k-NN accuracy", "±", "trustworthiness of the map"]
    table = pd.DataFrame(rows, columns=columns)
    table[columns[4:]] = table[columns[4:]].astype("float64")
    if set(table["arm"]) == {""}:
        table = table.drop(columns="arm")
    images, what = len(known[0].arrays["label"]), evidence.values.whole
    yield Exhibit(
        "latents",
        f"Latents of test {what}s",
        f"t-SNE of the latents of {images:,} test {what}s, coloured by class; training never uses classes; "
        f"{_seeds(shown)}. Pictures of t-SNE cannot be compared by eye, so the table measures the latents themselves: "
        f"the share of test {what}s whose class is that of most of their {NEIGHBOURS} nearest neighbours in latent "
        f"space ({seeds_text(set(table['seeds']))}; early and at the end of training, at the mean "
        "number of images seen if seeds ended at different ones), and how far the map keeps neighbourhoods (1: all of "
        f"them). As in Figures 6 and 7 of the paper.{told}",
        fig,
        table.dropna(axis="columns", how="all"),
        {"images seen": ",.0f", "k-NN accuracy": ".3f", "±": ".3f", "trustworthiness of the map": ".3f"},
    )


def _maps(shown: list[Snapshots]) -> tuple[Figure, dict[tuple[str, bool], float]]:
    """A map of every arm early and at the end, and how far it can be trusted, by arm and whether it is the end."""
    columns = max(len(_ends(each)) for each in shown)
    trust: dict[tuple[str, bool], float] = {}
    latents = {(each.arm, point): each.of(point, "latent") for each in shown for point in _ends(each)}
    maps = dict(zip(latents, embed_all(list(latents.values())), strict=True))
    with drawing():
        fig = figure(1.75 * max(columns, 2) + 0.6, 1.75 * len(shown) + 0.2)
        grid = fig.subplots(len(shown), columns, squeeze=False)
        for each, line in zip(shown, grid, strict=True):
            for axes in line:
                axes.set_axis_off()
            for point, axes in zip(_ends(each), line, strict=False):
                map_N2, label_N = maps[each.arm, point], each.arrays["label"]
                if map_N2 is None:
                    continue
                trust[each.arm, point == each.points[-1]] = trusted(latents[each.arm, point], map_N2)
                for kind in np.unique(label_N):
                    here = map_N2[label_N == kind]
                    axes.scatter(*here.T, s=2, color=PALETTE[int(kind) % len(PALETTE)], linewidths=0, label=str(kind))
                axes.set_title(f"{clipped(each.arm)}\n{_moment(point)}".strip())
        known = {
            text: handle for axes in fig.axes for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        labels = sorted(known, key=int)
        fig.legend(
            [known[text] for text in labels], labels, loc="outside right center", markerscale=3, handletextpad=0.1
        )
    return fig, trust
