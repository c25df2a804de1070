"""Neuroglancer's `compressed_segmentation` encoding of label chunks.

Format: https://github.com/google/neuroglancer/blob/master/src/sliceview/compressed_segmentation/README.md
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = (8, 8, 8)


def encode_compressed_segmentation(chunk: NDArray[Any]) -> bytes:
    """Encode a (c, z, y, x) chunk of uint32 or uint64 labels in blocks of 8x8x8.

    Parameters
    ----------
    chunk : (C, Z, Y, X) ndarray of uint32 or uint64
        Labels.

    Returns
    -------
    bytes
        Offsets of the channels, then each channel's block headers, packed voxels and lookup tables.
    """
    words_per_label = chunk.dtype.itemsize // 4
    offset = len(chunk)
    offsets, channels = [], []
    for labels in chunk:
        encoded = _encode_channel(np.ascontiguousarray(labels).astype(np.uint64, copy=False), words_per_label)
        offsets.append(offset)
        channels.append(encoded)
        offset += len(encoded)
    data: bytes = (
        np.concatenate([np.array(offsets, np.uint32), *channels]).astype("<u4", copy=False).tobytes()
    )
    return data


@numba.njit(cache=True, nogil=True)
def _encode_channel(labels: NDArray[np.uint64], words_per_label: int) -> NDArray[np.uint32]:
    size_z, size_y, size_x = labels.shape
    grid_z, grid_y, grid_x = (size_z + 7) // 8, (size_y + 7) // 8, (size_x + 7) // 8
    blocks = grid_z * grid_y * grid_x
    # The worst block: 512 voxels of up to 16 bits and a table of 512 labels.
    out = np.zeros(blocks * (2 + 256 + 512 * words_per_label), np.uint32)
    used = 2 * blocks
    values = np.zeros(512, np.uint64)
    table = np.zeros(512, np.uint64)
    table_length, table_offset = 0, 0
    block = 0
    for block_z in range(grid_z):
        for block_y in range(grid_y):
            for block_x in range(grid_x):
                uniform = _gather(labels, block_z * 8, block_y * 8, block_x * 8, values)
                if uniform:
                    same = table_length == 1 and table[0] == values[0]
                    table[0] = values[0]
                    length = 1
                else:
                    ordered = np.unique(values)
                    length = len(ordered)
                    same = length == table_length and bool(np.all(ordered == table[:length]))
                    table[:length] = ordered
                bits = 0
                while (1 << bits) < length:
                    bits = max(1, 2 * bits)
                values_offset = used
                if bits:
                    for i in range(512):
                        index = np.searchsorted(table[:length], values[i])
                        out[used + i * bits // 32] |= np.uint32(index << (i * bits % 32))
                    used += 512 * bits // 32
                if not same:
                    table_length, table_offset = length, used
                    for i in range(length):
                        out[used] = np.uint32(table[i] & np.uint64(0xFFFFFFFF))
                        if words_per_label == 2:
                            out[used + 1] = np.uint32(table[i] >> np.uint64(32))
                        used += words_per_label
                out[2 * block] = np.uint32(table_offset | (bits << 24))
                out[2 * block + 1] = np.uint32(values_offset)
                block += 1
    return out[:used]


@numba.njit(cache=True, nogil=True)
def _gather(
    labels: NDArray[np.uint64], start_z: int, start_y: int, start_x: int, values: NDArray[np.uint64]
) -> bool:
    """Copy a block of 8x8x8 labels, its edges repeated outwards; say whether all are the same."""
    size_z, size_y, size_x = labels.shape
    first = labels[start_z, start_y, start_x]
    uniform = True
    for z in range(8):
        for y in range(8):
            row = labels[min(start_z + z, size_z - 1), min(start_y + y, size_y - 1)]
            for x in range(8):
                value = row[min(start_x + x, size_x - 1)]
                values[(z * 8 + y) * 8 + x] = value
                uniform = uniform and value == first
    return uniform
