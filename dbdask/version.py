"""The version of dbdask."""

__version__ = "0.1.0"
