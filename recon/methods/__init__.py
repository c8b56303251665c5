"""What reconstructs: classical methods and generators, called ``(y, op) -> image``."""
