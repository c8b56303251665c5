"""The uses: run, train, compare, convert. Everything a person can start from the command line."""

__version__ = "0.1.0"
