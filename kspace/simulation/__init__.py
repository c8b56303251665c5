"""Simulated scans: analytic phantoms, acquisitions, receivers, and k-space from images."""
