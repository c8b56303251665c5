"""Training of a few parameters of a generator on the samples of one scan, and its state on the disk."""
