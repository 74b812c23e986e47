"""The pages of the documentation that the program writes itself: a hook of mkdocs, named in mkdocs.yml."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from mkdocs.structure.files import File

import gfe_study
from gfe_study.config.keys import Key, keys


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those of the folder."""
    for name, text in {"keys.md": keys_page(), "api.md": api_page()}.items():
        files.append(File.generated(config, name, content=text))
    return files


def keys_page() -> str:
    """Every key of a configuration and of a study file."""
    parts = ["# Configuration keys", "`gfe-study keys PREFIX` lists the same for the components that are installed."]
    seen: set[str] = set()
    for section, found in groupby(keys(), _section):  # those of a trial, then those of a study
        parts += [f"## {section} of the study" if section in seen else f"## {section}", *map(_entry, found)]
        seen.add(section)
    return "\n\n".join(parts) + "\n"


def _section(key: Key) -> str:
    return key.path.partition(".")[0]


def _entry(key: Key) -> str:
    names = f" ({', '.join(key.names)})" if key.names else ""
    default = f"default `{key.default}`" if key.default else "must be given"
    return f"**`{key.path}`**{names}: {key.allowed.replace('<', '&lt;')}; {default}.\n{key.text}"


def api_page() -> str:
    """What the package exports; mkdocstrings fills it in."""
    exported = (f"::: gfe_study.{name}" for name in gfe_study.__all__ if not name.startswith("_"))
    return "\n\n".join(["# Public API", *exported]) + "\n"
