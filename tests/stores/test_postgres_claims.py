"""Who may submit a key: claims, holders that die, leases that are lost, and what is saved late.

Each store object here is a process to the database: it has a lease of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import attrs
import postgres
import pytest
from canary import CANARY_KEY
from clocks import run_virtual
from entries import ended, entry_of, plain, submitted, unfinished_keys
from postgres import opened

from kie4o import StoreError, StoreLockedError
from kie4o.events import StoreWarned
from kie4o.events.reporter import Reporter
from kie4o.settings import Secret
from kie4o.stores.guard import Guard
from kie4o.stores.ledger import Ledger
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.postgres.news import News
from kie4o.stores.store import DuplicateTaskError, Entry, EntryState, hash_of_ref

ANY = tuple(EntryState)
OpenStore = Callable[[], Awaitable[PostgresStore]]


@pytest.fixture
async def open_store() -> AsyncIterator[OpenStore]:
    """Opens one more process on the same tables."""
    url = postgres.shared_url()
    async with contextlib.AsyncExitStack() as stack:

        async def open_one() -> PostgresStore:
            store = PostgresStore(url, Secret(CANARY_KEY))
            await store.open()
            stack.push_async_callback(store.aclose)
            return store

        yield open_one


def intent(key: str = "k", **more: Any) -> Entry:
    return entry_of(key, state=EntryState.INTENT, sent_at=1.0, submitted_at=1.0, **more)


async def sql(store: PostgresStore, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    return await store._database.rows(statement, *parameters)


async def expire(store: PostgresStore) -> None:
    """As if this process had been silent for longer than its lease."""
    gone = "UPDATE kie4o.process SET expires_at = clock_timestamp() - interval '1 s' WHERE id = %s"
    await sql(store, gone, store._process.id)


async def stored_state(store: PostgresStore, key: str = "k") -> tuple[EntryState, str] | None:
    entry = await store.find(key=key)
    return None if entry is None else (entry.state, entry.ref)


# -- claims ------------------------------------------------------------------------------------------


async def test_a_claimed_key_is_in_one_process_s_hands(open_store: OpenStore) -> None:
    """The others get None with `wait=False`, in every state before it is sent."""
    holder, other = await open_store(), await open_store()
    await holder.claim(entry_of())
    assert await other.claim(entry_of(ref="another"), wait=False) is None
    await other.save(entry_of(ref="another"))  # as if it had been refused: it is not there to be undone
    assert await stored_state(holder) == (EntryState.PLANNED, "ref of k")
    await holder.begin(intent())
    assert await other.claim(entry_of(ref="another"), takes=ANY, wait=False) is None
    assert await holder.claim(entry_of()) == intent()  # which another caller asks for
    await holder.save(entry_of())  # it was refused, and is sent again later
    assert await other.claim(entry_of(ref="another"), wait=False) is None
    await holder.begin(intent())
    await holder.save(entry_of())
    assert await holder.claim(entry_of()) == entry_of()


async def test_a_claim_after_the_lease_was_lost_has_a_new_one(open_store: OpenStore) -> None:
    silent, other = await open_store(), await open_store()
    await expire(silent)
    assert await silent.claim(entry_of()) == entry_of()
    assert await other.claim(entry_of(ref="another"), wait=False) is None


async def test_a_store_is_opened_once(open_store: OpenStore) -> None:
    """The first goes on. What could not be opened may be opened later."""
    store = await open_store()
    with pytest.raises(StoreLockedError, match="already open"):
        await store.open()
    await store.claim(entry_of())
    away = PostgresStore("postgresql://kie4o@127.0.0.1:1/nowhere", Secret(CANARY_KEY))
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be used"):
            await away.open()


async def test_a_key_that_is_let_go_of_before_a_claim_waits_is_claimed(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would tell of it any more. It is asked for again at once."""
    holder, other = await open_store(), await open_store()
    want = other._entries.want

    async def too_late(me: int, key: str) -> bool:
        await holder.release(key)
        return await want(me, key)

    monkeypatch.setattr(other._entries, "want", too_late)
    await holder.claim(entry_of())
    assert await other.claim(entry_of(ref="another")) == entry_of(ref="another")


async def test_of_many_processes_one_holds_a_key(open_store: OpenStore) -> None:
    """The others wait for what it saves. Nothing is held by those who only read it."""
    stores = [await open_store() for _ in range(6)]
    claims = [
        asyncio.create_task(store.claim(entry_of(ref=f"{number}"))) for number, store in enumerate(stores)
    ]
    await asyncio.wait(claims, return_when=asyncio.FIRST_COMPLETED)
    [winner] = [number for number, claim in enumerate(claims) if claim.done()]
    await stores[winner].begin(intent(ref=f"{winner}"))
    done = submitted("k", ref=f"{winner}")
    await stores[winner].save(done)
    results = await asyncio.gather(*claims)
    assert [result for number, result in enumerate(results) if number != winner] == [done] * 5
    assert await sql(stores[0], "SELECT FROM kie4o.entry WHERE holder IS NOT NULL") == []


async def test_a_released_key_is_free(open_store: OpenStore) -> None:
    """Its entry is deleted, so that the next process submits its own."""
    holder, other = await open_store(), await open_store()
    await holder.claim(entry_of())
    waiting = asyncio.create_task(other.claim(entry_of(ref="another", prompt="y")))
    await asyncio.sleep(0.1)
    await holder.release("k")
    await holder.release("k")
    assert (await waiting) == entry_of(ref="another", prompt="y")
    await holder.release("k")  # the key of another process
    await other.begin(intent(ref="another", prompt="y"))


async def test_paying_anew_is_decided_by_the_claim(open_store: OpenStore) -> None:
    """Of those that would submit again after a failure or an unknown outcome one may."""
    stores = [await open_store() for _ in range(5)]
    for number, state in enumerate((EntryState.UNKNOWN, EntryState.FAILED)):
        key = f"key {number}"
        await stores[0].save(entry_of(key, state=state))
        takes = (EntryState.PLANNED, state)
        claims = [store.claim(entry_of(key, ref="another"), takes=takes, wait=False) for store in stores]
        results = await asyncio.gather(*claims)
        assert [result.state for result in results if result is not None] == [state]
        other = await stores[0].find(key=key)
        assert other is not None
        assert other.state is state


async def test_a_key_of_another_request_is_not_held(open_store: OpenStore) -> None:
    """It is returned, for the error. What was never sent may be replaced."""
    first, second = await open_store(), await open_store()
    await first.save(entry_of(state=EntryState.UNKNOWN))
    stored = await second.claim(entry_of(prompt="y", ref="another"), takes=ANY)
    assert stored is not None
    assert stored.ref == "ref of k"
    with pytest.raises(StoreError, match="not in the hands of this process"):
        await second.begin(intent(prompt="y", ref="another"))
    await first.save(entry_of("planned"))
    await second.claim(entry_of("planned", prompt="y", ref="another"))
    await second.begin(intent("planned", prompt="y", ref="another"))


async def test_a_cancelled_claim_is_released(open_store: OpenStore) -> None:
    """Whether it was executed or not: `release` follows it, and the key is free."""
    holder, other = await open_store(), await open_store()
    for turns in range(0, 40, 3):
        key = f"key {turns}"
        claim = asyncio.create_task(holder.claim(entry_of(key)))
        for _ in range(turns):
            await asyncio.sleep(0)
        claim.cancel()
        await asyncio.wait([claim])
        await holder.release(key)
        assert await other.claim(entry_of(key, ref="another"), wait=False) is not None


async def test_accounts_do_not_see_each_other() -> None:
    """Two may use the same text as a key."""
    url = postgres.shared_url()
    one, another = PostgresStore(url, Secret("one")), PostgresStore(url, Secret("another"))
    await one.open()
    await another.open()
    await one.claim(entry_of())
    await one.keep_callback("ref of k", "task")
    assert await another.find(key="k") is await another.find(ref="ref of k") is None
    assert await another.callbacks_of("ref of k") == ()
    assert await another.claim(entry_of(prompt="y"), wait=False) == entry_of(prompt="y")
    await another.save(submitted("k"))
    assert await one.find(task_id="task-of-k") is None
    assert await unfinished_keys(one) == []
    assert (await one.spent()).unpriced == 0
    await another.forget("k")
    assert await one.find(key="k") == entry_of()
    await one.aclose()
    await another.aclose()


# -- begin -------------------------------------------------------------------------------------------


async def test_only_the_holder_may_begin(open_store: OpenStore) -> None:
    """Not before a claim, not after a release, and not with a key that another holds."""
    holder, other = await open_store(), await open_store()
    refused = pytest.raises(StoreError, match="not in the hands of this process")
    with refused:
        await holder.begin(intent())
    await holder.claim(entry_of())
    await other.claim(entry_of(ref="another"), wait=False)
    with refused:
        await other.begin(intent(ref="another"))
    await holder.release("k")
    with refused:
        await holder.begin(intent())
    assert await holder.find(key="k") is None


async def test_begin_says_yes_again_to_the_same_ref(open_store: OpenStore) -> None:
    """The reply may have been lost. With what it supersedes, which stays as it was the first time."""
    store = await open_store()
    failed = attrs.evolve(ended(submitted("k"), EntryState.FAILED), ref="first")
    await store.save(failed)
    await store.claim(entry_of(ref="second"), takes=(EntryState.FAILED,))
    for _ in range(3):
        await store.begin(intent(ref="second", earlier=("first",)), failed.superseded())
        assert await stored_state(store) == (EntryState.INTENT, "second")
        assert plain(await store.find(ref="first")) == plain(failed.superseded())
    keyless = intent("ref", keyed=False, ref="ref")
    await store.begin(keyless)
    await store.begin(keyless)
    assert await store.find(key="ref") == keyless


async def test_what_was_found_out_meanwhile_stops_a_resubmit(open_store: OpenStore) -> None:
    """Another process saves the task that a callback names while this one waits for a slot."""
    store, other = await open_store(), await open_store()
    unknown = entry_of(state=EntryState.UNKNOWN)
    await store.save(unknown)
    await store.claim(entry_of(ref="second"), takes=(EntryState.PLANNED, EntryState.UNKNOWN))
    await other.save(unknown.become(EntryState.SUBMITTED, task_id="task"))
    with pytest.raises(StoreError, match="not in the hands of this process"):
        await store.begin(intent(ref="second"), unknown.superseded())
    assert await stored_state(store) == (EntryState.SUBMITTED, "ref of k")


# -- holders that die, and leases that are lost ------------------------------------------------------


async def test_what_a_dead_process_held_is_taken_over(open_store: OpenStore) -> None:
    """A request that was not sent is sent by another. An intent becomes unknown, since it may have been sent.

    Control: while the lease lasts, both stay in its hands.
    """
    dead, other = await open_store(), await open_store()
    for key in ("planned", "intent"):
        await dead.claim(entry_of(key))
    await dead.begin(intent("intent"))
    for key in ("planned", "intent"):
        assert await other.claim(entry_of(key, ref="another"), wait=False) is None
    assert await stored_state(other, "intent") == (EntryState.INTENT, "ref of intent")
    assert await unfinished_keys(other) == []
    await expire(dead)
    assert await stored_state(other, "intent") == (EntryState.UNKNOWN, "ref of intent")
    assert await unfinished_keys(other) == ["intent"]
    assert await other.claim(entry_of("planned", ref="another"), wait=False) == entry_of("planned")
    await other.begin(intent("planned", ref="another"))
    unknown = await other.claim(entry_of("intent", ref="another"), wait=False)
    assert unknown is not None
    assert (unknown.state, unknown.ref) == (EntryState.UNKNOWN, "ref of intent")


async def test_the_intent_of_a_dead_process_is_the_same_to_all(open_store: OpenStore) -> None:
    """Found and then claimed it is equal, so that a person can settle it."""
    dead, other = await open_store(), await open_store()
    await dead.claim(entry_of())
    await dead.begin(intent())
    await expire(dead)
    found = await other.find(key="k")
    assert found is not None
    assert await other.claim(found, takes=(EntryState.UNKNOWN,), wait=False) == found
    await other.save(attrs.evolve(found, state=EntryState.FAILED))


async def test_an_intent_of_a_dead_process_is_unknown_to_the_next_that_opens(open_store: OpenStore) -> None:
    dead = await open_store()
    await dead.claim(entry_of())
    await dead.begin(intent())
    await expire(dead)
    other = await open_store()
    assert await sql(other, "SELECT state, holder FROM kie4o.entry") == [("unknown", None)]


async def test_a_claim_waits_until_the_holder_is_dead(open_store: OpenStore) -> None:
    dead, other = await open_store(), await open_store()
    await dead.claim(entry_of())
    waiting = asyncio.create_task(other.claim(entry_of(ref="another")))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await expire(dead)
    assert await asyncio.wait_for(waiting, 10) == entry_of()


async def test_waiting_for_another_process_has_no_time_limit(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its submit may wait for a slot for minutes. Control: any other call has the limit."""
    holder, other = await open_store(), Guard(await open_store())
    monkeypatch.setattr(other, "limit", 0.3)
    await holder.claim(entry_of())
    waiting = asyncio.create_task(other.claim(entry_of(ref="another")))
    await asyncio.sleep(1)
    await holder.release("k")
    assert await waiting == entry_of(ref="another")
    monkeypatch.setattr(other, "limit", 0.0)
    with pytest.raises(StoreError, match="did not respond"):
        await other.claim(entry_of("other"), wait=False)


def test_a_key_is_asked_for_after_longer_and_longer_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is told by notifications."""
    monkeypatch.setattr(News, "start", lambda _: None)

    async def run() -> None:
        url, loop = postgres.shared_url(), asyncio.get_running_loop()
        holder, other = stores = [PostgresStore(url, Secret(CANARY_KEY)) for _ in range(2)]
        for store in stores:
            await store.open()
        claim, times = other._entries.claim, list[float]()

        async def noted(*words: Any) -> Any:
            times.append(loop.time())
            return await claim(*words)

        monkeypatch.setattr(other._entries, "claim", noted)
        await holder.claim(entry_of())
        waiting = asyncio.create_task(other.claim(entry_of(ref="another")))
        await asyncio.sleep(8.0)
        await holder.release("k")
        assert await waiting == entry_of(ref="another")
        pauses = [after - before for before, after in itertools.pairwise(times)]
        assert pauses[:4] == pytest.approx([0.02, 0.03, 0.045, 0.0675], abs=0.001)
        assert pauses[10:] == pytest.approx([1.0] * len(pauses[10:]), abs=0.001)
        for store in stores:
            await store.aclose()

    run_virtual(run())


async def test_waiting_for_another_process_asks_for_the_key_now_and_then(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that process has told that the key is free, or a second; not all the time."""
    holder, other, asked = await open_store(), await open_store(), 0
    ask = other._entries.claim

    async def counted(*words: Any) -> Any:
        nonlocal asked
        asked += 1
        return await ask(*words)

    monkeypatch.setattr(other._entries, "claim", counted)
    await holder.claim(entry_of())
    waiting = asyncio.create_task(other.claim(entry_of(ref="another")))
    await asyncio.sleep(0.5)
    assert 1 <= asked <= 3
    await holder.release("k")
    assert await waiting == entry_of(ref="another")


async def test_a_cancelled_settlement_holds_nothing(open_store: OpenStore) -> None:
    """After each turn of the loop: the key is free for other processes."""
    store, other = await open_store(), await open_store()
    ledger = Ledger(store)
    for turns in range(60):
        key = f"{turns}"
        unknown = entry_of(key, state=EntryState.UNKNOWN)
        await store.save(unknown)
        settling = asyncio.create_task(ledger.settle(unknown, f"task-{key}", lambda key: False))
        for _ in range(turns):
            await asyncio.sleep(0)
        settling.cancel()
        await asyncio.wait([settling])
        assert await other.claim(unknown, takes=ANY, wait=False) is not None
        await other.release(key)
    assert await sql(store, "SELECT FROM kie4o.entry WHERE holder IS NOT NULL") == []


async def test_a_task_id_of_a_process_that_was_taken_for_dead_is_saved(open_store: OpenStore) -> None:
    """Its intent had become unknown."""
    silent, other = await open_store(), await open_store()
    await silent.claim(entry_of())
    await silent.begin(intent())
    await expire(silent)
    unknown = await other.claim(entry_of(ref="another"))
    assert unknown is not None
    assert unknown.state is EntryState.UNKNOWN
    await silent.save(submitted("k"))
    assert await stored_state(other) == (EntryState.SUBMITTED, "ref of k")


async def test_a_late_task_id_does_not_replace_a_resubmit(open_store: OpenStore) -> None:
    """It is saved as what it is, an earlier submit of the key. Both tasks are paid, and both are known."""
    silent, other = await open_store(), await open_store()
    await silent.claim(entry_of())
    await silent.begin(intent())
    await expire(silent)
    unknown = await other.claim(entry_of(ref="second"), takes=(EntryState.UNKNOWN,))
    assert unknown is not None
    await other.begin(intent(ref="second", earlier=(unknown.ref,)), unknown.superseded())
    await silent.save(submitted("k"))
    assert await stored_state(other) == (EntryState.INTENT, "second")
    await other.save(submitted("k", ref="second", task_id="another"))
    first = await other.find(task_id="task-of-k")
    assert first is not None
    assert (first.ref, first.callers_key, first.keyed) == ("ref of k", "k", False)
    assert len(await unfinished_keys(other)) == 2


async def test_a_claim_in_vain_changes_nothing_of_what_is_held(open_store: OpenStore) -> None:
    """As that of a settlement, while a submit waits for a slot."""
    store = await open_store()
    await store.claim(entry_of())
    assert await store.claim(entry_of(ref="x"), takes=(EntryState.UNKNOWN,), wait=False) == entry_of()
    await store.begin(intent())
    await store.save(submitted("ended"))
    await store.claim(entry_of("ended"))
    assert store._held.keys() == {"k"}
    await store.save(submitted("k"))
    assert store._held == {}


async def test_a_lost_lease_is_begun_anew(open_store: OpenStore) -> None:
    """What it had claimed is claimed again, unless another process was faster: then nothing is sent."""
    silent, other = await open_store(), await open_store()
    takes = (EntryState.PLANNED, EntryState.UNKNOWN)
    for key in ("again", "forgotten"):
        await silent.save(entry_of(key, state=EntryState.UNKNOWN))
        await silent.claim(entry_of(key), takes=takes)
    for key in ("kept", "lost", "changed", "released"):
        await silent.claim(entry_of(key))
    before = silent._process.id
    await expire(silent)
    await other.claim(entry_of("lost", ref="another"))
    await other.claim(entry_of("changed", ref="another"))
    await other.begin(intent("changed", ref="another"))
    await other.save(entry_of("changed", ref="another", state=EntryState.UNKNOWN))
    await other.claim(entry_of("again", ref="another one"), takes=takes)
    await other.begin(intent("again", ref="another one"))
    await other.save(entry_of("again", ref="another one", state=EntryState.UNKNOWN))
    await other.forget("forgotten")
    await other.claim(entry_of("released", ref="another"))
    await other.release("released")
    await silent.begin(intent("kept"))
    assert silent._process.id != before
    assert await stored_state(other, "kept") == (EntryState.INTENT, "ref of kept")
    for key in ("lost", "changed", "again", "forgotten"):
        with pytest.raises(StoreError, match="not in the hands of this process"):
            await silent.begin(intent(key, ref=f"second of {key}"))
    await silent.begin(intent("released"))
    await other.begin(intent("lost", ref="another"))
    await silent.begin(intent("keyless", keyed=False, ref="keyless"))


async def test_an_undone_intent_is_free(open_store: OpenStore) -> None:
    """Also if it is undone only after the submit was over, since the database was away."""
    store, other = await open_store(), await open_store()
    await store.claim(entry_of())
    await store.begin(intent())
    await store.release("k")
    assert await other.claim(entry_of(ref="another"), wait=False) is None  # it may still be sent
    await store.save(entry_of())
    assert await other.claim(entry_of(ref="another"), wait=False) == entry_of()


async def test_closing_frees_what_was_not_sent(open_store: OpenStore) -> None:
    """An intent that could not be undone is unknown at once."""
    closing, other = await open_store(), await open_store()
    await closing.claim(entry_of())
    await closing.claim(entry_of("intent"))
    await closing.begin(intent("intent"))
    await closing.aclose()
    assert await other.claim(entry_of(ref="another"), wait=False) == entry_of()
    assert await stored_state(other, "intent") == (EntryState.UNKNOWN, "ref of intent")


async def test_closing_waits_for_what_is_written(open_store: OpenStore) -> None:
    """Also after its caller was cancelled."""
    closing, other = await open_store(), await open_store()
    await closing.save(submitted("k"))
    await postgres.lock_rows(other._database, "entry", 0.4)
    saving = asyncio.create_task(closing.save(ended(submitted("k"))))
    await asyncio.sleep(0.1)
    saving.cancel()
    await closing.aclose()
    assert await stored_state(other) == (EntryState.SUCCEEDED, "ref of k")


async def test_why_a_lease_was_kept_is_said(open_store: OpenStore, caplog: pytest.LogCaptureFixture) -> None:
    store = await open_store()
    await sql(store, "DROP FUNCTION kie4o.leave(bigint)")
    await store.aclose()
    assert "could not be ended and will run out: the database 127.0.0.1" in caplog.text


def test_a_store_closes_while_its_database_is_away() -> None:
    """After three seconds. Its lease runs out, and it can be opened again."""
    heard: list[StoreWarned] = []

    async def run(server: postgres.PostgresServer) -> None:
        loop, store = asyncio.get_running_loop(), PostgresStore(server.url, Secret(CANARY_KEY))
        store.reporter = Reporter([(heard.append, (StoreWarned,))])
        await store.open()
        await store.claim(entry_of())
        server.stop()
        late = asyncio.create_task(store.save(submitted("late")))
        await asyncio.sleep(0)
        began = loop.time()
        await store.aclose()
        assert loop.time() - began == pytest.approx(3.0, abs=0.1)
        assert not [task for task in asyncio.all_tasks() if task.get_name() in ("kie4o lease", "kie4o news")]
        await asyncio.wait([late], timeout=5)
        assert late.done()
        assert [(event.what, event.detail) for event in heard] == [
            ("lease kept", "the database does not answer")
        ]
        server.start()
        await store.open()
        assert await store.find(key="k") == entry_of()
        await store.aclose()

    with postgres.own_server() as server:
        run_virtual(run(server))


@pytest.mark.parametrize("kept", [True, False], ids=["rule", "control"])
async def test_an_outage_longer_than_the_lease(kept: bool) -> None:
    """All leases have run out when the database is back, and each process has another one to come back. So
    the intent of a live process stays one. Control: the first that is back takes all others for dead."""
    with postgres.own_server() as server:
        slow, first = (PostgresStore(server.url, Secret(CANARY_KEY)) for _ in range(2))
        await slow.open()
        await first.open()
        if not kept:
            await sql(
                first,
                "CREATE OR REPLACE FUNCTION kie4o.alive(which bigint) RETURNS boolean LANGUAGE sql AS "
                "$$ SELECT expires_at > clock_timestamp() FROM kie4o.process WHERE id = which $$",
            )
        await slow.claim(entry_of())
        await slow.begin(intent())
        await sql(first, "UPDATE kie4o.process SET expires_at = clock_timestamp() - interval '1 s'")
        await asyncio.to_thread(server.restart)
        await first._process.renew()
        stored = await first.claim(entry_of(ref="another"), wait=False)
        assert (stored is None) is kept
        assert stored is None or stored.state is EntryState.UNKNOWN
        await slow._process.renew()
        await slow.save(submitted("k"))  # it is not lost in either case
        assert await stored_state(first) == (EntryState.SUBMITTED, "ref of k")
        for store in (slow, first):
            await store.aclose()


# -- saving ------------------------------------------------------------------------------------------


async def test_one_of_two_entries_gets_a_task(open_store: OpenStore) -> None:
    """Whichever process is first; nothing is stored for the other."""
    stores = [await open_store() for _ in range(4)]
    for number, store in enumerate(stores):
        await store.save(entry_of(f"{number}", state=EntryState.UNKNOWN))
    saves = [store.save(submitted(f"{number}", task_id="t")) for number, store in enumerate(stores)]
    results = await asyncio.gather(*saves, return_exceptions=True)
    assert sum(result is None for result in results) == 1
    winner = results.index(None)
    for number, result in enumerate(results):
        if number != winner:
            assert isinstance(result, DuplicateTaskError)
            assert (result.task_id, result.key) == ("t", f"{winner}")
            assert await stored_state(stores[0], f"{number}") == (EntryState.UNKNOWN, f"ref of {number}")


async def test_a_save_that_is_repeated_does_not_undo_what_followed(open_store: OpenStore) -> None:
    """Its reply was lost, or it is executed late, and another process got further meanwhile."""
    store, other = await open_store(), await open_store()
    unknown = entry_of(state=EntryState.UNKNOWN)
    await store.save(unknown)
    await other.save(submitted("k"))
    await store.save(unknown)
    assert await stored_state(store) == (EntryState.SUBMITTED, "ref of k")
    await other.save(ended(submitted("k")))
    for entry in (submitted("k"), unknown):
        await store.save(entry)
        assert await stored_state(store) == (EntryState.SUCCEEDED, "ref of k")


@contextlib.contextmanager
def noted(store: PostgresStore) -> Iterator[list[tuple[Any, ...]]]:
    """The statements that the store sends, with their parameters."""
    sent: list[tuple[Any, ...]] = []
    rows = store._database.rows

    async def noting(*words: object, **more: Any) -> Any:
        sent.append(words)
        return await rows(*words, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store._database, "rows", noting)
        yield sent


@pytest.mark.parametrize("kept", [True, False], ids=["rule", "control"])
@pytest.mark.parametrize("resubmits", [False, True], ids=["first", "resubmit"])
async def test_an_undoing_that_is_executed_late_spares_the_next_intent(
    open_store: OpenStore, kept: bool, resubmits: bool
) -> None:
    """The first attempt is refused, and the statement that says so is sent again after a lost connection. The
    server executes it once more, when the second attempt has begun. Control: it looks as if that was not
    sent, and another process would send it."""
    store, other = await open_store(), await open_store()
    previous = entry_of(ref="earlier", state=EntryState.FAILED)
    takes = (EntryState.PLANNED, EntryState.FAILED) if resubmits else (EntryState.PLANNED,)
    if resubmits:
        await store.save(previous)
    if not kept:
        [(definition,)] = await sql(store, "SELECT pg_get_functiondef('kie4o.save'::regproc)")
        rule = "stored.submitted_at > intent_at"
        assert rule in definition
        await sql(store, definition.replace("%", "%%").replace(rule, "false"))
    superseded = previous.superseded() if resubmits else None
    await store.claim(entry_of(), takes=takes)
    await store.begin(intent(), superseded)
    with noted(store) as sent:
        await store.save(previous if resubmits else entry_of())
    await store.begin(attrs.evolve(intent(), submitted_at=2.0), superseded)
    await sql(store, *sent[0])
    state = (EntryState.INTENT, "ref of k") if kept else ((previous.state, "earlier") if resubmits else None)
    assert await stored_state(other) == (state or (EntryState.PLANNED, "ref of k"))
    if kept:  # and the second one is undone all the same
        await store.save(previous if resubmits else entry_of())
        assert (await stored_state(other) or (None,))[0] is (
            previous.state if resubmits else EntryState.PLANNED
        )


async def test_what_was_refused_stays_so_after_a_lost_lease(open_store: OpenStore) -> None:
    """The lease was lost while the request was out. It was not sent for all that others know, and they may
    send."""
    silent, other = await open_store(), await open_store()
    await silent.claim(entry_of())
    await silent.begin(intent())
    await expire(silent)
    await silent._process.renew()
    await silent.save(entry_of())
    assert await other.claim(entry_of(ref="another"), wait=False) == entry_of()


async def test_what_was_not_sent_is_nothing_once_another_process_submits_its_key(
    open_store: OpenStore,
) -> None:
    """What may have been sent is an earlier submit of the key."""
    silent, other = await open_store(), await open_store()
    for key in ("refused", "unknown"):
        await silent.claim(entry_of(key))
    await expire(silent)
    for key in ("refused", "unknown"):
        await other.claim(entry_of(key, ref=f"another {key}"))
        await other.begin(intent(key, ref=f"another {key}"))
    await silent.save(entry_of("refused"))
    await silent.save(entry_of("unknown", state=EntryState.UNKNOWN))
    states = [state for (state,) in await sql(other, "SELECT state FROM kie4o.entry")]
    assert sorted(states) == ["intent", "intent", "unknown"]


async def test_a_release_that_failed_is_repeated(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the lease: nothing else frees a key while this process lives. What is claimed again stays."""
    store, other = await open_store(), await open_store()
    release = store._entries.release
    claimed: list[Entry | None] = []

    async def away(me: int, key: str) -> None:
        raise StoreError("the database is away")

    async def while_the_other_is_claimed(me: int, key: str) -> None:
        for again in store._unreleased - {key}:
            claimed.append(await store.claim(entry_of(again)))
        await release(me, key)

    monkeypatch.setattr(store._entries, "release", away)
    for key in ("a", "b"):
        await store.claim(entry_of(key))
        with pytest.raises(StoreError, match="away"):
            await store.release(key)
        assert await other.claim(entry_of(key, ref="another"), wait=False) is None
    monkeypatch.setattr(store._entries, "release", while_the_other_is_claimed)
    await postgres.renewed(store._process)
    [again] = claimed
    assert again in (entry_of("a"), entry_of("b"))
    for key in ("a", "b"):
        stays = entry_of(key) == again
        found = await other.claim(entry_of(key, ref="another"), wait=False)
        assert found == (None if stays else entry_of(key, ref="another"))
    monkeypatch.setattr(store._entries, "release", away)
    await store.claim(entry_of("c"))
    with pytest.raises(StoreError, match="away"):
        await store.release("c")
    await store.aclose()
    assert store._unreleased == set()


async def test_a_key_may_be_released_twice_at_once(open_store: OpenStore) -> None:
    store, other = await open_store(), await open_store()
    await store.claim(entry_of())
    await asyncio.gather(store.release("k"), store.release("k"))
    assert store._unreleased == set()
    assert await other.claim(entry_of(ref="another"), wait=False) == entry_of(ref="another")


async def test_a_write_that_was_given_up_does_not_follow_one_that_undoes_it(open_store: OpenStore) -> None:
    """Writes of one key reach the database in the order of their calls."""
    store = await open_store()
    for number in range(10):
        key = f"{number}"
        await store.claim(entry_of(key))
        begun = asyncio.create_task(store.begin(intent(key)))
        await asyncio.sleep(0)
        begun.cancel()
        await store.save(entry_of(key))
        assert await stored_state(store, key) == (EntryState.PLANNED, f"ref of {key}")
        await asyncio.wait([begun])
        assert await stored_state(store, key) == (EntryState.PLANNED, f"ref of {key}")


async def test_writes_of_a_key_are_one_after_the_other(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of its earlier submits; entries without a key do not wait for each other."""
    store = await open_store()
    save, now, most = store._entries.save, 0, list[int]()

    async def counted(*words: Any, **more: Any) -> Any:
        nonlocal now
        now += 1
        most.append(now)
        try:
            return await save(*words, **more)
        finally:
            now -= 1

    monkeypatch.setattr(store._entries, "save", counted)
    unknown = entry_of(state=EntryState.UNKNOWN)
    await asyncio.gather(store.save(submitted("k", ref="again")), store.save(unknown.superseded()))
    assert most == [1, 1]
    await asyncio.gather(*(store.save(submitted(key, keyed=False)) for key in ("a", "b")))
    assert most == [1, 1, 1, 2]


async def test_a_callback_reaches_every_process(open_store: OpenStore) -> None:
    """The inbox is a table."""
    receiver, other = await open_store(), await open_store()
    await receiver.keep_callback("ref of k", "task")
    assert await other.callbacks_of("ref of k") == ("task",)


async def test_an_odd_database_keeps_every_entry() -> None:
    """Of an encoding with few characters."""
    with postgres.own_server() as server:
        async with opened(server.url) as database:
            await database.rows("CREATE DATABASE odd TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        store = PostgresStore(server.url.replace("/postgres", "/odd"), Secret(CANARY_KEY))
        await store.open()
        entry = submitted("schlüssel\0 鍵", prompt="夕焼け", task_id="t")
        await store.save(entry)
        assert await store.find(key=entry.key) == entry
        assert await store.find(task_id="no\0id") is None
        await store.aclose()


# -- a replica that takes over -------------------------------------------------------------------------


async def after_a_failover(store: PostgresStore) -> None:
    """The lease is renewed on another server, as far as the process can tell."""
    store._process.timeline = "another"
    await postgres.renewed(store._process)


async def test_what_is_written_meanwhile_is_not_written_over(open_store: OpenStore) -> None:
    """Each process writes again what the replica may lack, key by key: the latest of each."""
    store = await open_store()
    unknown, again = entry_of("b", state=EntryState.UNKNOWN), intent("b", ref="again")
    for entry in (submitted("a"), unknown):
        await store.save(entry)
    await store.claim(again, takes=(EntryState.UNKNOWN,))
    await asyncio.gather(store._write_again(), store.begin(again, unknown.superseded()))
    assert await store.find(key="b") == again
    assert await store.find(ref=unknown.ref) == unknown.superseded()


async def test_what_was_saved_last_is_written_again(open_store: OpenStore) -> None:
    """Unless it was forgotten."""
    store = await open_store()
    for key in ("saved", "forgotten"):
        await store.claim(entry_of(key))
        await store.save(submitted(key))
    await store.claim(entry_of("held"))
    for key in ("forgotten", "held"):
        await store.forget(key)
    assert store._held == {}
    await sql(store, "DELETE FROM kie4o.entry")
    await after_a_failover(store)
    assert await unfinished_keys(store) == ["saved"]


async def replicate(store: PostgresStore) -> None:
    """As far as this, a replica has it that takes over later."""
    await sql(store, "CREATE TABLE kie4o.replica AS SELECT * FROM kie4o.entry")


async def lose_the_rest(store: PostgresStore) -> None:
    await sql(store, "DELETE FROM kie4o.entry")
    await sql(store, "INSERT INTO kie4o.entry OVERRIDING SYSTEM VALUE SELECT * FROM kie4o.replica")


async def test_a_replica_that_lacks_an_intent_gets_its_task(open_store: OpenStore) -> None:
    """Also if the submit before seems to be a later one, since the clock was set back between them."""
    store = await open_store()
    unknown, again = entry_of(state=EntryState.UNKNOWN, submitted_at=1000.0), intent(ref="again")
    await store.save(unknown)
    await store.claim(again, takes=(EntryState.UNKNOWN,))
    await replicate(store)
    await store.begin(again, unknown.superseded())
    await lose_the_rest(store)
    paid = again.become(EntryState.SUBMITTED, task_id="task")
    await store.save(paid)
    assert await store.find(key="k") == paid


async def test_what_a_replica_lacks_is_in_the_same_hands_again(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An intent, and a submit that was undone and waits for another attempt."""
    store, other = await open_store(), await open_store()
    for key in ("undone", "intent"):
        await store.claim(entry_of(key))
    await replicate(store)
    await store.begin(intent("undone"))
    await store.save(entry_of("undone"))
    await store.begin(intent("intent"))
    await store.begin(intent("keyless", keyed=False))
    await lose_the_rest(store)
    began, begin = list[str](), store._entries.begin

    async def noted(mine: list[int], hold: Any, entry: Entry, superseded: Entry | None) -> str:
        began.append(entry.key)
        return await begin(mine, hold, entry, superseded)

    monkeypatch.setattr(store._entries, "begin", noted)
    await after_a_failover(store)
    assert began == ["intent", "keyless"]
    for key in ("intent", "keyless"):
        assert await stored_state(other, key) == (EntryState.INTENT, f"ref of {key}")
    await store.begin(intent("undone"))
    assert await other.claim(entry_of("undone", ref="another"), wait=False) is None


def test_what_was_written_is_forgotten_in_the_order_of_its_last_writes() -> None:
    async def run() -> None:
        store = PostgresStore(postgres.shared_url(), Secret(CANARY_KEY))
        await store.open()
        for key in ("a", "b", "c"):
            await store.claim(entry_of(key))
        for key, seconds in (("a", 30.0), ("b", 29.0), ("a", 36.0), ("c", 0.0)):
            await store.begin(intent(key))
            await asyncio.sleep(seconds)
        assert store._written.keys() == store._begun.keys() == {"a", "c"}
        await store.aclose()
        assert (store._written, store._begun, store._held) == ({}, {}, {})

    run_virtual(run())


@pytest.mark.parametrize(("seconds", "kept"), [(59.5, True), (60.5, False)])
def test_what_every_replica_has_is_not_written_again(seconds: float, kept: bool) -> None:
    """It is forgotten after a minute, and would otherwise be kept for as long as the process lives."""

    async def run() -> None:
        store = PostgresStore(postgres.shared_url(), Secret(CANARY_KEY))
        await store.open()
        for key in ("a", "b", "c"):
            await store.claim(entry_of(key))
            await store.begin(intent(key))
            await asyncio.sleep(seconds if key == "a" else 0)
        await sql(store, "DELETE FROM kie4o.entry WHERE mark <> %s", hash_of_ref("ref of c"))
        await after_a_failover(store)
        assert await stored_state(store, "a") == ((EntryState.INTENT, "ref of a") if kept else None)
        for key in ("b", "c"):
            assert await stored_state(store, key) == (EntryState.INTENT, f"ref of {key}")
        await store.aclose()

    run_virtual(run())


async def test_replicas_for_which_no_commit_waits_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Control: there is none."""
    import psycopg  # where there is a server

    with postgres.own_server() as server:
        replica = await psycopg.AsyncConnection.connect(f"{server.url}?replication=true", autocommit=True)
        for warned in (1, 0):
            store = PostgresStore(server.url, Secret(CANARY_KEY))
            await store.open()
            await store.aclose()
            assert caplog.text.count("has replicas for which commits do not wait") == warned
            caplog.clear()
            await replica.close()


# -- who polls a task ----------------------------------------------------------------------------------


async def test_a_task_has_one_process_that_polls_it(open_store: OpenStore) -> None:
    """The others follow it until that one leaves, or its end is in an entry. What is damaged is polled."""
    stores = [await open_store() for _ in range(2)]
    first, second = (store._machines for store in stores)
    done = ended(submitted("k"))
    [task_id] = task_ids = [str(done.task_id)]
    assert await first.lead(task_ids) == {task_id: None}
    assert await second.lead(task_ids) == {}
    await first.leave({task_id: None})
    assert await second.lead(task_ids) == {task_id: None}
    assert await first.lead(task_ids) == {}
    await stores[0].save(done)
    assert await first.lead(task_ids) == {task_id: done.details}
    await sql(stores[0], "UPDATE kie4o.entry SET checksum = 'x'")
    assert await first.lead(task_ids) == {}
    assert await second.lead(task_ids) == {task_id: None}
    assert await first.turn(task_id, 60.0) == 0.0  # to poll it once, as before a deadline
    assert 0.0 < await first.turn(task_id, 60.0) <= 60.0
    await second.leave({task_id: done.details})
    assert await first.lead(task_ids) == {task_id: done.details}
    assert await first.turn(task_id, 60.0) == done.details


async def test_a_submitted_key_is_not_had_at_once_while_another_process_polls_its_task(
    open_store: OpenStore,
) -> None:
    """But by one that waits, and by that process."""
    polls, other = await open_store(), await open_store()
    entry = submitted("k")
    await polls.save(entry)
    assert await other.claim(entry_of(), wait=False) == entry
    await polls._machines.lead([str(entry.task_id)])
    assert await other.claim(entry_of(), wait=False) is None
    assert await other.claim(entry_of()) == entry
    assert await polls.claim(entry_of(), wait=False) == entry
    assert await other.claim(entry_of(), takes=ANY, wait=False) == entry
    await other.save(ended(entry))
    assert await other.claim(entry_of(), wait=False) == ended(entry)


async def test_what_nobody_polls_is_dropped_now_and_then(open_store: OpenStore) -> None:
    """By the first process that leaves a task, and then every ten minutes."""
    store = await open_store()
    old = "INSERT INTO kie4o.watch (account, task_id, touched_at) VALUES ('a', %s, '-infinity')"
    for number, left in ((1, 0), (2, 1)):
        await sql(store, old, f"task-{number}")
        await store._machines.leave({})
        assert await sql(store, "SELECT count(*) FROM kie4o.watch") == [(left,)]
