"""Volumes on their way to disk: pyramids, contrast, the writer."""
