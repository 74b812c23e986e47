"""Study files are YAML 1.2, with the anchors and merge keys of 1.1; what is ambiguous is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gfe_study.config import InputError, Study, parse_assignments
from gfe_study.config.files import parse_yaml

BASE: dict[str, Any] = {
    "question": "q",
    "fixed": {"preset": "paper", "solver": {"name": "amd"}, "data": {"name": "digits"}},
    "budget": {"images": 64},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e4", 1e4),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("0", 0),
        ("-0", 0),
        ("0x10", 16),
        ("0o10", 8),
        (".inf", float("inf")),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("1.2.3", "1.2.3"),
        ("'010'", "010"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}", "file")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["010", "-007", "00", "+08"])
def test_leading_zeros_are_refused_as_ambiguous(text: str) -> None:
    for read in (lambda: parse_yaml(f"a: {text}", "f.yaml"), lambda: parse_assignments([f"a={text}"])):
        with pytest.raises(InputError, match=r"ambiguous \(decimal or octal\); allowed: \d") as error:
            read()
        assert text in str(error.value)
    # 08 is no octal number, so only the decimal one is offered.
    assert ("0o" in str(error.value)) == (text != "+08")


def test_keys_stay_as_they_are_written() -> None:
    assert list(parse_yaml("{on: 1, off: 1, 1e3: 1, 010: 1, null: 1, 1: 1}", "f")) == [
        "on",
        "off",
        "1e3",
        "010",
        "null",
        "1",
    ]


def test_arms_keep_the_names_in_the_file(tmp_path: Path) -> None:
    """An arm called `off` is the reference by that name, and `1e3` is not 1000.0."""
    file = tmp_path / "s.yaml"
    file.write_text(
        "question: q\nfixed: {preset: paper, solver: {name: amd, max_nfe: 6}}\n"
        "scientific: {arms: {on: {solver.beta: 0.5}, off: {solver.beta: 0.6}, 1e3: {solver.beta: 0.7}}}\n"
        "nuisance: {optim.lr: [{loguniform: [1e-4, 1e-3], when: {arm: 1e3}}]}\n"
        "compare: {reference: off}\nbudget: {images: 64}\n"
    )
    study = Study.load(file)
    assert [(arm.name, arm.reference) for arm in study.arms] == [("on", "off"), ("off", None), ("1e3", "off")]
    assert study.range_of("optim.lr", "1e3", {}) is not None
    assert study.range_of("optim.lr", "on", {}) is None


def test_merge_keys_and_anchors_work() -> None:
    text = "s: &s {name: amd, max_nfe: 6}\na: {<<: *s, beta: 0.5}\nb: {beta: 0.7, max_nfe: 8, <<: [*s, {tau: 3}]}"
    found = parse_yaml(text, "f")
    assert found["a"] == {"name": "amd", "max_nfe": 6, "beta": 0.5}
    assert found["b"] == {"name": "amd", "max_nfe": 8, "beta": 0.7, "tau": 3}
    with pytest.raises(InputError, match="'beta' is given twice"):
        parse_yaml("s: &s {tau: 3}\na: {<<: *s, beta: 1, beta: 2}", "f")


def test_an_anchor_containing_itself_is_refused() -> None:
    with pytest.raises(InputError, match="nested too deeply"):
        parse_yaml("&a {x: *a}", "f")


@pytest.mark.parametrize(("kind", "allowed"), [("uniform", "int"), ("loguniform", "logint")])
@pytest.mark.parametrize("key", ["solver.max_nfe", "model.latent_dim", "optim.batch_size"])
def test_a_range_of_numbers_on_a_whole_number_key(key: str, kind: str, allowed: str) -> None:
    """Both ends are whole numbers and valid, but no draw between them would be."""
    with pytest.raises(InputError, match=rf"^mine.yaml: nuisance.{key}: given .*allowed: {{{allowed}: \[low, high\]}}"):
        Study.build({**BASE, "nuisance": {key: {kind: [6, 12]}}, "trials": 3}, "mine.yaml")


@pytest.mark.parametrize(
    ("key", "drawn"),
    [
        ("solver.max_nfe", {"int": [6, 12]}),
        ("solver.max_nfe", {"int": [6, 7]}),
        ("solver.beta", {"uniform": [0.1, 0.9]}),
    ],
)
def test_ranges_that_hold_between_their_ends_load(key: str, drawn: dict[str, Any]) -> None:
    assert Study.build({**BASE, "nuisance": {key: drawn}, "trials": 3}, "mine.yaml").nuisance


def test_values_between_the_ends_are_inside() -> None:
    study = Study.build({**BASE, "nuisance": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}}, "f")
    (drawn,) = study.nuisance["optim.lr"]
    assert len(drawn.inside()) == 3
    assert all(1e-4 < value < 1e-2 for value in drawn.inside())
