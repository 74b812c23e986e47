"""What measures make of a whole dataset before trials begin, such as a trained network.

It is made where the files are, and travels with the splits: a trial that cannot read the files measures the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from gfe_study.config import Trial
from gfe_study.data.split import Splits
from gfe_study.io.cache import cache_folder
from gfe_study.io.checkpoint import CheckpointError, read_checkpoint, write_checkpoint

CONTENT = "prepared"

Content = dict[str, Tensor]
Keep = Callable[[str, Callable[[], Content]], Content]
"""Returns what is kept under the name of a file, or else what the function makes, which is then kept."""


def in_cache(name: str, make: Callable[[], Content]) -> Content:
    """Keep it in the cache folder, where any process finds it. What is damaged there is made again."""
    path = cache_folder() / CONTENT / name
    with contextlib.ExitStack() as locked:
        with contextlib.suppress(OSError):  # nowhere to keep it
            path.parent.mkdir(parents=True, exist_ok=True)
            locked.enter_context(FileLock(path.with_suffix(".lock")))
        with contextlib.suppress(OSError, CheckpointError):
            return read_prepared(path)
        content = make()
        with contextlib.suppress(OSError):
            write_prepared(path, content)
        return content


def read_prepared(path: Path) -> Content:
    """Return the content of a file. Raises `FileNotFoundError`, or `CheckpointError` if it is damaged."""
    content = read_checkpoint(path)
    if CONTENT not in content:
        raise CheckpointError(f"{path}: nothing that measures prepare; allowed: a file of a folder {CONTENT!r}")
    return dict(content[CONTENT])


def write_prepared(path: Path, content: Content) -> None:
    """Write what a measure prepared. Raises `OSError` if that is impossible."""
    write_checkpoint(path, {CONTENT: content})


def prepared(trial: Trial, splits: Splits, folders: list[Path] | None = None, keep: Keep = in_cache) -> Splits:
    """Return a trial's splits with what its measures prepare of the whole dataset; see `Measure.prepare`.

    Args:
        trial: the trial.
        splits: its splits.
        folders: where the dataset's files are searched for, as for `Dataset.load`.
        keep: where it is kept.

    Raises:
        InputError: the whole dataset is not available, or a measure cannot be prepared with it.
    """
    measures = trial.eval.measures or ()
    missing = {each.prepares: each for each in measures if each.prepares not in ("", *splits.prepared)}
    if not missing:
        return splits
    is_whole = trial.data.whole == trial.data and trial.eval.withhold is None
    whole = splits if is_whole else trial.data.whole.load(folders)
    made = {
        name: keep(f"{name}-{whole.sha256[:16]}.pt", partial(measure.prepare, whole))
        for name, measure in missing.items()
    }
    return replace(splits, prepared={**splits.prepared, **made})
