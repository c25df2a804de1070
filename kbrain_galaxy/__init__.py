"""KBrain on Galaxy: an embedded server, and workflows run on any Galaxy.

>>> from kbrain_galaxy import Galaxy
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Galaxy, WorkflowRun

__all__ = ["Galaxy", "WorkflowRun"]


def __getattr__(name: str) -> Any:
    """Load the client when it is asked for: BioBlend takes half a second, which `kbrain-galaxy status` need not wait for."""
    if name in __all__:
        from . import client

        return getattr(client, name)
    raise AttributeError(f"module 'kbrain_galaxy' has no attribute '{name}'")
