"""The label encoding, against an independent decoder."""

from __future__ import annotations

import numpy as np
import pytest
import tensorstore
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kbrain_core.formats.compressed_segmentation import encode_compressed_segmentation


def decode(data: bytes, shape: tuple[int, int, int, int], dtype: str) -> NDArray[np.generic]:
    """tensorstore's decoder: a precomputed volume of one chunk in memory."""
    channels, z, y, x = shape
    scale = {
        "key": "s",
        "size": [x, y, z],
        "resolution": [1, 1, 1],
        "chunk_size": [x, y, z],
        "encoding": "compressed_segmentation",
        "compressed_segmentation_block_size": [8, 8, 8],
    }
    context = tensorstore.Context()
    tensorstore.KvStore.open("memory://", context=context).result()[f"s/0-{x}_0-{y}_0-{z}"] = data
    array = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": "memory://",
            "multiscale_metadata": {"type": "segmentation", "data_type": dtype, "num_channels": channels},
            "scale_metadata": scale,
        },
        create=True,
        context=context,
    ).result()
    return np.asarray(array.read().result()).T


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 19), st.integers(1, 20), st.integers(1, 21)),
    dtype=st.sampled_from(["uint32", "uint64"]),
    # 1 to 512 labels in a block: every width of 0, 1, 2, 4, 8 and 16 bits occurs.
    labels=st.sampled_from([1, 2, 3, 4, 5, 16, 17, 200, 10000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_labels_come_back(shape: tuple[int, int, int, int], dtype: str, labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, np.iinfo(dtype).max, labels, dtype, endpoint=True)
    chunk = ids[rng.integers(0, labels, shape)]
    np.testing.assert_array_equal(decode(encode_compressed_segmentation(chunk), shape, dtype), chunk)


@pytest.mark.parametrize(("dtype", "size"), [("uint32", 4 + 8 * 512 + 4), ("uint64", 4 + 8 * 512 + 8)])
def test_one_label_takes_its_headers_and_one_entry(dtype: str, size: int) -> None:
    """64^3 of one label: a channel offset, 512 block headers, and one lookup table that all blocks share."""
    assert len(encode_compressed_segmentation(np.full((1, 64, 64, 64), 5, dtype))) == size
