"""Whether callbacks can be relied on, judged by those that arrive and those that are missed.

Pure. The poller looks rarely while they can, and at its usual pace while they cannot.
"""

from __future__ import annotations

from collections import OrderedDict

_WEIGHT = 5  # callbacks that have to arrive to make up for one that was missed
_REMEMBERED = 1000  # tasks, so that a repeated callback counts once and a late one is no longer missed


class CallbackTrust:
    """A score from -5 to 5, at first 0: a callback that arrives adds 1, one that is missed takes 5 away.

    Callbacks are relied on unless the score is negative. So the first one that is missed is enough if none
    has arrived before, and one miss in a long record is forgiven. Where more than one in six is missed, as
    among workers that share one callback URL, callbacks are hardly ever relied on: looking rarely costs half
    a minute for each task whose callback is missed, and the usual pace only a few looks.
    """

    __slots__ = ("_lost", "_score")

    def __init__(self) -> None:
        self._score = 0
        self._lost: OrderedDict[str, int | None] = OrderedDict()  # points by missed task; None: it arrived

    @property
    def relied_on(self) -> bool:
        return self._score >= 0

    def arrived(self, task_id: str) -> None:
        """Count a callback. One that comes after a look has found the end gives back what its miss took."""
        lost = self._lost.get(task_id, 0)
        if lost is not None:
            self._add(1 + lost)
            self._remember(task_id, None)

    def missed(self, task_id: str) -> None:
        """Count a task that a look found finished although its callback was expected to say so."""
        if task_id not in self._lost:
            self._remember(task_id, -self._add(-_WEIGHT))

    def strayed(self) -> None:
        """Count a callback of a task that is not ours. It shows that ours may go to another process."""
        self._score = -_WEIGHT

    def _add(self, points: int) -> int:
        """Add to the score, and return by how much it has changed."""
        before = self._score
        self._score = max(-_WEIGHT, min(before + points, _WEIGHT))
        return self._score - before

    def _remember(self, task_id: str, lost: int | None) -> None:
        self._lost[task_id] = lost
        if len(self._lost) > _REMEMBERED:
            self._lost.popitem(last=False)
