"""KBrain: from what brain microscopes write to 3D data that people can see, measure and share."""

__version__ = "0.1.0"
