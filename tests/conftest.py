"""Fixtures that every suite shares."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
sys.path[:0] = [
    str(PROJECT / "tests"),
    str(PROJECT / "test-data"),
]  # sample_stage; make_phantoms: planted truth


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real microscope data beside the checkout; tests that need it are skipped, visibly, where it is not there."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real microscope data beside this checkout")
    return folder
