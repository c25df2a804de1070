"""Tiles to mosaics: pairs, the common solution, fusion."""
