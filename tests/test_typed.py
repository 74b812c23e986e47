"""Which of the typed values an error is blamed on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfe_study.config import InputError, Typed, blamed, flatten

KEYS = ["solver.name", "solver.beta", "optim.lr", "seed", "data.name"]
typed_keys = st.lists(st.sampled_from(KEYS), unique=True, min_size=1)


def sets(keys: list[str]) -> list[Typed]:
    return [Typed(f"--set {key}", key, place) for place, key in enumerate(keys)]


@given(typed_keys, st.data(), st.integers(0, 2))
def test_the_last_of_the_causes_is_blamed(keys: list[str], data: st.DataObject, trials: int) -> None:
    """An error that some values cause together, among values that have no part in it."""
    causes = data.draw(st.sets(st.sampled_from([*keys, "trials"]), min_size=1))

    def build(changes: dict[str, Any], **options: int) -> None:
        if causes <= flatten(changes).keys() | options.keys():
            raise InputError("my.yaml: they do not go together")
        if "seed" in flatten(changes):
            raise InputError("my.yaml: another error")

    options = [Typed("--trials", "trials", trials)]
    last = next(one.name for one in reversed([*sets(keys), *options]) if one.key in causes)
    with pytest.raises(InputError, match=f"^{last}: they do not go together$"):
        blamed(build, "my.yaml", sets(keys), options)


@given(typed_keys, st.data())
def test_of_equal_causes_the_first_is_blamed(keys: list[str], data: st.DataObject) -> None:
    causes = data.draw(st.sets(st.sampled_from(keys), min_size=1))

    def build(changes: dict[str, Any]) -> None:
        if causes & flatten(changes).keys():
            raise InputError("my.yaml: too many")

    first = next(key for key in keys if key in causes)
    with pytest.raises(InputError, match=f"^--set {first}: too many$"):
        blamed(build, "my.yaml", sets(keys))


@given(typed_keys)
def test_an_error_without_a_typed_cause_stays(keys: list[str]) -> None:
    def build(_: dict[str, Any]) -> None:
        raise InputError("my.yaml: solver.beta: given 7")

    with pytest.raises(InputError, match=r"^my\.yaml: solver\.beta: given 7$"):
        blamed(build, "my.yaml", sets(keys))


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("solver.beta: given 7", "solver.beta", "--set solver.beta: given 7"),
        ("arm 'a: b': solver.beta: given 7", "solver.beta", "--set solver.beta: given 7"),
        ("data: given 'x'", "data.name", "--set data.name: given 'x'"),
        ("data.name: given 'x'", "data", "--set data: given 'x'"),
        ("solver.beta: given 7", "solver", "--set solver: solver.beta: given 7"),
        ("nuisance.solver.beta: x", "solver.beta", "--set solver.beta: nuisance.solver.beta: x"),
        ("solverXbeta: given 7", "solver.beta", "--set solver.beta: solverXbeta: given 7"),
    ],
)
def test_a_key_that_was_typed_is_not_repeated(text: str, key: str, line: str) -> None:
    def build(changes: dict[str, Any]) -> None:
        if changes:
            raise InputError(f"my.yaml: {text}")

    with pytest.raises(InputError) as error:
        blamed(build, "my.yaml", [Typed(f"--set {key}", key, 7)])
    assert str(error.value) == line


def test_an_error_begins_with_its_own_value() -> None:
    """Both values are wrong, and the message begins with the first."""

    def build(changes: dict[str, Any]) -> None:
        if wrong := [f"{key}: given {value}" for key, value in flatten(changes).items()]:
            raise InputError(f"f: {'; also '.join(wrong)}")

    with pytest.raises(InputError, match=r"^--set optim\.lr: given 0; also solver\.beta: given 1$"):
        blamed(build, "f", sets(["optim.lr", "solver.beta"]))


def test_what_was_typed_is_built_once() -> None:
    seen = []

    def build(changes: dict[str, Any], trials: int) -> int:
        seen.append((changes, trials))
        return trials

    assert blamed(build, "f", sets(["solver.name", "solver.beta"]), [Typed("--trials", "trials", 3)]) == 3
    assert seen == [({"solver": {"name": 0, "beta": 1}}, 3)]
