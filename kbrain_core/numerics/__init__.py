"""The image processing itself: arrays in, arrays out."""
