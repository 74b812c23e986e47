"""One tiny trial of every component, pinned: trials of earlier versions are reused while their numbers stay.

`python tests/test_pinned.py` prints the table of pinned numbers as they are now.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gfe_study import registry
from gfe_study.config import Trial
from gfe_study.data.split import Split
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
    "model": {"preset": "paper"},
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
    "noise": {"method": {"name": "gfe", "dropout": 0.2, "input_noise": 0.2}},
    "pca with gaps": {"method": "pca", "data": {"name": "digits", "hide": {"fraction": 0.4}}},
}
"""Name -> configuration. Every built-in component of the sections of `AROUND` is added."""
for section, around in AROUND.items():
    for name in registry.BUILT_IN[section]:
        kind = registry.component(section, name)
        # So few evaluations that the way to the minimum is pinned too.
        few = {"max_nfe": 8} if issubclass(kind, DescentSolver) else {}
        TRIALS[f"{section} {name}"] = {**around, section: {"name": name, **kind.example, **few}}
# Where a gradient is nearly 0, rounding decides the sign of RMSprop's first steps; in this trial it did.
TRIALS["method gfe_gen"] = {"preset": "paper", **TRIALS["method gfe_gen"]}

PINNED: dict[str, tuple[float, float]] = {
    "preset best": (0.50798999, 0.44286180),
    "preset paper": (0.66169218, 0.65935959),
    "preset gen": (0.68541053, 0.68422731),
    "learned sigma": (1.14813309, 1.04060803),
    "learned scale": (1.16944466, 1.05460496),
    "prior": (0.55651574, 0.49830672),
    "noise": (0.50615701, 0.44509069),
    "pca with gaps": (1.09280887, 1.08934223),
    "method aae": (0.55082494, 0.47328799),
    "method ae": (0.55050050, 0.47396931),
    "method dineof": (1.09842458, 1.08903622),
    "method gen": (0.55050050, 0.47730645),
    "method gfe": (0.50798999, 0.44286180),
    "method gfe_gen": (0.66169218, 0.66272589),
    "method mean": (0.43680553, 0.43647421),
    "method miwae": (0.58432993, 0.51090262),
    "method pca": (1.09842458, 1.08903622),
    "method vae": (0.60967809, 0.52183707),
    "likelihood bernoulli": (0.50798999, 0.44286180),
    "likelihood gaussian": (1.21705088, 1.15864158),
    "likelihood poisson": (5.41121034, 3.68125727),
    "likelihood student_t": (1.29736491, 1.24200674),
    "solver amd": (0.67864023, 0.67748738),
    "solver amd_nesterov": (0.67814862, 0.67693339),
    "solver amd_spectral": (0.66159222, 0.65924970),
    "solver dopri5": (0.68178550, 0.68083770),
    "solver euler": (0.67869273, 0.67754616),
    "solver gauss_newton": (0.66209992, 0.65974902),
    "solver lbfgs": (0.66158433, 0.65924714),
    "solver rk4": (0.67903058, 0.67791852),
    "flow gradient": (0.66180007, 0.65946234),
    "flow nesterov": (0.66861173, 0.66471542),
    "gradient adjoint": (0.66178263, 0.65944770),
    "gradient approx": (0.66180007, 0.65946234),
    "gradient unrolled": (0.66178263, 0.65944770),
    "start encoder": (0.51880381, 0.46862945),
    "start mean": (0.51434886, 0.46440006),
    "start nearest": (0.51304823, 0.46314559),
    "start previous": (0.54187379, 0.52315261),
    "start zero": (0.54062918, 0.51461324),
    "model conv": (0.63966666, 0.63663786),
    "model mlp": (0.68933799, 0.68609432),
    "optim rmsprop": (0.50798999, 0.44286180),
    "optim adam": (0.66402920, 0.66271702),
    "target mixture_of_gaussians": (0.68541053, 0.68422212),
    "target standard_normal": (0.68541053, 0.68422731),
}
"""Name -> the validation losses after 32 images and at the end."""
REMEDY = "raise TRAINING_VERSION if numbers moved, and pin what `python tests/test_pinned.py` prints"


def losses(changes: dict[str, Any]) -> tuple[float, ...]:
    """Computed in float64: processors differ in the last digits, which some updates amplify ten-thousandfold."""
    trial = Trial.build(SMALL, changes)
    torch.set_num_threads(1)
    batch = Split.batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Split, "batch", lambda *given: batch(*given).double())
        torch.set_default_dtype(torch.float64)
        try:
            points = [metrics for _, metrics, _ in train(trial, trial.data.load(), None, "cpu") if metrics is not None]
        finally:
            torch.set_default_dtype(torch.float32)
    return tuple(point[VAL_LOSS] for point in points)


def test_every_component_is_pinned() -> None:
    assert PINNED.keys() == TRIALS.keys(), REMEDY
    trials = [Trial.build(SMALL, changes) for changes in TRIALS.values()]
    for section in AROUND:
        parts = [getattr(trial, section) for trial in trials]
        assert {part.name for part in parts if part is not None} == registry.BUILT_IN[section].keys()


@pytest.mark.parametrize("name", PINNED)
def test_a_pinned_trial_has_its_numbers(name: str) -> None:
    assert losses(TRIALS[name]) == pytest.approx(PINNED[name], rel=5e-6), REMEDY


if __name__ == "__main__":
    print("PINNED: dict[str, tuple[float, float]] = {")
    for name, changes in TRIALS.items():
        print(f'    "{name}": ({", ".join(f"{loss:.8f}" for loss in losses(changes))}),')
    print("}")
