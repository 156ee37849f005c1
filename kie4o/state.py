"""What a client does at one moment, as a value: for a health endpoint, for gauges, and for `repr`."""

from __future__ import annotations

import asyncio

import attrs

from .errors import StoreError
from .stores.store import EntryState, Store
from .waiting import close_iterator

_ANSWER = 1.0  # seconds for the store: an orchestrator that probes a service is not patient
_MOST = 1_000  # unfinished entries that are counted, at up to 50 us each


@attrs.frozen(kw_only=True)
class LastFailure:
    """The last failure of one kind of call: "submit", "poll", "free call", "store" or "callback".

    Attributes:
        call: The kind.
        cause: The reason, in brief words.
        ago: Seconds since then.
    """

    call: str = attrs.field(kw_only=False)
    cause: str
    ago: float


@attrs.frozen(kw_only=True)
class ClientState:
    """What a client does at one moment: what `client.state()` returns. `attrs.asdict` makes JSON of it.

    Attributes:
        open: Whether the client was used and is not closed.
        in_flight: How many requests have one of the `max_in_flight` places.
        max_in_flight: How many places there are.
        waiting_for_place: How many requests wait for one of them.
        waiting_for_slot: How many requests wait for a slot of the account's limit.
        submits: How many submits are under way, those that wait for a slot included.
        tasks: How many tasks are waited for, by polls and callbacks.
        window_used: How many slots of the window are in use, by all processes on the store; None if that is
            not known.
        window_limit: How many slots the window has.
        next_slot: Seconds until a slot is free, 0 if one is; those that wait already come first. None if that
            depends on a response, or is not known.
        failures: The last failure of each kind of call, the latest first; each has `call`, `cause` and `ago`.
        callback_ago: Seconds since this process received a callback that it knows; None if it never has.
        callbacks_missing: Whether callbacks that were expected have not arrived, so that tasks are polled at
            the usual pace.
        unfinished: How many entries of the store are paid, or may be, and have not finished; they are counted
            up to 1,000. None if the store did not say.
        unknown: How many of these have an unknown outcome.
        store_failure: Why the store could not be asked just now, or None.
        database_heard: Whether the database tells at once what other processes write; None without a store
            that they share.
    """

    open: bool
    in_flight: int
    max_in_flight: int
    waiting_for_place: int
    waiting_for_slot: int
    submits: int
    tasks: int
    window_used: int | None
    window_limit: int
    next_slot: float | None
    failures: tuple[LastFailure, ...]
    callback_ago: float | None
    callbacks_missing: bool
    unfinished: int | None = None
    unknown: int | None = None
    store_failure: str | None = None
    database_heard: bool | None = None

    @property
    def gist(self) -> str:
        """The most important of it in a few words."""
        used = "?" if self.window_used is None else self.window_used
        waiting = self.waiting_for_place + self.waiting_for_slot
        return (
            f"{'open' if self.open else 'not open'}, {self.in_flight} of {self.max_in_flight} in flight, "
            f"{used} of {self.window_limit} slots in use, {waiting} waiting"
        )


async def with_store(state: ClientState, store: Store, per: float) -> ClientState:
    """The state with what only the store knows; `per` is the length of the window.

    It takes a second at most, and raises nothing if the store fails.
    """
    try:
        async with asyncio.timeout(_ANSWER):
            if store.shared is not None:
                used = await store.shared.slots_used(per)
                free = used < state.window_limit and state.next_slot is None
                state = attrs.evolve(
                    state,
                    window_used=used,
                    next_slot=0.0 if free else state.next_slot,
                    database_heard=store.shared.heard,
                )
            unfinished, unknown = await _count(store)
    except TimeoutError:
        return attrs.evolve(state, store_failure=f"no answer within {_ANSWER:g} s")
    except StoreError as error:
        return attrs.evolve(state, store_failure=str(error) or type(error).__name__)
    return attrs.evolve(state, unfinished=unfinished, unknown=unknown)


async def _count(store: Store) -> tuple[int, int]:
    """How many entries have not finished, and how many of these have an unknown outcome.

    `spent()` would read the whole store: for a file with a million entries, seconds.
    """
    unfinished = unknown = 0
    entries = store.unfinished()
    try:
        async for entry in entries:
            unfinished += 1
            if entry.state is EntryState.UNKNOWN:
                unknown += 1
            if unfinished == _MOST:
                break
    finally:
        await close_iterator(entries)
    return unfinished, unknown
