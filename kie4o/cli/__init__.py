"""The command line: the program `kie4o`, whose entry point is `main`.

Only what a person at a terminal meets is here: arguments, progress, messages and exit statuses.
"""

from .main import main

__all__ = ["main"]
