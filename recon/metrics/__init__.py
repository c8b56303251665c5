"""Metrics of images, of regions of interest, and between features of networks."""
