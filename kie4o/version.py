"""The version, apart from the root so that any module can import it."""

__version__ = "0.1.0"
