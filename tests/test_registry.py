"""Components by name: built in, entry points of other packages, and paths."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gfe_study import registry
from gfe_study.cli.doctor import examine
from gfe_study.config import InputError, Study, Trial, read_yaml, to_yaml
from gfe_study.config.base import Component
from gfe_study.io.storage import Storage
from gfe_study.solvers.amd import AMD
from gfe_study.solvers.fixed_grid import RK4
from gfe_study.study.ray_trainable import built

DATA = "0" * 64
CACHES = [cached for cached in vars(registry).values() if hasattr(cached, "cache_clear")]

SOURCE = """
from gfe_study.solvers.amd import AMD
from gfe_study.solvers.base import Solver

class Mine(AMD):
    colour = "#123456"
    patience: int = 3

class Abstract(Solver):
    pass

class Plain:
    pass
"""


def forget() -> None:
    for cached in CACHES:
        cached.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory whose modules can be imported, until the test ends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    forget()
    yield tmp_path
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    forget()


Install = Callable[..., None]


@pytest.fixture
def install(here: Path) -> Install:
    """Installs a package: its modules, and the entry points of each section."""

    def installed(name: str, modules: dict[str, str], points: dict[str, dict[str, str]], version: str = "1.0") -> None:
        for module, source in modules.items():
            (here / f"{module}.py").write_text(source)
        for old in here.glob(f"{name}-*.dist-info"):
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        folder = here / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (folder / "top_level.txt").write_text("\n".join(modules))
        lines = []
        for section, named in points.items():
            lines += [f"[gfe_study.{section}]", *(f"{key} = {value}" for key, value in named.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
        if str(here) not in sys.path:
            sys.path.append(str(here))
        for module in modules:
            sys.modules.pop(module, None)
        forget()

    return installed


def trial(solver: Any, **more: Any) -> Trial:
    return Trial.build({"solver": solver, **more})


def refusal(solver: Any) -> str:
    with pytest.raises(InputError) as raised:
        trial(solver)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Built in


@pytest.mark.parametrize("section", registry.BASES)
def test_every_built_in_component_can_be_had(section: str) -> None:
    for name in registry.BUILT_IN[section]:
        found = registry.component(section, name)
        assert issubclass(found, Component)
        assert registry.name_of(found) == name
        assert registry.origin(found) is None


def test_the_path_of_a_built_in_class_is_its_name() -> None:
    assert trial("gfe_study.solvers.amd:AMD") == trial("amd")
    assert trial({"name": "gfe_study.solvers.amd:AMD", "beta": 0.5}) == trial({"name": "amd", "beta": 0.5})
    assert (
        Trial.build({"solver": {"name": "amd", "beta": 0.5}}, {"solver": "gfe_study.solvers.amd:AMD"}).solver.name
        == "amd"
    )
    settings = Trial.build({"solver": {"name": "amd", "beta": 0.5}}, {"solver": "gfe_study.solvers.amd:AMD"}).solver
    assert settings == AMD(beta=0.5)  # the same name again keeps the settings


def test_a_class_is_not_called_what_another_is() -> None:
    with pytest.raises(ValueError, match="allowed: amd"):
        AMD(name="rk4")
    with pytest.raises(InputError, match=r"solver: .*allowed: a solver"):
        trial(trial("amd").model)
    assert trial(RK4(tau=7)).solver == RK4(tau=7)


# Paths


def test_a_local_class_is_had_by_its_path(here: Path) -> None:
    (here / "own.py").write_text(SOURCE)
    mine = trial({"name": "own:Mine", "patience": 5, "beta": 0.5})
    assert (mine.solver.name, mine.solver.model_dump()["patience"]) == ("own:Mine", 5)
    (here / "trial.yaml").write_text(to_yaml(mine.dump()))
    again = Trial.build(read_yaml(here / "trial.yaml"))
    assert again == mine
    assert again.fingerprint(DATA) == mine.fingerprint(DATA)
    assert trial("own:Mine").solver == type(mine.solver)()
    study = Study.build(
        {
            "question": "?",
            "fixed": {"solver": "own:Mine"},
            "nuisance": {"solver.patience": {"int": [1, 9]}},
            "trials": 2,
        },
        "x",
    )
    assert study.example(study.arms[0], study.stages()[0]).solver.name == "own:Mine"


def test_a_file_is_told_by_its_source(here: Path) -> None:
    fingerprints = []
    for source in (SOURCE, SOURCE + "# changed\n", SOURCE):
        (here / "own.py").write_text(source)
        sys.modules.pop("own", None)
        forget()
        (package,) = trial("own:Mine").packages()
        assert package.startswith("own sha256 ")
        fingerprints.append((trial("own:Mine").fingerprint(DATA), trial("own:Mine").group(DATA)))
    assert fingerprints[0] == fingerprints[2]
    assert not {*fingerprints[0]} & {*fingerprints[1]}


def test_the_working_directory_is_searched_last(here: Path) -> None:
    (here / "torch.py").write_text("raise RuntimeError('the wrong torch')\n")
    (here / "own.py").write_text(SOURCE)
    trial("own:Mine")
    assert sys.path[-1] == str(here)
    assert sys.path.count(str(here)) == 1


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nowhere:Mine", "nowhere:Mine cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("own:Nothing", "own:Nothing cannot be imported: AttributeError: module 'own' has no attribute 'Nothing'"),
        (
            "own:mine",
            "own:mine cannot be imported: AttributeError: module 'own' has no attribute 'mine'; did you mean 'Mine'?",
        ),
        ("own:", "own: cannot be imported: AttributeError"),
        (":Mine", ":Mine cannot be imported: ValueError: Empty module name"),
        ("own:Plain", "own:Plain is no subclass of gfe_study.solvers.base:Solver"),
        ("own:SOURCE", "own:SOURCE is no subclass of gfe_study.solvers.base:Solver"),
        ("gfe_study.models.mlp:MLP", "gfe_study.models.mlp:MLP is no subclass of gfe_study.solvers.base:Solver"),
        ("own:Abstract", "own:Abstract lacks solve"),
        ("broken:Mine", "broken:Mine cannot be imported: SyntaxError: "),
        ("raising:Mine", "raising:Mine cannot be imported: RuntimeError: first line"),
    ],
)
def test_a_path_to_no_component_is_refused(path: str, why: str, here: Path) -> None:
    (here / "own.py").write_text(SOURCE + "SOURCE = 1\n")
    (here / "broken.py").write_text("class\n")
    (here / "raising.py").write_text("raise RuntimeError('first line\\nsecond line')\n")
    assert refusal(path).startswith(f"configuration: solver: given {path!r}; {why}")


# Entry points


def test_an_entry_point_is_a_name_like_any_other(install: Install) -> None:
    plain = trial("amd").fingerprint(DATA)
    install("other_pkg", {"other": SOURCE}, {"solver": {"mine": "other:Mine"}, "unheard_of": {"x": "other:Plain"}})
    assert registry.names("solver") == [*registry.BUILT_IN["solver"], "mine"]
    mine = trial("mine")
    assert mine.solver.name == "mine"
    assert mine.packages() == ["other_pkg 1.0"]
    assert Trial.build(mine.dump()) == mine
    assert trial("amd").fingerprint(DATA) == plain
    assert "allowed: amd, amd_nesterov, amd_spectral, dopri5, euler, gauss_newton, lbfgs, mine, rk4" in refusal("x")
    assert "did you mean 'mine'?" in refusal("mime")


def test_a_packages_version_is_in_the_fingerprint(install: Install) -> None:
    found = {}
    for version in ("1.0", "1.1"):
        install("other_pkg", {"other": SOURCE}, {"solver": {"mine": "other:Mine"}}, version)
        found[version] = trial("mine").fingerprint(DATA), trial("mine").group(DATA), trial("amd").fingerprint(DATA)
    assert found["1.0"][0] != found["1.1"][0]
    assert found["1.0"][1] != found["1.1"][1]
    assert found["1.0"][2] == found["1.1"][2]
    assert len({*found["1.0"]}) == 3


@pytest.mark.parametrize("path", ["other:Mine", "front:Mine"], ids=["its module", "another that imports it"])
@pytest.mark.parametrize("registered", ["other:Mine", "front:Mine"])
def test_one_class_has_one_name(path: str, registered: str, install: Install) -> None:
    front = "from other import Mine\n"
    install("other_pkg", {"other": SOURCE, "front": front}, {"solver": {"mine": registered}})
    by_path, by_name = trial({"name": path, "patience": 4}), trial({"name": "mine", "patience": 4})
    assert by_path == by_name
    assert by_path.fingerprint(DATA) == by_name.fingerprint(DATA)
    assert registry.path_of(type(by_path.solver)) == "other:Mine"
    assert type(by_path.solver)().name == "mine"
    space = {
        "question": "?",
        "scientific": {"factorial": {"solver": [path, "rk4"]}},
        "nuisance": {"solver.patience": {"int": [1, 3], "when": {"solver": path}}},
    }
    assert [arm.name for arm in Study.build(space, "x").arms] == ["mine", "rk4"]
    assert Study.build(space, "x").nuisance["solver.patience"][0].when == {"solver.name": ("mine",)}


def test_an_unregistered_class_has_its_package(install: Install) -> None:
    """A class that only its path names still belongs to the distribution it came with."""
    install("other_pkg", {"other": SOURCE}, {})
    assert trial("other:Mine").solver.name == "other:Mine"
    assert trial("other:Mine").packages() == ["other_pkg 1.0"]


def test_measures_count_too(install: Install) -> None:
    source = "from gfe_study.measures.entropy import Entropy\nclass Mine(Entropy):\n    pass\n"
    install("other_pkg", {"other": source}, {"measure": {"mine": "other:Mine"}})
    measured = Trial.build({"method": "gen", "eval": {"measures": ["mine", "entropy"]}})
    assert measured.packages() == ["other_pkg 1.0"]
    assert Trial.build(measured.dump()) == measured


def test_a_broken_package_disturbs_only_its_users(install: Install) -> None:
    install("bad_pkg", {"bad": "import nowhere_to_be_found\n"}, {"solver": {"bad": "bad:Mine"}})
    assert trial("amd").solver == AMD()
    assert refusal("bad") == (
        "configuration: solver: given 'bad'; bad:Mine cannot be imported: "
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'"
    )


def test_a_name_that_is_taken_is_refused(install: Install) -> None:
    install("other_pkg", {"other": SOURCE}, {"solver": {"amd": "other:Mine"}})
    assert trial("rk4").solver == RK4()
    assert refusal("amd") == (
        "configuration: solver: given 'amd'; registered by gfe-study and by other_pkg 1.0; "
        "allowed: the path of one: gfe_study.solvers.amd:AMD, other:Mine"
    )
    mine = trial("other:Mine")
    assert mine.solver.name == "other:Mine"
    assert Trial.build(mine.dump()) == mine


def test_a_name_of_two_packages_is_refused(install: Install) -> None:
    install("other_pkg", {"other": SOURCE}, {"solver": {"mine": "other:Mine"}})
    install("third_pkg", {"third": SOURCE}, {"solver": {"mine": "third:Mine"}})
    assert "given 'mine'; registered by other_pkg 1.0 and by third_pkg 1.0; allowed: the path" in refusal("mine")
    assert trial("third:Mine").packages() == ["third_pkg 1.0"]


def test_doctor_tells_what_packages_register(install: Install, tmp_path: Path) -> None:
    points = {"solver": {"mine": "other:Mine", "plain": "other:Plain"}}
    install("other_pkg", {"other": SOURCE}, points)
    findings = {found.subject: found for found in examine(Storage(str(tmp_path / "results")), fix=False)}
    assert findings["solver mine"].ok
    assert findings["solver mine"].text == "other:Mine of other_pkg 1.0"
    assert not findings["solver plain"].ok
    assert "no subclass" in findings["solver plain"].text


# Workers


def test_a_worker_that_lacks_the_package_says_so(install: Install) -> None:
    job: dict[str, Any] = {"trial": trial("amd").dump(), "packages": []}
    assert built(job) == trial("amd")
    job["trial"]["solver"]["name"] = "amx"
    with pytest.raises(InputError, match=r"^configuration: solver: given 'amx'; did you mean 'amd'"):
        built(job)
    install("other_pkg", {"other": SOURCE}, {"solver": {"mine": "other:Mine"}}, "1.1")
    mine = trial("mine")
    assert built({"trial": mine.dump(), "packages": mine.packages()}) == mine
    with pytest.raises(InputError, match=r"^this sweep needs other_pkg 1.0; install .*: other_pkg 1.1$"):
        built({"trial": mine.dump(), "packages": ["other_pkg 1.0"]})
    dumped = mine.dump() | {"solver": {"name": "missing"}}
    with pytest.raises(InputError, match=r"^this sweep needs other_pkg 1.0; .*: solver: given 'missing'; allowed:"):
        built({"trial": dumped, "packages": ["other_pkg 1.0"]})


# Constants


def test_constants_are_read_without_an_import(install: Install) -> None:
    install("other_pkg", {"other": SOURCE}, {"solver": {"mine": "other:Mine"}})
    assert registry.constant("solver", "mine", "colour") == "#123456"
    assert registry.constant("solver", "other:Mine", "colour") == "#123456"
    assert "other" not in sys.modules
    assert registry.constant("solver", "other:Abstract", "colour") is None
    assert registry.constant("solver", "missing", "colour") is None
    assert registry.constant("solver", "nowhere:Mine", "colour") is None
