"""The stages of a comparison, in this process or on worker processes: tune, run, converge, hold out."""
