"""All that an emulator has without a socket: its accounts, what it saw, and how a test steers its tasks."""

import asyncio
from collections import ChainMap, Counter, defaultdict
from collections.abc import Mapping
from operator import attrgetter
from typing import Literal

import attrs

from .account import Account
from .callbacks import CallRecord
from .seen import Look, Submit
from .sender import CallbackSender
from .tasks import Outcome, Task, as_outcome
from .values import Value, invalid, is_number

YEAR = 31_536_000  # seconds; if more passes, times are none that a record can hold
SPAN = Value(
    f"a number above 0 and at most {YEAR}, a year", lambda value: is_number(value) and 0 < value <= YEAR
)


def _span(seconds: float) -> float:
    """Emulated seconds by which a test moves the time."""
    if not SPAN.accepts(seconds):
        raise invalid("seconds", seconds, SPAN.expected)
    return seconds


def _as_accounts(accounts: Mapping[str, Account]) -> Mapping[str, Account]:
    """Accounts by API key."""
    good = isinstance(accounts, Mapping) and all(accounts)
    if not (good and all(isinstance(account, Account) for account in accounts.values())):
        raise ValueError("invalid accounts: expected an Account by API key")  # without the keys
    return accounts


@attrs.define(kw_only=True, eq=False, repr=False)
class Service(Account):
    """Kie with its accounts. The arguments and attributes are described in `Emulator`."""

    api_key: str | None = attrs.field(default=None)
    accounts: Mapping[str, Account] = attrs.field(factory=dict, converter=_as_accounts)

    submits: list[Submit] = attrs.field(factory=list, init=False)
    requests: Counter[str] = attrs.field(factory=Counter, init=False)
    user_agents: set[str] = attrs.field(factory=set, init=False)
    leaked_keys: list[str] = attrs.field(factory=list, init=False)
    _seen_looks: dict[str, list[Look]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    _ahead: float = attrs.field(default=0.0, init=False)  # emulated seconds that were skipped
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _sender: CallbackSender = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        for account in self.accounts.values():
            account.share_plans_of(self)

    def now(self) -> float:
        """Emulated seconds."""
        raise NotImplementedError

    @property
    def callbacks(self) -> list[CallRecord]:
        """Every attempt to deliver a callback that is over, including those that were not sent."""
        return self._sender.records

    def looks(self, task_id: str | None = None) -> list[Look]:
        """Every status check of this task, or of all tasks, in the order of their arrival."""
        if task_id is not None:
            return list(self._seen_looks.get(task_id, ()))
        return sorted((look for looks in self._seen_looks.values() for look in looks), key=attrgetter("at"))

    def answers(self, kind: Literal["submit", "look"] = "submit") -> Counter[int | None]:
        """How often each code was answered to submits, or to status checks; None counts those without one."""
        if kind == "submit":
            return Counter(submit.code for submit in self.submits)
        return Counter(look.code for looks in self._seen_looks.values() for look in looks)

    def next_change(self) -> asyncio.Event:
        """The event of the next moment at which something may have changed."""
        return self._changed

    def changed(self) -> None:
        """Wake those that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def saw_look(self, look: Look) -> None:
        """Record a status check."""
        self._seen_looks[look.task_id or ""].append(look)

    def reset(self) -> None:
        """Forget all that was seen and planned, restore the credits, and call off callbacks on their way."""
        for account in self.all_accounts():
            Account.reset(account)
        self._sender.reset()
        for memory in (self.submits, self._seen_looks, self.requests, self.user_agents, self.leaked_keys):
            memory.clear()

    def all_accounts(self) -> list[Account]:
        """The emulator's own account, and each other one once."""
        return list(dict.fromkeys([self, *self.accounts.values()]))

    def all_tasks(self) -> Mapping[str, Task]:
        """The tasks of all accounts by their ids."""
        return ChainMap(*(account.tasks for account in self.all_accounts()))

    def account_of(self, key: str) -> Account | None:
        """The account that an API key belongs to; None if the key is wrong, or empty."""
        if not key:
            return None
        own = self.api_key in (None, key) or key in self.caps
        return self.accounts.get(key) or (self if own else None)

    def end(self, task_id: str, outcome: str | Outcome | None = None) -> None:
        """End a running task now, which also sends its callback.

        Args:
            task_id: A key of `tasks`.
            outcome: How it ends, as in `plan`; by default as it would have ended, and a success if never.

        Raises:
            KeyError: There is no such task.
            ValueError: It has ended already, or the outcome is none or never ends.
        """
        task = self._running(task_id)
        unscheduled = task.end is None
        chosen = task.outcome if outcome is None else as_outcome(outcome)
        if outcome is None and not chosen.state.flag:
            chosen = Outcome("success")
        if not chosen.state.flag:
            raise ValueError(f"invalid outcome={chosen.kind!r}: expected one that ends")
        task.outcome, task.duration, task.looks_left = chosen, self.now() - task.created, 0
        if unscheduled:
            self._schedule(task)
        self._sender.time_changed()

    def delay(self, task_id: str, seconds: float) -> None:
        """Let a running task take longer.

        Args:
            task_id: A key of `tasks`.
            seconds: How many emulated seconds later it ends.

        Raises:
            KeyError: There is no such task.
            ValueError: It has ended already, or never ends; or `seconds` is not above 0, or above a year.
        """
        task = self._running(task_id)
        if task.end is None:
            raise ValueError(f"task {task_id} has no time at which it ends, so it cannot end later")
        task.duration += _span(seconds)
        self._sender.time_changed()

    def advance(self, seconds: float) -> None:
        """Let emulated seconds pass at once, for clients that share no clock with the emulator.

        Raises:
            ValueError: `seconds` is not above 0, or above a year.
        """
        self._ahead += _span(seconds)
        self._sender.time_changed()

    def _running(self, task_id: str) -> Task:
        task = self.all_tasks()[task_id]
        if task.state(self.now()).flag:
            raise ValueError(f"task {task_id} has ended already")
        return task

    def _schedule(self, task: Task) -> object:
        """Schedule the callback of a task that ends, if it has one."""
        raise NotImplementedError
