"""The version, for whoever must not import the root."""

__version__ = "0.1.0"
