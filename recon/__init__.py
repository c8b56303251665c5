"""The uses: run, train, compare, convert. Everything a person can start from the command line."""

from kspace import __version__

__all__ = ["__version__"]
