"""Find the reader for a file, folder or URL, and read a tile that a table names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...store import is_remote, local_path
from ..tables import Tile
from .base import ImageReader

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_CZI = b"ZISRAWFILE"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_GZIP = b"\x1f\x8b"
_KNOWN = (
    "TIFF, PNG, JPEG, CZI, MRC, HDF5 (also Imaris, BigDataViewer), NIfTI, NRRD, N5, Zarr, precomputed, "
    "a folder or a list (.txt) of planes"
)


def open_image(path: str | Path, dataset: str | None = None, *, whole_set: bool = True) -> ImageReader:
    """Open an image of any supported kind; its first bytes decide, not its name.

    Parameters
    ----------
    path : str or Path
        A file, a folder (chunked volume, or the planes of a z series), a text file that lists planes, or the
        URL of a chunked volume.
    dataset : str, optional
        The data set inside a container (HDF5, N5, Zarr).
    whole_set : bool
        True: an OME-TIFF that is one of a set of files gives the image of the whole set. False: only what
        this file itself holds, as for tiles.

    Raises
    ------
    InputError
        If there is no such file, or it is of no known kind, truncated or damaged.
    """
    name = str(path)
    if is_remote(name):
        from .volumes import open_chunked

        return open_chunked(name, dataset)
    name = str(local_path(name))
    if Path(name).is_dir():
        return _open_folder(name, dataset)
    head = _head(name)
    if head[:4] in _TIFF:
        from .tiff import TiffReader

        return TiffReader(name, dataset, whole_set)
    if head.startswith(_PICTURES):
        from .pictures import PictureReader

        return PictureReader(name, dataset)
    if name.lower().endswith(".txt"):
        return open_series(_listed_files(Path(name)), name)
    return _open_other(name, dataset, head)


def open_series(files: Sequence[str], name: str | None = None) -> ImageReader:
    """Open many files as one stack along z, in the order given.

    Parameters
    ----------
    files : sequence of str
        One plane (or a few) in each.
    name : str, optional
        What the series is called in messages. Default: the folder of the first file.

    Raises
    ------
    InputError
        If there is none, or one is damaged; when read, also if one is of another size or type.
    """
    from .file_series import FileSeriesReader

    called = name or str(Path(files[0]).parent) if files else "The series"
    return FileSeriesReader(called, files, partial(open_image, whole_set=False))


def read_tile(tile: Tile, folder: str | Path) -> np.ndarray:
    """Read the pixels of a tile.

    Parameters
    ----------
    tile : Tile
        A row of the tiles table.
    folder : str or Path
        The folder that tile names are relative to.

    Returns
    -------
    (depth, height, width) ndarray
    """
    with open_image(Path(folder) / tile.name, whole_set=False) as reader:
        if tile.series >= len(reader.images):
            raise InputError(
                f"{tile.name} holds {len(reader.images)} image(s); there is no series {tile.series}."
            )
        _, channels, planes, _, _ = reader.images[tile.series].shape
        time_channel, z = divmod(tile.page, planes)
        t, c = divmod(time_channel, channels)
        depth = tile.depth_px or 1
        return reader.read(tile.series, t, c, slice(z, z + depth), slice(None), slice(None))


def _open_folder(name: str, dataset: str | None) -> ImageReader:
    from .file_series import series_files
    from .volumes import is_chunked, open_chunked

    files = series_files(Path(name))
    if files and not is_chunked(name):
        if dataset is not None:
            raise InputError(f"{name} is a folder of planes and has no data sets.")
        first = open_image(files[0])
        if first.files:  # it describes a set of files itself, which need not be in the order of z
            return first
        first.close()
        return open_series(files, name)
    return open_chunked(name, dataset)


def _open_other(name: str, dataset: str | None, head: bytes) -> ImageReader:
    if head.startswith(_CZI):
        from .czi import CziReader

        return CziReader(name, dataset)
    if head.startswith(_HDF5):
        return _open_hdf5(name, dataset)
    if b"<SpimData" in head:
        from .bigdataviewer import BigDataViewerReader

        return BigDataViewerReader(name, dataset)
    if head.startswith(b"NRRD"):
        from .nrrd_files import NrrdReader

        return NrrdReader(name, dataset)
    if head[208:211] == b"MAP":
        from .mrc import MrcReader

        return MrcReader(name, dataset)
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2") or _packed(name, head, ".nii.gz"):
        from .nifti import NiftiReader

        return NiftiReader(name, dataset)
    if head.startswith(_GZIP):
        raise InputError(f"{name} is compressed with gzip: unpack it first (gunzip).")
    raise InputError(f"{name} is of no known image format. Known are {_KNOWN}.")


def _packed(name: str, head: bytes, ending: str) -> bool:
    return head.startswith(_GZIP) and name.lower().endswith(ending)


def _open_hdf5(name: str, dataset: str | None) -> ImageReader:
    """HDF5 is a container: what lies in it tells Imaris and BigDataViewer from others."""
    from .bigdataviewer import BigDataViewerReader
    from .hdf5 import Hdf5Reader, open_hdf5
    from .imaris import ImarisReader

    if dataset is not None:
        return Hdf5Reader(name, dataset)
    with open_hdf5(name) as file:
        imaris = "DataSet/ResolutionLevel 0" in file and "DataSetInfo" in file
        big_data_viewer = "t00000/s00/0/cells" in file
    if imaris:
        return ImarisReader(name)
    return BigDataViewerReader(name) if big_data_viewer else Hdf5Reader(name)


def _listed_files(path: Path) -> list[str]:
    """The files that a list names, one on each line, relative to the list's folder."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no list of files: it is not text.") from error
    files = [str(path.parent / line.strip()) for line in lines if line.strip()]
    missing = [file for file in files if not Path(file).is_file()]
    if missing or not files:
        raise InputError(f"{path} lists {missing[0] if missing else 'no files'}, which is not there.")
    return files


def _head(name: str) -> bytes:
    try:
        with Path(name).open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"{name} cannot be opened ({error.strerror}).") from error
    if not head:
        raise InputError(f"{name} is empty. Copy it again from the instrument.")
    return head
