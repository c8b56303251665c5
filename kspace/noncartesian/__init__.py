"""Radial, spiral and other trajectories: forward model, density, delays, and the maps and frames of their scans."""
