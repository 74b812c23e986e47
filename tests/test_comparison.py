"""Two arms of two studies, compared: against the verdict of one study that has both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_api import without_ray  # noqa: F401
from test_one_route import ARMS, BASE
from typer.testing import CliRunner

from gfe_study import InputError, Study, run
from gfe_study.analysis.judge.comparison import compare, side_of
from gfe_study.api import Result
from gfe_study.cli.app import app

SLOW, FAST = ({**BASE, "fixed": {**BASE["fixed"], **ARMS[name]}} for name in ("slow", "fast"))
BOTH = {**BASE, "scientific": {"arms": {name: ARMS[name] for name in ("slow", "fast")}}}
SEARCH = {**BASE, "nuisance": {"optim.lr": {"loguniform": [1e-5, 1e-2]}}, "trials": 4}


def ran(space: dict[str, Any], label: str, folder: Path) -> Result:
    return run(Study.build(space, label), storage=folder, progress=False)


def test_two_studies_compare_as_the_arms_of_one(without_ray: Path) -> None:  # noqa: F811
    slow, fast, both = (
        ran(space, name, without_ray) for space, name in ((SLOW, "slow"), (FAST, "fast"), (BOTH, "both"))
    )
    assert both.verdict is not None
    expected = both.verdict.rows
    for sides in (
        (side_of(slow, None), side_of(fast, None)),
        (side_of(both, "slow"), side_of(both, "fast")),
        (side_of(both, "slow"), side_of(fast, None)),
    ):
        found = compare(*sides)
        assert [row.value for row in found.rows] == [row.value for row in expected]
        assert found.rows[1].paired == expected[1].paired
        assert found.rows[1].verdict == expected[1].verdict
        assert not [text for text in found.warnings if text not in both.verdict.warnings]


def test_the_best_arm_stands_for_its_study(without_ray: Path) -> None:  # noqa: F811
    both = ran(BOTH, "both", without_ray)
    means = both.trials.groupby("arm")["val_loss"].mean()
    assert side_of(both, None).arm == means.idxmin()


def test_each_side_is_its_best_configuration(without_ray: Path) -> None:  # noqa: F811
    searched, fast = ran(SEARCH, "searched", without_ray), ran(FAST, "fast", without_ray)
    side = side_of(searched, None)
    means = searched.trials.groupby("number")["val_loss"].mean()
    assert set(side.trials["number"]) == {means.idxmin()}
    verdict = compare(side_of(fast, None), side)
    assert verdict.rows[1].value.mean == pytest.approx(side.trials["test_loss"].mean())
    assert "unequal numbers of tuning trials (fast 1, searched 4)" in "".join(verdict.warnings)


def test_seeds_that_cannot_be_paired_are_told(without_ray: Path) -> None:  # noqa: F811
    fast = ran({**FAST, "seeds": 1}, "fast", without_ray)
    later = ran({**SEARCH, "seeds": 1, "then": {"best": 1, "seeds": 2}}, "later", without_ray)
    warnings = "".join(compare(side_of(fast, None), side_of(later, None)).warnings)
    assert "no seed is shared, so that nothing can be paired: fast has 0 and later has 1, 2" in warnings


def test_an_arm_without_results_stands_for_nobody(without_ray: Path) -> None:  # noqa: F811
    both = ran(BOTH, "both", without_ray)
    best = side_of(both, None).arm
    both.trials.loc[both.trials["arm"] == best, "diverged"] = True
    assert side_of(both, None).arm != best
    both.__dict__["trials"] = both.trials.drop(columns="val_loss")
    with pytest.raises(InputError, match="both: no configuration is complete"):
        side_of(both, None)


def test_unequal_budgets_are_cut_as_in_one_study(without_ray: Path) -> None:  # noqa: F811
    arms = {"slow": {**ARMS["slow"], "budget.images": 32}, "fast": ARMS["fast"]}
    declared = {**BASE, "scientific": {"arms": arms}, "compare": {"budgets": "as_declared"}}
    both = ran(declared, "both", without_ray)
    assert both.verdict is not None
    found = compare(side_of(both, "slow"), side_of(both, "fast"))
    assert found.rows[1].value == both.verdict.rows[1].value
    assert found.rows[1].cut == both.verdict.rows[1].cut


def test_what_differs_in_the_evaluation_is_said(without_ray: Path) -> None:  # noqa: F811
    fewer = {**SLOW, "fixed": {**SLOW["fixed"], "eval": {"test_images": 40}}}
    slow, other = ran(SLOW, "slow", without_ray), ran(fewer, "fewer", without_ray)
    assert "eval.test_images 1000 and 40" in "".join(compare(side_of(slow, None), side_of(other, None)).warnings)


def test_what_cannot_be_compared_is_refused(without_ray: Path) -> None:  # noqa: F811
    slow = ran(SLOW, "slow", without_ray)
    likelihood = {**SLOW, "fixed": {**SLOW["fixed"], "likelihood": "gaussian"}}
    other = ran(likelihood, "gaussian", without_ray)
    with pytest.raises(InputError, match=r"gaussian: its likelihood.name is gaussian, .*measured with bernoulli"):
        compare(side_of(slow, None), side_of(other, None))
    with pytest.raises(InputError, match="given 'slow' twice"):
        compare(side_of(slow, None), side_of(slow, None))
    with pytest.raises(InputError, match="slow:fast: no such arm; allowed: slow alone"):
        side_of(slow, "fast")


@pytest.mark.parametrize("form", ["", "--md", "--html", "--json"])
def test_the_command_prints_every_number(without_ray: Path, form: str) -> None:  # noqa: F811
    both = ran(BOTH, "both", without_ray)
    assert both.verdict is not None
    words = ["compare", "both:slow", "both:fast", "--storage", str(without_ray), *filter(None, [form])]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    difference = both.verdict.rows[1].paired
    assert difference is not None
    if form == "--json":
        assert json.loads(done.stdout)["rows"][1]["paired"]["difference"] == difference.difference
        return
    for text in (f"{difference.difference:+.4f}", f"{both.verdict.rows[0].value.mean:.4f}", both.verdict.rows[1].text):
        assert text in " ".join(done.stdout.split())


def test_two_forms_at_once_are_refused(without_ray: Path) -> None:  # noqa: F811
    done = CliRunner().invoke(app, ["compare", "a", "b", "--md", "--json"])
    assert isinstance(done.exception, InputError)
