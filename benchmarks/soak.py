"""One process under every fault at once, for minutes: is anything paid twice, lost, or growing?

    python -m benchmarks.soak [--minutes 15] [--loop asyncio|uvloop] [--control NAME]

Two clients, one with a SQLite file and one with a store in memory, use every verb against two emulators in
another process (`faulty`), whose answers are lost, late, slow, cut or errors, and whose callbacks are late,
repeated, forged or wrong. Calls are cancelled, timed out and left half way, and writes to the stores fail.
The client with the memory store is closed in the midst of its calls and created again every few seconds.

Once a minute and at the end it prints what happened. The exit status is 1 if a check of `checks` fails. Each
control of `CONTROLS` breaks one thing on purpose, and has to end with status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from aiohttp import web

from kie4o import AsyncKieClient, ImageRequest, KieError, PollPolicy, RateLimit, StoreError
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry, EntryState, Store
from kie4o.webhooks import routes

from .faulty import TIMEOUT, WEBHOOK_KEY
from .processes import ROOT, call, environment

API_KEY = "sk-soak-5b1f0c77d2e94a63"
LIMIT = RateLimit(20, per=1.0)
WAIT_TIMEOUT = 12.0
# Seconds after which a call counts as stuck: a submit that meets maintenance and full queues is sent again
# for 180 and 450 s.
STUCK = 720.0
CLOSED = 60.0  # the same for a call whose client was closed
LIVES = 12  # clients with a memory store, one after another: at least so many
LIFE = 20.0  # seconds of one, at most
FAILING_WRITES = 0.01
# How many MB, thousands of Python's blocks of memory, descriptors and asyncio tasks the last third of the run
# may have more than the second, at least. The first fills what is bounded, such as the callbacks remembered.
MORE = {"memory": 8.0, "blocks": 30.0, "descriptors": 20.0, "tasks": 40.0}
MB = 2**20
HELD = ("memory", "blocks")
Samples = list[dict[str, float]]

# Errors in the log that the faults cause: saves that fail.
EXPECTED_LOG = ("could not be saved", "could not be deleted", "could not be released", "kept in memory")


# -- what happened -------------------------------------------------------------------------------


@attrs.define
class Account:
    """One emulator, and what was found out about the tasks that it sold."""

    name: str
    url: str
    facts: dict[str, Any] = attrs.Factory(dict)
    answered: int = 0  # ids in answers that the client has certainly received
    stored: int = 0  # of these
    unaccounted: int = 0  # tasks whose answer was lost, which the store knows neither by id nor as UNKNOWN
    examples: list[str] = attrs.Factory(list)


@attrs.define
class Run:
    """The state of one soak."""

    arguments: argparse.Namespace
    chance: random.Random
    facts_url: str
    accounts: list[Account]
    verbs: Counter[str] = attrs.Factory(Counter)
    errors: Counter[str] = attrs.Factory(Counter)  # our own, which the faults cause
    unexpected: list[str] = attrs.Factory(list)
    limit: RateLimit = LIMIT
    growth: Callable[[Samples], dict[str, float]] = attrs.Factory(lambda: by_thirds)
    more: Mapping[str, float] = attrs.Factory(lambda: MORE)
    samples: Samples = attrs.Factory(list)
    numbers: Iterator[int] = attrs.Factory(lambda: iter(range(10**9)))

    def surprise(self, text: str) -> None:
        if len(self.unexpected) < 50:
            self.unexpected.append(text)


class Log(logging.Handler):
    """Errors and warnings of any logger that no fault explains."""

    def __init__(self, run: Run) -> None:
        super().__init__(logging.WARNING)
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        ours = record.name.startswith("kie4o")
        if ours and (record.levelno < logging.ERROR or any(part in message for part in EXPECTED_LOG)):
            self.run.errors[f"log: {record.levelname} {record.msg[:60]}"] += 1
        elif record.name != "aiohttp.server":  # of the receiver of callbacks: the sender hung up
            trace = "".join(traceback.format_exception(record.exc_info[1])) if record.exc_info else ""
            self.run.surprise(f"log of {record.name}: {message} {trace}"[:2000])


class FailingStore:
    """A store of which some writes fail, each before it has any effect, until its client closes.

    An id that cannot be saved then either is only logged.
    """

    def __init__(self, store: Store, run: Run) -> None:
        self.inner = store
        self.failing = True
        self._run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def _maybe_fail(self) -> None:
        if self.failing and self._run.chance.random() < FAILING_WRITES:
            raise StoreError("the disk is full (so the soak says)")

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        self._maybe_fail()
        await self.inner.begin(entry, superseded)

    async def save(self, entry: Entry) -> None:
        if entry.state is EntryState.SUBMITTED or entry.state.ended:
            self._maybe_fail()
        await self.inner.save(entry)

    async def keep_callback(self, ref: str, task_id: str) -> None:
        self._maybe_fail()
        await self.inner.keep_callback(ref, task_id)


class ForgetfulStore(FailingStore):
    """The control of the comparison of ids: the first id is not saved, although the store says so."""

    _forgotten: str | None = None

    async def save(self, entry: Entry) -> None:
        if self._forgotten is None and entry.state is EntryState.SUBMITTED:
            self._forgotten = entry.key
        if entry.key != self._forgotten:
            await super().save(entry)


def failing(run: Run, store: Store) -> FailingStore:
    kind = ForgetfulStore if run.arguments.control == "forget" else FailingStore
    return kind(store, run)


# -- the load ------------------------------------------------------------------------------------


@attrs.define
class Worker:
    """Uses one client, one verb after another, until it is cancelled or the client is closed."""

    run: Run
    account: Account
    client: AsyncKieClient
    folder: Path
    known: list[str] = attrs.Factory(list)  # task ids of this worker, the latest ones
    done: list[Any] = attrs.Factory(list)  # its latest results

    def prompt(self) -> str:
        return f"A lighthouse in a storm, number {next(self.run.numbers)} of {self.account.name}"

    async def work(self) -> None:
        while not self.client._runtime.closed:
            verb = self.run.chance.choices(list(VERBS), list(VERBS.values()))[0]
            self.run.verbs[verb.__name__] += 1
            try:
                await self._call(verb)
            except KieError as error:
                self.run.errors[type(error).__name__] += 1
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                raise
            except Exception:
                self.run.surprise(f"{verb.__name__}: {traceback.format_exc()}")

    async def _call(self, verb: Callable[[Worker], Awaitable[None]]) -> None:
        """Call the verb; some calls are cancelled, and some time out."""
        chance = self.run.chance.random()
        task = asyncio.ensure_future(verb(self))
        patience = STUCK
        if chance < 0.12:
            patience = self.run.chance.uniform(0.0, 1.0)
        if chance < 0.06:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await task
            return
        try:
            await asyncio.wait([task], timeout=patience)
        finally:
            task.cancel()  # no effect on one that is done
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if patience == STUCK and task.cancelled():
            self.run.surprise(f"{verb.__name__} had not ended after {STUCK:g} s")

    def note(self, task_id: str) -> None:
        self.known = [*self.known[-4:], task_id]

    def result(self, result: Any) -> None:
        self.note(result.task_id)
        self.done = [*self.done[-4:], result]
        foreign = [url for url in result.urls if not url.startswith(self.account.url)]
        if foreign:
            self.run.surprise(f"a result has a URL that is not Kie's: {foreign[0]}")


async def submit(worker: Worker) -> None:
    task = await worker.client.submit(worker.prompt())
    worker.note(task.id)


async def submit_keyed(worker: Worker) -> None:
    """Under one key, by two callers at once, and then again."""
    prompt = worker.prompt()
    calls = [worker.client.submit(prompt, key=prompt) for _ in range(2)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    ids = {outcome.id for outcome in outcomes if not isinstance(outcome, BaseException)}
    if len(ids) > 1:
        worker.run.surprise(f"two tasks under one key: {ids}")
    task = await worker.client.submit(prompt, key=prompt)
    worker.note(task.id)


async def generate(worker: Worker) -> None:
    worker.result(await worker.client.generate(worker.prompt(), size="3:2"))


async def generate_keyed(worker: Worker) -> None:
    prompt = worker.prompt()
    request = ImageRequest(prompt, n_variants=2)
    worker.result(await worker.client.generate(request, key=prompt, timeout=6.0))
    worker.result(await worker.client.generate(request, key=prompt))


async def generate_many(worker: Worker) -> None:
    """A batch; one of three is left before its end."""
    prompts = [worker.prompt() for _ in range(5)]
    leave_after = worker.run.chance.choice([1, 10, 10])
    async with contextlib.aclosing(worker.client.generate_many(prompts)) as completions:
        async for completion in completions:
            if completion.ok:
                worker.result(completion.unwrap())
            leave_after -= 1
            if not leave_after:
                return


async def wait(worker: Worker) -> None:
    for task_id in worker.known[-2:]:
        worker.result(await worker.client.wait(task_id, timeout=5.0, on_update=lambda details: None))


async def handle(worker: Worker) -> None:
    """The verbs of a task's handle."""
    task = await worker.client.submit(worker.prompt())
    async with contextlib.aclosing(task.updates(timeout=5.0)) as updates:
        async for details in updates:
            if worker.run.chance.random() < 0.2:
                break
            details.progress  # noqa: B018  # a reader reads it
    await task.details()
    worker.result(await task)


async def details(worker: Worker) -> None:
    for task_id in worker.known[-1:]:
        await worker.client.details(task_id)


async def files(worker: Worker) -> None:
    client = worker.client
    uploaded = await client.upload(b"\x89PNG\r\n\x1a\n" + os.urandom(20_000), name="mask.png")
    await client.upload_from_url(uploaded.url)
    for result in worker.done[-1:]:
        for path in await client.download(result, worker.folder):
            path.unlink(missing_ok=True)
        await client.download_url(result.task_id, result.urls[0])


async def account(worker: Worker) -> None:
    await worker.client.credits()
    async for entry in worker.client.unfinished():
        repr(entry)


async def resume(worker: Worker) -> None:
    """Wait for what is unfinished, for a second."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0), contextlib.aclosing(worker.client.resume()) as completions:
            async for completion in completions:
                repr(completion)


VERBS: dict[Callable[[Worker], Awaitable[None]], int] = {
    submit: 6,
    submit_keyed: 4,
    generate: 12,
    generate_keyed: 6,
    generate_many: 3,
    wait: 6,
    handle: 4,
    details: 6,
    files: 3,
    account: 2,
    resume: 1,
}


# -- clients -------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def opened(
    run: Run, account: Account, store: FailingStore, **settings: Any
) -> AsyncIterator[AsyncKieClient]:
    """A client and its receiver of callbacks."""
    often = PollPolicy(first=0.5, maximum=1.0)
    settings = {"wait_timeout": WAIT_TIMEOUT, "max_in_flight": 50, "poll": often} | settings
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        times = 3 if run.arguments.control == "burst" else 1
        client = AsyncKieClient(
            API_KEY,
            base_url=account.url,
            timeout=TIMEOUT,
            rate_limit=RateLimit(times * run.limit.limit, per=run.limit.per),
            callback_url=f"http://127.0.0.1:{sock.getsockname()[1]}/{{ref}}",
            webhook_key=WEBHOOK_KEY,
            store=store,
            **settings,
        )
        app = web.Application()
        app.add_routes(routes(client, "/{ref}"))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, sock).start()
        try:
            async with client:
                yield client
        finally:
            await runner.cleanup()


async def load(
    run: Run, account: Account, client: AsyncKieClient, store: FailingStore, folder: Path, seconds: float
) -> None:
    """Let workers use the client for so long, and close it in the midst of their calls."""
    workers = [Worker(run, account, client, folder) for _ in range(run.arguments.workers)]
    tasks = [asyncio.create_task(worker.work(), name="soak worker") for worker in workers]
    try:
        await asyncio.sleep(seconds)
    finally:
        if run.chance.random() < 0.5:
            for task in tasks:
                task.cancel()
        store.failing = False
        await client.aclose()
        _, hanging = await asyncio.wait(tasks, timeout=CLOSED)
        for task in hanging:
            run.surprise(f"a call had not ended {CLOSED:g} s after closing: {task.get_stack()}")
            task.cancel()


async def with_file(run: Run, account: Account, folder: Path, until: float) -> None:
    """One client with a SQLite file for the whole run."""
    store = failing(run, SQLiteStore(folder / "run.db"))
    async with opened(run, account, store) as client:
        if run.arguments.control == "twice":
            await pay_twice(client)
        checking = asyncio.create_task(check_each_minute(run, account, store))
        try:
            await load(run, account, client, store, folder, until - time.monotonic())
        finally:
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)
    await check_closed(run, account, store)


async def with_memory(run: Run, account: Account, folder: Path, until: float) -> None:
    """One client after another, each with a new store in memory."""
    life = min(LIFE, run.arguments.minutes * 60 / LIVES)
    while (left := until - time.monotonic()) > 0:
        store = failing(run, MemoryStore())
        async with opened(run, account, store) as client:
            await load(run, account, client, store, folder, min(left, life))
        await check_closed(run, account, store)
        run.samples.append(figures())
        await asyncio.sleep(LIMIT.per)  # the next client knows nothing of the window of this one


# -- checks --------------------------------------------------------------------------------------


async def check_closed(run: Run, account: Account, store: FailingStore) -> None:
    """Every task that was sold is in the store, now that its client is closed."""
    await store.open()
    await check(run, account, store, settled=0.0)
    await store.aclose()


async def check_each_minute(run: Run, account: Account, store: FailingStore) -> None:
    while True:
        await asyncio.sleep(30)
        await check(run, account, store)


async def check(run: Run, account: Account, store: FailingStore, settled: float | None = None) -> None:
    """Look up the tasks that were sold since the last check."""
    query = "" if settled is None else f"&settled={settled}"
    path = f"/__facts?account={run.accounts.index(account)}{query}"
    account.facts = await asyncio.to_thread(call, run.facts_url, path)
    tasks = account.facts.pop("settled")
    unknown = {entry.request.prompt async for entry in store.unfinished() if entry.task_id is None}
    for task_id, prompt, told in tasks:
        found = await store.find(task_id=task_id) is not None
        if told == "answered":
            account.answered += 1
            account.stored += found
        if not found and (told == "answered" or prompt not in unknown):
            account.unaccounted += told != "answered"
            account.examples.append(f"{task_id} ({told}, {prompt})")


def checks(run: Run) -> dict[str, bool]:
    """What has to hold, by what is printed if it does not."""
    found = {}
    for account in run.accounts:
        facts, name = account.facts, account.name
        found |= {
            f"{name}: tasks were sold": facts.get("tasks", 0) > 0,
            f"{name}: ids received = ids stored": account.answered == account.stored,
            f"{name}: every other paid task is UNKNOWN or named": account.unaccounted == 0,
            f"{name}: nothing is paid twice": facts.get("twice", 1) == 0,
            f"{name}: at most {run.limit.limit} in any {run.limit.per:g} s": (
                facts.get("most", 0) <= run.limit.limit
            ),
            f"{name}: at most 3 polls of a task per second": facts.get("looks", 0) <= 3,
        }
    for what, rise in run.growth(run.samples).items():
        found[f"{what} are flat (growth {rise:+,.1f})"] = rise <= run.more[what]
    return found | {"figures were taken": bool(run.samples), "nothing unexpected": not run.unexpected}


def thirds(samples: Samples) -> dict[str, list[float]]:
    """The least of each figure in each third of the samples: what grows lifts it, a burst does not."""
    size = len(samples) // 3
    if not size:
        return {}
    parts = [samples[:size], samples[size:-size], samples[-size:]]
    return {
        what: [min(sample[what] for sample in part) for part in parts] for what in MORE if what in samples[0]
    }


def by_thirds(samples: Samples) -> dict[str, float]:
    """By how much each figure has grown from the second third to the last."""
    return {what: last - second for what, (_, second, last) in thirds(samples).items()}


def by_line(samples: Samples) -> dict[str, float]:
    """By how much a straight line through what is held in memory rises in the last half; the rest by thirds.

    What the calls under way explain, where they were counted, is left out: a machine that is busy with
    something else has more of them at once. A descriptor or a task that leaks lifts the least there is, and
    a burst of calls does not; memory seldom returns to its least.
    """
    steady = samples[len(samples) // 2 :]
    if len(steady) < 3:
        return {}
    calls = [sample.get("calls", 0) for sample in steady]
    times = unexplained(range(len(steady)), calls)
    figures = {
        what: unexplained([sample[what] for sample in steady], calls) for what in HELD if what in steady[0]
    }
    slopes = {what: statistics.linear_regression(times, values).slope for what, values in figures.items()}
    return by_thirds(samples) | {what: slope * (len(steady) - 1) for what, slope in slopes.items()}


def unexplained(values: Sequence[float], calls: Sequence[float]) -> list[float]:
    """What is left of them beside a line over the calls."""
    if len(set(calls)) == 1:
        return list(values)
    slope, start = statistics.linear_regression(calls, values)
    return [value - start - slope * call for value, call in zip(values, calls, strict=True)]


async def beat(run: Run, until: float) -> None:
    """Print a line each minute, and do what a control does each second."""
    seconds = 0
    while time.monotonic() < until:
        await asyncio.sleep(1)
        CONTROLS.get(run.arguments.control, nothing)(run)
        seconds += 1
        if seconds % 60 == 0:
            now = ", ".join(f"{what} {value:,.0f}" for what, value in figures().items())
            print(f"minute {seconds // 60} | {line(run)} | {now}", flush=True)


def figures() -> dict[str, float]:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE") / MB,
        "blocks": sys.getallocatedblocks() / 1000,
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208  # one of them is its own
        "tasks": len(asyncio.all_tasks()),
    }


def line(run: Run) -> str:
    parts = [f"{time.process_time():6.0f} s CPU"]
    for account in run.accounts:
        facts = account.facts
        parts.append(
            f"{account.name}: {facts.get('posts', 0):,} POSTs, {facts.get('tasks', 0):,} tasks, "
            f"{account.answered:,} ids, {account.stored:,} stored, {facts.get('twice', 0)} twice, "
            f"most {facts.get('most', 0)}"
        )
    return " | ".join([*parts, f"{len(run.unexpected)} unexpected"])


def report(run: Run) -> bool:
    """Print the end; whether everything held."""
    print(line(run))
    print("verbs:", ", ".join(f"{name} {count:,}" for name, count in run.verbs.most_common()))
    print("errors that faults cause:", ", ".join(f"{name} {n:,}" for name, n in run.errors.most_common()))
    for what, values in thirds(run.samples).items():
        print(f"{what:12} {' → '.join(f'{value:,.1f}' for value in values)} (thirds of the run)")
    for account in run.accounts:
        for example in account.examples[:5]:
            print(f"{account.name}: not in the store: {example}")
    for text in run.unexpected[:5]:
        print("UNEXPECTED", text)
    held = checks(run)
    for what, good in held.items():
        print("ok    " if good else "FAILED", what)
    return all(held.values())


# -- controls ------------------------------------------------------------------------------------

_kept: list[Any] = []


def leak_descriptor(run: Run) -> None:
    if len(_kept) < 500:
        _kept.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(20))


def leak_memory(run: Run) -> None:
    _kept.append(os.urandom(MB))


def leak_task(run: Run) -> None:
    _kept.extend(asyncio.create_task(asyncio.sleep(3600)) for _ in range(10))


def log_error(run: Run) -> None:
    logging.getLogger("kie4o").error("an error that no fault explains")


def nothing(run: Run) -> None:
    """What breaks something elsewhere."""


async def pay_twice(client: AsyncKieClient) -> None:
    for _ in range(2):
        with contextlib.suppress(KieError):
            await client.submit("the same prompt")


# Called once a second. "forget" is a `ForgetfulStore`, and "burst" a client with three times the limit.
CONTROLS: dict[str, Callable[[Run], None]] = {
    "forget": nothing,
    "burst": nothing,
    "twice": nothing,
    "descriptor": leak_descriptor,
    "memory": leak_memory,
    "task": leak_task,
    "error": log_error,
}


# -- the program ---------------------------------------------------------------------------------


@contextlib.contextmanager
def emulators(seed: int, *words: str) -> Iterator[list[str]]:
    """The addresses of the accounts, and of what is known about them."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.faulty",
        "--seed",
        str(seed),
        "--per",
        str(LIMIT.per),
        *words,
    ]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **streams) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


async def soak(run: Run, folder: Path) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: run.surprise(f"the loop: {context}"))
    until = time.monotonic() + run.arguments.minutes * 60
    beating = asyncio.create_task(beat(run, until))
    file, memory = run.accounts
    users = [with_file(run, file, folder, until), with_memory(run, memory, folder, until)]
    for outcome in await asyncio.gather(*users, return_exceptions=True):
        if isinstance(outcome, BaseException):
            run.surprise("".join(traceback.format_exception(outcome)))
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
    gc.collect()
    left = [task.get_name() for task in asyncio.all_tasks() if "kie4o" in task.get_name()]
    if left:
        run.surprise(f"tasks are left after closing: {left}")


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--workers", type=int, default=24, help="of each client")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--control", choices=CONTROLS, help="break this; the status must be 1")
    arguments = parser.parse_args()
    warnings.simplefilter("always")
    logging.captureWarnings(True)
    with emulators(arguments.seed) as (file, memory, facts), tempfile.TemporaryDirectory() as folder:
        accounts = [Account("file", file), Account("memory", memory)]
        run = Run(arguments, random.Random(arguments.seed), facts, accounts)
        logging.getLogger().addHandler(Log(run))
        with asyncio.Runner(loop_factory=loop_factory(arguments.loop)) as runner:
            print(f"{arguments.minutes:g} minutes on {type(runner.get_loop()).__module__}", flush=True)
            runner.run(soak(run, Path(folder)))
        held = report(run)
    sys.exit(not held)


if __name__ == "__main__":
    main()
