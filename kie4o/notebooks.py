"""What values look like in a notebook: images with the prompt and the task id. Pure; texts are escaped."""

from __future__ import annotations

from collections.abc import Iterable

_ROW = "display:flex;flex-wrap:wrap;gap:4px"
_IMAGE = "max-width:min(100%,320px);max-height:320px"


def figure(sources: Iterable[str], *, task_id: str | None, prompt: str | None = None, error: str = "") -> str:
    """HTML with the images of one task. A source is a URL; an `error` stands in place of images."""
    from html import escape  # with its table of entities, which a program without a notebook never needs

    alt = escape(prompt or task_id or "")
    shots = "".join(f'<img src="{escape(source)}" alt="{alt}" style="{_IMAGE}">' for source in sources)
    lines = [
        *([f'<div style="{_ROW}">{shots}</div>'] if shots else []),
        *([f'<div style="color:#b3261e">{escape(error)}</div>'] if error else []),
        *([f"<div>{escape(prompt)}</div>"] if prompt else []),
        *([f"<code>{escape(task_id)}</code>"] if task_id else []),
    ]
    return "".join(lines)
