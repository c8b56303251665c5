"""Performance, as ratios to a named peer measured in the same run. ``python -m benchmarks [NAME ...]`` runs them."""
