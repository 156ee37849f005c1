"""`kie4o --install-completion`: the completion of commands and options for a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..errors import reason_of
from .main import application
from .terminal import UsageError

Shell = Annotated[
    Literal["bash", "zsh", "fish", "powershell"] | None,
    Parameter(help="By default the shell that runs this."),
]
Output = Annotated[Path | None, Parameter(help="File to write; by default the place where the shell looks.")]


async def install_completion(*, shell: Shell = None, output: Output = None) -> None:
    """Install the completion of commands and options for this shell."""
    try:
        path = application().install_completion(shell=shell, output=output, add_to_startup=output is None)
    except RuntimeError as error:  # no shell was found
        raise UsageError(f"{error}: expected --shell bash, zsh, fish or powershell") from None
    except OSError as error:
        raise UsageError(
            f"cannot write to --output '{output or error.filename}': {reason_of(error)}"
        ) from None
    print(f"{path}; start a new shell to use it")
