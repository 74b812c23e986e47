"""How to run a study: resources, storage and reuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gfe_study.config import InputError
from gfe_study.config.options import Resources

MAX_PER_TRIAL = 1024


@dataclass(frozen=True)
class Options:
    """How to run a study; no option changes a trial's numbers."""

    storage: str = "results"
    cpus_per_trial: float | None = None
    """None: as in the study's `resources`."""
    gpus_per_trial: float | None = None
    address: str | None = None
    quota_gb: float | None = None
    """Largest size of the study's folder, in GB."""
    reuse: bool = True
    """Whether to reuse trials that other studies have finished."""
    again: bool = False
    """Run the finished trials of this study again, unless an earlier start is already doing so."""
    data_folders: tuple[str, ...] = ()
    """Folders where the last run looked for the images; they are searched after the current ones."""

    @property
    def cpus(self) -> float:
        return self.cpus_per_trial or 1.0

    @property
    def gpus(self) -> float:
        return self.gpus_per_trial or 0.0

    def slots_in(self, resources: Mapping[str, float]) -> int:
        """Return how many trials fit into resources (`CPU`, `GPU`) at once; 0 if not even one fits."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        # The small term absorbs rounding: 0.3 / 0.1 must give 3 trials.
        return min(int(resources.get(kind, 0.0) / amount + 1e-9) for kind, amount in wanted.items() if amount > 0)

    def granted(self, resources: Resources) -> Options:
        """Fill in a study's resources where none are given. Raises `InputError` if an amount is out of range."""
        for kind, amount in (("cpus", self.cpus_per_trial), ("gpus", self.gpus_per_trial)):
            least = 0.0 if kind == "gpus" else 0.01
            if amount is not None and not least <= amount <= MAX_PER_TRIAL:
                raise InputError(f"--{kind}-per-trial: given {amount:g}; allowed: from {least:g} to {MAX_PER_TRIAL}")
        if (self.gpus_per_trial or resources.gpu) > 1 and (self.gpus_per_trial or resources.gpu) % 1:
            raise InputError("gpus per trial: given a fraction above 1; allowed: at most 1, or a whole number")
        cpus = self.cpus_per_trial or resources.cpu
        gpus = resources.gpu if self.gpus_per_trial is None else self.gpus_per_trial
        return replace(self, cpus_per_trial=cpus, gpus_per_trial=gpus)
