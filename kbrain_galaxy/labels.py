"""Finding things by the labels people read, with a hint when one is mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from kbrain_core.errors import InputError

T = TypeVar("T")


def plain(label: str) -> str:
    """A label as it is compared: case, spaces, hyphens and underscores do not count."""
    return " ".join(label.replace("-", " ").replace("_", " ").casefold().split())


def find(label: str, things: Mapping[str, T], what: str, where: str) -> T:
    """The thing with a label.

    Parameters
    ----------
    label : str
        As a person wrote it.
    things : mapping of str to object
        What there is, by label.
    what, where : str
        Words for the message, like `input` and `workflow 'X'`.

    Raises
    ------
    InputError
        When there is none; the message names the nearest ones.
    """
    if label in things:
        return things[label]
    matches = [name for name in things if plain(name) == plain(label)]
    if len(matches) == 1:
        return things[matches[0]]
    raise InputError(f"{where} has no {what} '{label}'. {hint(label, things, what)}")


def hint(label: str, names: Iterable[str], what: str) -> str:
    """`Did you mean ...?` when a name is near, else the names there are."""
    by_plain = {plain(name): name for name in names}
    near = difflib.get_close_matches(plain(label), by_plain, n=2, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(by_plain[name]) for name in near)}?"
    there = ", ".join(repr(name) for name in by_plain.values())
    return f"There is: {there[:400]}" if there else f"There is no {what} at all"
