"""One tiny trial of every component, pinned: trials of earlier versions are reused while their numbers stay.

`python tests/test_pinned.py` prints the table of pinned numbers as they are now.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gfe_study import registry
from gfe_study.config import Trial
from gfe_study.metrics import VAL_LOSS
from gfe_study.solvers.descent import DescentSolver
from gfe_study.training import train

SMALL: dict[str, Any] = {
    "model": {"latent_dim": 3, "hidden": [8]},
    "data": {"name": "digits"},
    "budget": {"images": 64},
    "eval": {"schedule": [32], "val_images": 32, "test_images": 1, "mixed": False, "common": False},
}
GRID = {"preset": "paper", "solver": {"name": "rk4"}}
# A density begins with 64 images.
DENSITY = {
    "preset": "gen",
    "method": {"name": "gen", "kde_samples": 128},
    "optim": {"batch_size": 16},
    "budget": {"images": 128},
}
AROUND: dict[str, dict[str, Any]] = {
    "method": {},
    "likelihood": {},
    "solver": {"preset": "paper"},
    "flow": GRID,
    "gradient": GRID,
    # Few images, so that all have been seen before, and few evaluations, so that the end depends on the start.
    "start": {"data": {"train_images": 16}, "solver": {"name": "lbfgs", "max_nfe": 4}},
    "model": {},
    "optim": {},
    "target": DENSITY,
}
"""Section -> what a trial of each of its components has else: what makes the component matter."""
TRIALS: dict[str, dict[str, Any]] = {
    "preset best": {"preset": "best"},
    "preset paper": {"preset": "paper"},
    "preset gen": DENSITY,
    "learned sigma": {"likelihood": {"name": "gaussian", "sigma": "learned"}},
    "learned scale": {"likelihood": {"name": "student_t", "scale": "learned"}},
    "prior": {"prior_precision": 1.0},
    "pca with gaps": {"method": "pca", "data": {"name": "digits", "hide": {"fraction": 0.4}}},
}
"""Name -> configuration. Every built-in component of the sections of `AROUND` is added."""
for section, around in AROUND.items():
    for name in registry.BUILT_IN[section]:
        kind = registry.component(section, name)
        # So few evaluations that the way to the minimum is pinned too.
        few = {"max_nfe": 8} if issubclass(kind, DescentSolver) else {}
        TRIALS[f"{section} {name}"] = {**around, section: {"name": name, **kind.example, **few}}

PINNED: dict[str, tuple[float, float]] = {
    "preset best": (0.52069726, 0.44729630),
    "preset paper": (0.67578917, 0.67313135),
    "preset gen": (0.69910872, 0.69759000),
    "learned sigma": (1.15015657, 1.06074419),
    "learned scale": (1.14990855, 1.05426181),
    "pca with gaps": (1.09280885, 1.08934223),
    "prior": (0.57976876, 0.51315568),
    "method aae": (0.54942254, 0.47453234),
    "method ae": (0.54892323, 0.47333764),
    "method dineof": (1.09842458, 1.08903622),
    "method gen": (0.54892323, 0.47695554),
    "method gfe": (0.52069726, 0.44729630),
    "method gfe_gen": (0.52069726, 0.54917072),
    "method mean": (0.43680554, 0.43647420),
    "method miwae": (0.59656892, 0.52323046),
    "method pca": (1.09842458, 1.08903623),
    "method vae": (0.59235564, 0.52269890),
    "likelihood bernoulli": (0.52069726, 0.44729630),
    "likelihood gaussian": (1.21836893, 1.16813577),
    "likelihood poisson": (4.95930882, 3.55066514),
    "likelihood student_t": (1.29053728, 1.24453981),
    "solver amd": (0.69711600, 0.69550260),
    "solver amd_nesterov": (0.69665351, 0.69500665),
    "solver amd_spectral": (0.67568992, 0.67302764),
    "solver dopri5": (0.70000852, 0.69848822),
    "solver euler": (0.69715801, 0.69554728),
    "solver gauss_newton": (0.67730413, 0.67485186),
    "solver lbfgs": (0.67567850, 0.67302126),
    "solver rk4": (0.69746514, 0.69586888),
    "flow gradient": (0.67601025, 0.67339944),
    "flow nesterov": (0.71063397, 0.69733255),
    "gradient adjoint": (0.67603401, 0.67341807),
    "gradient approx": (0.67601025, 0.67339944),
    "gradient unrolled": (0.67603401, 0.67341807),
    "start encoder": (0.52609645, 0.47137459),
    "start mean": (0.52131723, 0.46362400),
    "start nearest": (0.52084166, 0.46313727),
    "start previous": (0.54747108, 0.52296678),
    "start zero": (0.54700777, 0.51503686),
    "model conv": (0.52835444, 0.47304026),
    "model mlp": (0.48548332, 0.44027429),
    "optim rmsprop": (0.52069726, 0.44729630),
    "optim adam": (0.67806720, 0.67665028),
    "target mixture_of_gaussians": (0.69910872, 0.69752497),
    "target standard_normal": (0.69910872, 0.69759000),
}
"""Name -> the validation losses after 32 images and at the end."""
REMEDY = "raise TRAINING_VERSION if numbers moved, and pin what `python tests/test_pinned.py` prints"


def losses(changes: dict[str, Any]) -> tuple[float, ...]:
    trial = Trial.build(SMALL, changes)
    torch.set_num_threads(1)
    points = [metrics for _, metrics, _ in train(trial, trial.data.load(), None, "cpu") if metrics is not None]
    return tuple(point[VAL_LOSS] for point in points)


def test_every_component_is_pinned() -> None:
    assert PINNED.keys() == TRIALS.keys(), REMEDY
    trials = [Trial.build(SMALL, changes) for changes in TRIALS.values()]
    for section in AROUND:
        parts = [getattr(trial, section) for trial in trials]
        assert {part.name for part in parts if part is not None} == registry.BUILT_IN[section].keys()


@pytest.mark.parametrize("name", PINNED)
def test_a_pinned_trial_has_its_numbers(name: str) -> None:
    # Processors differ in the last digits of float32, which a few updates amplify.
    assert losses(TRIALS[name]) == pytest.approx(PINNED[name], rel=2e-5), REMEDY


if __name__ == "__main__":
    print("PINNED: dict[str, tuple[float, float]] = {")
    for name, changes in TRIALS.items():
        print(f'    "{name}": ({", ".join(f"{loss:.8f}" for loss in losses(changes))}),')
    print("}")
