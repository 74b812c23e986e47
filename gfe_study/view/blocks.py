"""What a sweep prints at its end, as plain data that the journal can keep: it fits any width when it is printed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from gfe_study.layout import Column, Listing, say, show, wrapped
from gfe_study.view.advice import encode_command, train_command

Block = list[Any]
"""The kind of a block, and its content."""


def sentence(text: str, style: str = "") -> Block:
    """A sentence."""
    return ["sentence", text, style]


def table(listing: Listing) -> Block:
    """A table."""
    return ["table", asdict(listing)]


def hanging(text: str, indent: str = "") -> Block:
    """Text that is wrapped with a hanging indent, even if the output is not a terminal."""
    return ["hanging", text, indent]


def decoder(path: Path) -> Block:
    """The commands that train a decoder again and encode samples with it."""
    return ["decoder", str(path)]


def steps(commands: list[tuple[str, str]]) -> Block:
    """Commands to type next, and what each of them does."""
    return ["steps", [list(step) for step in commands]]


def link(address: str) -> Block:
    """An address on a line of its own."""
    return ["link", address]


def print_blocks(console: Console, blocks: list[Block]) -> None:
    """Print blocks at the width of the console."""
    for kind, content, *more in blocks:
        match kind:
            case "sentence":
                say(console, content, *more)
            case "table":
                columns = [Column(**column) for column in content["columns"]]
                show(console, Listing(content["title"], columns, content["rows"]))
            case "hanging":
                _whole(console, wrapped(content, console.width, more[0], "  "))
            case "decoder":
                say(console, "  train it again, and encode samples with it:")
                path = Path(content)
                _whole(console, [*train_command(path, console.width), *encode_command(path, console.width)])
            case "steps":
                width = max((len(typed) for typed, _ in content), default=0)
                lines = [(f"  {typed:<{width}}  # {what}", f"  {typed}") for typed, what in content]
                _whole(console, [full if len(full) <= console.width else short for full, short in lines])
            case "link":
                _whole(console, [f"  {content}"])


def _whole(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(Text(line), soft_wrap=True)
