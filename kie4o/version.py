"""The version, in a module of its own to avoid import cycles."""

__version__ = "0.1.0"
