"""The command line: the program `kie4o`, whose entry point is `main`.

Only the terminal interface is here: arguments, progress, messages and exit statuses.
"""

from .main import main

__all__ = ["main"]
