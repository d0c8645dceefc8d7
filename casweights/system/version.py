"""The version of casweights."""

__version__ = "0.1.0.dev0"
