"""Evidence that goes with every generated image: what the data say about it, and the classical image behind it."""
