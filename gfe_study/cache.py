"""Where what is costly to compute, and the same for every study of this user, is kept."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_DIR_VARIABLE = "GFE_CACHE_DIR"


def cache_folder() -> Path:
    """`GFE_CACHE_DIR`, else `$XDG_CACHE_HOME/gfe-study`, else `~/.cache/gfe-study`; it need not exist yet."""
    if given := os.environ.get(CACHE_DIR_VARIABLE):
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gfe-study"
