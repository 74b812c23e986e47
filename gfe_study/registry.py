"""Which class stands behind the name of a component: `solver: amd` means `gfe_study.solvers.amd:AMD`.

A name is one of three:

- built in: a line of `BUILT_IN`;
- an entry point of an installed package, in the group `gfe_study.<section>`;
- the path of a class, `package.module:Class`, of an installed package or of a file in the working directory.

A class has one name. A path to a class that has a built-in name or an entry point stands for that name, so that both
ways of writing it are the same trial. A component is imported only when a configuration names it.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = "gfe_study"

BASES = {
    "method": "gfe_study.methods.base:Method",
    "flow": "gfe_study.solvers.fields:Flow",
    "solver": "gfe_study.solvers.base:Solver",
    "gradient": "gfe_study.gradients.base:Gradient",
    "start": "gfe_study.starts.base:Start",
    "model": "gfe_study.models.base:Model",
    "data": "gfe_study.data.base:Dataset",
    "operator": "gfe_study.operators.base:Operator",
    "likelihood": "gfe_study.likelihoods.base:Likelihood",
    "optim": "gfe_study.optim:Optimiser",
    "target": "gfe_study.targets.base:Target",
    "measure": "gfe_study.measures.base:Measure",
}
"""Section -> the class that its components are subclasses of."""

BUILT_IN: dict[str, dict[str, str]] = {
    "method": {
        "aae": "gfe_study.methods.aae:AAE",
        "ae": "gfe_study.methods.ae:Autoencoder",
        "dineof": "gfe_study.methods.dineof:DINEOF",
        "gen": "gfe_study.methods.gen:GEN",
        "gfe": "gfe_study.methods.gfe:GFE",
        "gfe_gen": "gfe_study.methods.gfe_gen:GFEGEN",
        "mean": "gfe_study.methods.mean:Mean",
        "miwae": "gfe_study.methods.miwae:MIWAE",
        "pca": "gfe_study.methods.pca:PCA",
        "vae": "gfe_study.methods.vae:VAE",
    },
    "flow": {
        "gradient": "gfe_study.solvers.fields:GradientFlow",
        "nesterov": "gfe_study.solvers.fields:NesterovFlow",
    },
    "solver": {
        "amd": "gfe_study.solvers.amd:AMD",
        "amd_nesterov": "gfe_study.solvers.nesterov_amd:NesterovAMD",
        "amd_spectral": "gfe_study.solvers.spectral:SpectralAMD",
        "dopri5": "gfe_study.solvers.dopri5:Dopri5",
        "euler": "gfe_study.solvers.fixed_grid:Euler",
        "gauss_newton": "gfe_study.solvers.gauss_newton:GaussNewton",
        "lbfgs": "gfe_study.solvers.lbfgs:LBFGS",
        "rk4": "gfe_study.solvers.fixed_grid:RK4",
    },
    "gradient": {
        "adjoint": "gfe_study.gradients.adjoint:Adjoint",
        "approx": "gfe_study.gradients.approx:Approximate",
        "unrolled": "gfe_study.gradients.unrolled:Unrolled",
    },
    "start": {
        "encoder": "gfe_study.starts.encoder:Encoder",
        "mean": "gfe_study.starts.constant:Mean",
        "nearest": "gfe_study.starts.nearest:Nearest",
        "previous": "gfe_study.starts.previous:Previous",
        "zero": "gfe_study.starts.constant:Zero",
    },
    "model": {"conv": "gfe_study.models.conv:Conv", "mlp": "gfe_study.models.mlp:MLP"},
    "data": {
        "digits": "gfe_study.data.digits:Digits",
        "mnist": "gfe_study.data.mnist:MNIST",
        "fashion_mnist": "gfe_study.data.mnist:FashionMNIST",
        "seg_mnist": "gfe_study.data.mnist:SegMNIST",
        "svhn": "gfe_study.data.svhn:SVHN",
        "celeba": "gfe_study.data.celeba:CelebA",
        "idx": "gfe_study.data.idx:IDX",
        "arrays": "gfe_study.data.arrays:Arrays",
        "terrain": "gfe_study.data.terrain:Terrain",
    },
    "likelihood": {
        "bernoulli": "gfe_study.likelihoods.bernoulli:Bernoulli",
        "gaussian": "gfe_study.likelihoods.gaussian:Gaussian",
        "poisson": "gfe_study.likelihoods.poisson:Poisson",
        "student_t": "gfe_study.likelihoods.student_t:StudentT",
    },
    "optim": {"rmsprop": "gfe_study.optim:RMSprop", "adam": "gfe_study.optim:Adam"},
    "target": {
        "mixture_of_gaussians": "gfe_study.targets.mixture_of_gaussians:MixtureOfGaussians",
        "standard_normal": "gfe_study.targets.standard_normal:StandardNormal",
    },
    "operator": {
        "blur": "gfe_study.operators.separable:Blur",
        "downsample": "gfe_study.operators.separable:Downsample",
        "identity": "gfe_study.operators.identity:Identity",
        "matrix": "gfe_study.operators.matrix:Matrix",
        "subsample": "gfe_study.operators.subsample:Subsample",
    },
    "measure": {
        "coverage": "gfe_study.measures.coverage:Coverage",
        "entropy": "gfe_study.measures.entropy:Entropy",
        "fid": "gfe_study.measures.fid:FID",
        "frechet": "gfe_study.measures.frechet:Frechet",
        "novelty": "gfe_study.measures.novelty:Novelty",
    },
}
"""Section -> name -> the class that implements it. Adding a solver is its file and one line here."""

SOURCE_DIGITS = 16


class Unknown(LookupError):
    """No component has this name."""


class Unusable(LookupError):
    """A component has this name and cannot be used; `str()` is the reason, one line."""


class Foreign(NamedTuple):
    """A component that another package registers.

    Attributes:
        section: what it is: `solver`, `data`, …
        name: what configurations call it.
        path: `package.module:Class`.
        origin: the package and its version.
        problem: why it cannot be used; empty if it can.
    """

    section: str
    name: str
    path: str
    origin: str
    problem: str


def names(section: str) -> list[str]:
    """Return the names that a section's components have: built in first, then those of other packages."""
    return list(dict.fromkeys([*BUILT_IN[section], *_points()[section]]))


@cache
def component(section: str, name: str) -> type[Any]:
    """Return the class behind a name or a path.

    Raises:
        Unknown: there is none.
        Unusable: the class cannot be imported, is of another section, or its name is given twice.
    """
    points = _points()[section].get(name, [])
    own = BUILT_IN[section].get(name)
    if ":" in name:
        path = name
    elif own is not None and not points:
        path = own
    elif own is None and not points:
        raise Unknown(name)
    elif own is None and len(points) == 1:
        path = points[0].value
    else:
        claims = [("gfe-study", own)] if own else []
        claims += sorted((_owner(point), point.value) for point in points)
        owners, paths = zip(*claims, strict=True)
        raise Unusable(f"registered by {' and by '.join(owners)}; allowed: the path of one: {', '.join(paths)}")
    found = _imported(path)
    if not isinstance(found, type) or not issubclass(found, base(section)):
        raise Unusable(f"{path} is no subclass of {BASES[section]}")
    if lacking := sorted(getattr(found, "__abstractmethods__", [])):
        raise Unusable(f"{path} lacks {', '.join(lacking)}")
    return found


@cache
def base(section: str) -> type[Any]:
    """Return the class that a section's components are subclasses of."""
    found = _imported(BASES[section])
    assert isinstance(found, type)
    return found


def _imported(path: str) -> Any:
    module, _, attributes = path.partition(":")
    # Last of all, so that no file of the working directory stands in for an installed package.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    found: Any = None
    try:
        found = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except Exception as error:  # whatever the code of another package raises
        lines = str(error).splitlines() or [""]
        if found is not None and (near := difflib.get_close_matches(attributes, dir(found), 1)):
            lines[0] += f"; did you mean '{near[0]}'?"
        raise Unusable(f"{path} cannot be imported: {type(error).__name__}: {lines[0]}") from error
    return found


@cache
def name_of(cls: type) -> str:
    """Return what configurations call a class: its built-in name, its entry point, or else its path."""
    path = path_of(cls)
    for registered in BUILT_IN.values():
        for name, own in registered.items():
            if own == path:
                return name
    point = _point_of(cls)
    return path if point is None else point.name


def canonical(section: str, name: str) -> str:
    """Return the one name of the class that a path leads to; whatever else is given is returned as it is."""
    if ":" not in name:
        return name
    try:
        found: type = component(section, name)
        return name_of(found)
    except LookupError:  # said where the section is read
        return name


def path_of(cls: type) -> str:
    """Return `package.module:Class`."""
    return f"{cls.__module__}:{cls.__qualname__}"


@cache
def origin(cls: type) -> str | None:
    """Return the package that a class comes from, with what tells its versions apart; None for gfe-study's own.

    That is `name version` of the distribution that registers or holds the class. A module of no distribution, like a
    file in the working directory, is told by the hash of its source.
    """
    module = cls.__module__
    if module.partition(".")[0] == PACKAGE:
        return None
    if point := _point_of(cls):
        return _owner(point)
    holders = sorted(set(packages_distributions().get(module.partition(".")[0], [])))
    if holders:
        return ", ".join(f"{holder} {version(holder)}" for holder in holders)
    try:
        source = Path(inspect.getfile(cls)).read_bytes()
    except (OSError, TypeError):  # typed into an interpreter
        return module
    return f"{module} sha256 {hashlib.sha256(source).hexdigest()[:SOURCE_DIGITS]}"


def foreign() -> Iterator[Foreign]:
    """Yield the components that other packages register, each imported to see whether it can be used."""
    for section, registered in _points().items():
        for name, points in registered.items():
            for point in points:
                try:
                    component(section, name)
                    problem = ""
                except LookupError as error:
                    problem = str(error)
                yield Foreign(section, name, point.value, _owner(point), problem)


def constant(section: str, name: str, attribute: str) -> Any:
    """Return a class constant, read from its source: figures are drawn without importing a solver, and torch with it.

    None if the class's own body does not set the attribute to a literal, or if there is no such class here.
    """
    points = _points()[section].get(name, [])
    path = name if ":" in name else BUILT_IN[section].get(name, points[0].value if points else "")
    module, _, class_name = path.partition(":")
    body = _source(module)
    for part in class_name.split("."):
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == part), [])
    for node in body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == attribute for target in targets):
            try:
                return ast.literal_eval(getattr(node, "value", ""))
            except ValueError:
                return None
    return None


@cache
def _source(module: str) -> list[ast.stmt]:
    try:
        spec = find_spec(module)
        return ast.parse(Path(spec.origin).read_bytes()).body if spec is not None and spec.origin else []
    except Exception:  # whatever the code of another package raises
        return []


@cache
def _points() -> dict[str, dict[str, list[EntryPoint]]]:
    """Entry points by section and name; more than one where packages use the same name."""
    found: dict[str, dict[str, list[EntryPoint]]] = {section: {} for section in BASES}
    installed = entry_points()
    for section, registered in found.items():
        for point in installed.select(group=f"{PACKAGE}.{section}"):
            registered.setdefault(point.name, []).append(point)
    return found


def _point_of(cls: type) -> EntryPoint | None:
    """The entry point of a class, of a name that no other component has."""
    for section, registered in _points().items():
        for name, points in registered.items():
            point = points[0]
            if len(points) > 1 or name in BUILT_IN[section] or not point.value.endswith(f":{cls.__qualname__}"):
                continue
            if point.value == path_of(cls) or _loads(point) is cls:
                return point
    return None


def _loads(point: EntryPoint) -> Any:
    try:
        return _imported(point.value)
    except Unusable:
        return None


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
