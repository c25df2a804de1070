"""Channels as people name them."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError


def choose_channels(names: Sequence[str], wanted: Sequence[str] | None, path: str) -> tuple[int, ...]:
    """Numbers of the channels that are asked for; all of them when none is.

    Parameters
    ----------
    names : sequence of str
        The channels there are.
    wanted : sequence of str or None
        Names, or numbers from 0; a name goes before a number.
    path : str
        Where the channels are, for the message.

    Raises
    ------
    InputError
        If a channel does not exist, is ambiguous or is asked for twice.
    """
    if not wanted:
        return tuple(range(len(names)))
    found: list[int] = []
    for item in wanted:
        number = int(item) if item.isascii() and item.isdigit() else -1
        if item in names:
            number = list(names).index(item) if list(names).count(item) == 1 else -1
        if not 0 <= number < len(names) or number in found:
            raise InputError(
                f"--channel {item}: {path} has the channels {', '.join(names)} (numbers 0 to {len(names) - 1}); give "
                "each once, by number where names are alike"
            )
        found.append(number)
    return tuple(found)
