"""Step 3, processing: raw tiles become one corrected, stitched and aligned volume."""
