"""Hyperparameter and ablation studies of gradient flow encoding: an autoencoder without an encoder.

The names in `__all__` are the public API; everything else may change without notice. They are imported when they are
first used, so that `import gfe_study` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gfe_study.api import results, run, train
    from gfe_study.config import InputError, Study, Trial
    from gfe_study.estimator import GradientFlowEncoder

__all__ = ["GradientFlowEncoder", "InputError", "Study", "Trial", "__version__", "results", "run", "train"]

_HOMES = {
    "GradientFlowEncoder": "gfe_study.estimator",
    "InputError": "gfe_study.config",
    "Study": "gfe_study.config",
    "Trial": "gfe_study.config",
    "results": "gfe_study.api",
    "run": "gfe_study.api",
    "train": "gfe_study.api",
}
"""Where each name comes from."""

__version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from gfe_study.provenance import own_version

        return own_version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
