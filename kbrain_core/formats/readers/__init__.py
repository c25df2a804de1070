"""Read what microscopes write: one file per instrument family, one interface for all.

`open_image(path)` gives an `ImageReader`; its `images` say what is inside, its `read` gives boxes of
(z, y, x) voxels and decodes nothing else.
"""

from .base import ImageInfo, ImageReader
from .opening import open_image, open_series, read_tile

__all__ = ["ImageInfo", "ImageReader", "open_image", "open_series", "read_tile"]
