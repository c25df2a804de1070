"""Fixtures that every suite shares."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

PROJECT = Path(__file__).parent.parent
sys.path[:0] = [
    str(PROJECT / "tests"),
    str(PROJECT / "test-data"),
]  # sample_stage; make_phantoms: planted truth

# Machines are shared and noisy, so no example has a time limit; CI runs the same examples every time.
settings.register_profile("kbrain", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("kbrain")


@pytest.fixture(scope="session")
def dask_scheduler() -> Iterator[str]:
    """Address of a cluster of two worker processes, one for the whole session: it takes seconds to start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cluster's own, not ours
        from distributed import LocalCluster

        cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    yield cluster.scheduler_address
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real microscope data beside the checkout; tests that need it are skipped, visibly, where it is not there."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real microscope data beside this checkout")
    return folder
