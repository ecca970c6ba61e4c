"""Spectrum: find the layers worth training by the signal-to-noise ratio of their weights (arXiv:2406.06623)."""

__version__ = "0.1.0"
