"""Step 5, visualization: volumes in a browser."""
