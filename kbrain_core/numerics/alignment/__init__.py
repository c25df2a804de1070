"""Sections to volumes: registration, the chain, warping."""
