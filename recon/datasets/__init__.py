"""Examples for training and comparison, from volumes of k-space and from images."""
