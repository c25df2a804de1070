"""Which Galaxy datatype a file has, told by its name, as far as the input it is meant for takes it."""

from __future__ import annotations

from collections.abc import Collection

# Endings, the longest that fits counts, and the datatypes they may mean, the likeliest first.
TYPES_OF_ENDINGS: dict[str, tuple[str, ...]] = {
    ".ome.tif": ("ome.tiff", "tiff"),
    ".ome.tiff": ("ome.tiff", "tiff"),
    ".ome.btf": ("ome.tiff", "tiff"),
    ".tif": ("tiff", "ome.tiff"),
    ".tiff": ("tiff", "ome.tiff"),
    ".btf": ("btf", "tiff"),
    ".tf2": ("tf2", "tiff"),
    ".tf8": ("tf8", "tiff"),
    ".lsm": ("tiff",),
    ".stk": ("tiff",),
    ".jpeg": ("jpg",),
    ".hdf5": ("h5",),
    ".ims": ("h5",),
    ".st": ("mrc",),
    ".map": ("mrc",),
    ".rec": ("mrc",),
    ".nii": ("nii1", "nii2"),
    ".nii.gz": ("nii1.gz", "nii2.gz"),
    ".nhdr": ("nrrd", "txt"),
    ".tsv": ("tsv", "tabular"),
    ".csv": ("csv",),
    ".mdoc": ("txt",),
    ".log": ("txt",),
    ".md": ("markdown", "txt"),
    ".htm": ("html",),
    ".yml": ("yaml",),
    ".ome.zarr": ("ome_zarr", "zarr"),
    ".zarr": ("ome_zarr", "zarr"),
    ".ome.zarr.zip": ("ome_zarr.zip", "zarr.zip", "zip"),
    ".zarr.zip": ("ome_zarr.zip", "zarr.zip", "zip"),
    ".precomputed": ("neuroglancer_precomputed",),
    ".precomputed.zip": ("neuroglancer_precomputed.zip", "zip"),
    ".tgz": ("tgz", "tar.gz", "tar"),
    ".tar.gz": ("tar.gz", "tgz", "tar"),
    ".tbz2": ("tar.bz2", "tar"),
}
ANYTHING = "data"  # the datatype from which all others come


def file_ending(name: str) -> str:
    """The ending of a name that says its type: the longest known one, or what follows the last dot."""
    lower = name.lower()
    known = [ending for ending in TYPES_OF_ENDINGS if lower.endswith(ending) and len(lower) > len(ending)]
    if known:
        return max(known, key=len)
    stem, dot, last = lower.rpartition(".")
    return f".{last}" if dot and stem else ""


def galaxy_type(name: str, taken: Collection[str], known: Collection[str]) -> str | None:
    """The datatype of a file among those that an input takes.

    Parameters
    ----------
    name : str
        Name of the file.
    taken : collection of str
        Datatypes that the input takes; empty when it takes all.
    known : collection of str
        Datatypes that the server has.

    Returns
    -------
    str or None
        The datatype; `auto` lets Galaxy look into a file whose name says nothing; None when the input does not take it.
    """
    ending = file_ending(name)
    meant = [kind for kind in (*TYPES_OF_ENDINGS.get(ending, ()), ending[1:]) if kind in known]
    if not taken:
        return meant[0] if meant else "auto"
    fitting = [kind for kind in meant if kind in taken]
    if fitting:
        return fitting[0]
    return "auto" if not meant else None
