"""Every key is listed with its meaning, and editors know them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from gfe_study import registry
from gfe_study.cli.app import app
from gfe_study.config import InputError, Trial, space_files
from gfe_study.config.files import parse_yaml
from gfe_study.config.keys import keys, schema
from gfe_study.config.trial import flatten

SPACES = Path(__file__).resolve().parents[1] / "search_spaces"
VALIDATOR = Draft202012Validator(schema())


def faults(declared: str) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(parse_yaml(declared, "test"))]


def test_every_key_of_a_trial_is_listed() -> None:
    paths = {key.path for key in keys()}
    for trial in (Trial.build({}), Trial.build({"preset": "holes", "eval": {"withhold": {"fraction": 0.1}}})):
        for path in flatten(trial.dump()):
            assert path in paths or path.endswith(".name"), path


def test_a_key_has_a_range_default_and_meaning() -> None:
    found = {key.path: key for key in keys("solver.lbfgs")}
    fields = registry.component("solver", "lbfgs").model_fields
    assert set(found) == {f"solver.{name}" for name in fields} - {"solver.name"}
    beta = found["solver.beta"]
    assert (beta.allowed, beta.default) == ("number > 0 and < 1", "0.2")
    assert beta.text == "β, the factor by which a rejected step shrinks."
    assert "null: `max_nfe`" in found["solver.train_max_nfe"].text


def test_shared_keys_are_listed_once() -> None:
    (fraction,) = keys("data.hide.fraction")
    assert set(fraction.names) == set(registry.names("data"))
    assert [key.path for key in keys("data.observe.blur.width")] == ["data.observe.width"]
    assert [key.path for key in keys("eval.measures.fid.weights")] == ["eval.measures.weights"]


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"given 'solver\.lbgfs'; did you mean 'solver\.lbfgs'"):
        keys("solver.lbgfs")


def test_the_commands_print_them() -> None:
    shown = CliRunner().invoke(app, ["keys", "optim.adam"])
    assert shown.exit_code == 0
    assert "optim.beta1: number ≥ 0 and < 1; default 0.9" in shown.output
    listed = json.loads(CliRunner().invoke(app, ["keys", "optim.adam", "--json"]).output)
    assert set(listed[0]) == {"path", "names", "allowed", "default", "text"}
    assert json.loads(CliRunner().invoke(app, ["schema"]).output) == schema()


def test_every_space_names_the_schema_for_editors() -> None:
    """`gfe-study schema > search_spaces/schema.json` regenerates it."""
    assert json.loads((SPACES / "schema.json").read_text(encoding="utf-8")) == schema()
    for file in SPACES.glob("*.yaml"):
        assert file.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n"), file.name


@pytest.mark.parametrize("name", space_files())
def test_shipped_spaces_are_valid(name: str) -> None:
    assert faults(space_files()[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "fixed: {solver: {name: lbfgs, max_nef: 3}}",
        "fixed: {solver.max_nef: 3}",
        "fixed: {sovler: lbfgs}",
        "fixed: {solver: lbgfs}",
        "fixed: {data: {name: digits, hide: {fracton: 0.1}}}",
        "nuisance: {optim.rl: {loguniform: [1e-4, 1e-2]}}",
        "trails: 3",
        "compare: {factr: method}",
        "then: {best: 1, fixed: {optim.rl: 1}}",
        "budget: {image: 3}",
        "scientific: {arms: {a: {optim.rl: 3}}}",
        "fixed: {eval: {mesures: [entropy]}}",
    ],
)
def test_a_misspelt_key_is_underlined(line: str) -> None:
    assert faults(f"question: Which?\n{line}\n")


@pytest.mark.parametrize(
    "line",
    [
        "fixed: {solver: {name: lbfgs, max_nfe: 3}, optim.lr: 1e-3, data: digits, preset: best}",
        "fixed: {solver: {name: my.package:Mine, my_own: 3}}",
        "nuisance: {optim: {lr: {loguniform: [1e-4, 1e-2]}}}",
        "fixed: {eval: {measures: [entropy, {name: frechet, images: 20}]}}",
    ],
)
def test_what_is_right_is_not_underlined(line: str) -> None:
    assert faults(f"question: Which?\n{line}\n") == []


def test_every_key_is_explained() -> None:
    sections = ("settings", "name or settings")
    assert not [key.path for key in keys() if not key.text and not key.allowed.startswith(sections)]
