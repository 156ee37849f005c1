"""A folder of images as a batch leaves it: requests in each state, and prompts and names with markup."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kie4o.emulator import pictures
from kie4o.gallery.records import FILE_NAME, Record, line

SCRIPT = '<script>window.hit = 1</script> & a "boat"'
ONERROR = "\" onerror=\"window.hit = 2\" ' onload='window.hit = 3' <img src=x onerror=window.hit=4>"
ODD_NAMES = [
    "-leading.png",
    "a b#c%41?d&e.png",
    "quote\"s' <b>.png",
    "javascript:window.hit=5.png",
    "湖 ü \u202e.png",
]
UNKNOWN = "the request was sent but its outcome is unknown (connection reset); check kie.ai/logs"


def task_id(key: str) -> str:
    return hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()


def record(number: int, prompt: str, size: str, state: str = "done", **facts: Any) -> Record:
    """One with a task, whose images are named after its key."""
    key, images = f"row-{number}", facts.get("n_variants", 1) if state == "done" else 0
    files = [f"{key}_{index}.png" for index in range(images)] if images > 1 else [f"{key}.png"] * images
    task = None if state in ("unknown", "not_submitted") else task_id(key)
    return Record(key, line=number, prompt=prompt, size=size, state=state, task_id=task, files=files, **facts)


RECORDS = [
    record(1, "A lighthouse above a calm sea at first light", "1:1", n_variants=4, credits=24, seconds=31.6),
    record(2, "A fox asleep under autumn leaves, watercolour", "3:2", credits=6, seconds=25),
    record(3, "A bowl of lemons", "2:3", "failed", error="refused: content policy (400)", credits=0),
    record(4, SCRIPT, "3:2", n_variants=2, credits=12, seconds=44, submitted_at=1_795_600_000),
    record(5, "A night train", "1:1", "unknown", error=UNKNOWN, credits=6, submitted_at=1_795_600_500),
    record(6, ONERROR, "2:3", credits=6, seconds=71),
    record(7, "Hot-air balloons over green hills", "3:2", "not_submitted", error="the limit was reached"),
    record(8, "Snowy mountains " + "at dawn, far away, " * 40, "1:1", credits=6, seconds=29),
    record(9, "A city in the rain at dusk", "2:3", n_variants=4, credits=24, seconds=52),
    record(10, "A kingfisher on a reed, macro photograph", "3:2", n_variants=2, credits=12, seconds=38),
]


def write_run(folder: Path, records: Iterable[Record]) -> Path:
    """The images of the records and `results.jsonl`."""
    lines = []
    for record in records:
        for index, name in enumerate(record.files):
            path = folder / name
            if not path.exists():
                path.write_bytes(pictures.draw(record.prompt or name, record.size or "1:1", index))
        lines.append(line(record))
    (folder / FILE_NAME).write_text("".join(lines), "utf-8")
    return folder
