"""Step 4, analysis: what the volume holds, measured."""
