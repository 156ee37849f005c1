"""Prompts that say what happens to them: `A lake [[kie:policy]]`, `[[kie:455]]`. Pure.

They work in every language, since they need nothing but a request. A name is an outcome, a code or a page, or
"dropped".
"""

from __future__ import annotations

import difflib
import re

import attrs

from .effects import CODES
from .faults import Fault
from .tasks import OUTCOMES, Outcome
from .values import invalid
from .variants import PAGES

_TAG = re.compile(r"\[\[kie:([^][]*)\]\]")
MARK = b"[[kie:"  # what a body with such a prompt contains

DROPPED = Fault("submit", cut=0)
ANSWERS = {"dropped": DROPPED}  # what a submit can be answered, by name
_FAULTS = {
    **{str(code): Fault("submit", code=code) for code in CODES},
    **{name: Fault("submit", page=name) for name in PAGES},
    **ANSWERS,
}
NAMES = (*OUTCOMES, *_FAULTS)


def as_fault(answer: Fault | int | str | None) -> Fault | None:
    """What a planned answer is: the `Fault` itself, the one with this code, or the one of this name.

    Raises:
        ValueError: There is no such answer, or the fault has conditions of its own.
    """
    if isinstance(answer, str):
        if answer not in ANSWERS:
            raise invalid("answer", answer, f"a Fault, a code, or one of {', '.join(ANSWERS)}")
        return ANSWERS[answer]
    if isinstance(answer, int):
        return Fault("submit", code=answer)
    if answer is not None and not answer.is_answer:
        expected = "a fault of a submit without times, after and other conditions, which the plan has"
        raise invalid("answer", answer, expected)
    return answer


@attrs.frozen
class Magic:
    """What a prompt asks for."""

    outcome: Outcome | None = None
    fault: Fault | None = None


NONE = Magic()


def magic_of(prompt: str | None) -> Magic:
    """What a prompt asks for.

    Raises:
        ValueError: A name is unknown, or there are two outcomes or two answers.
    """
    tags = _TAG.findall(prompt) if prompt else ()
    if not tags:
        return NONE
    for tag in tags:
        if tag not in NAMES:
            near = difflib.get_close_matches(tag, NAMES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"unknown [[kie:{tag}]]{hint}: expected one of {', '.join(NAMES)}")
    outcomes, faults = [[tag for tag in tags if tag in table] for table in (OUTCOMES, _FAULTS)]
    if len(outcomes) > 1 or len(faults) > 1:
        raise ValueError(
            f"contradictory [[kie:]] names {', '.join(tags)}: expected one outcome and one answer"
        )
    return Magic(
        Outcome(outcomes[0]) if outcomes else None,
        _FAULTS[faults[0]] if faults else None,
    )
