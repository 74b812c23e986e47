"""Progress of a study that runs in Python: in terminals and notebooks; elsewhere only problems are shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from gfe_study.data.split import Splits
from gfe_study.layout import say
from gfe_study.study.engine import Observer, Snapshot
from gfe_study.study.plan import Plan
from gfe_study.view.console import StudyView
from gfe_study.view.progress import interactive
from gfe_study.view.terminal import console


class Silent:
    """An observer of a study that shows problems and nothing else."""

    def __init__(self, shown: Console) -> None:
        self._console = shown

    def planned(self, plan: Plan, splits: Splits) -> None:
        pass

    def starting_ray(self) -> None:
        pass

    def ray_started(self, seconds: float, slots: int) -> None:
        pass

    def progress(self, snapshot: Snapshot) -> None:
        pass

    def problem(self, text: str) -> None:
        say(self._console, f"warning: {text}", "yellow")


@contextmanager
def study_observer(wanted: bool | None) -> Iterator[Observer]:
    """Show the progress of a study if that is wanted; None: if a person watches."""
    shown = console()
    if wanted or (wanted is None and interactive(shown)):
        with StudyView(shown) as view:
            yield view
    else:
        yield Silent(shown)
