"""Defaults, variables, the answers of a receiver and the figures in the pages are those of the code."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from clients import QUICK
from pages import section, table, text

import kie4o
from kie4o import AsyncKieClient, sign_callback
from kie4o.arguments import MAX_KEY
from kie4o.batch import batch
from kie4o.callbacks import parsing, receiving
from kie4o.closing import CLOSING
from kie4o.details import EXPIRY
from kie4o.emulator import Emulator
from kie4o.files import downloads, transfers
from kie4o.polling import findings, policy, trust
from kie4o.settings import Secret
from kie4o.stores import guard, memory
from kie4o.stores.postgres import address, database, process, window
from kie4o.stores.store import PROMPT_SHOWN
from kie4o.submission import submissions
from kie4o.webhooks import asgi_app

pytestmark = pytest.mark.once

Rows = list[list[str]]
VARIABLE = re.compile(r"`(KIE_\w+)`")


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def value_of(cell: str) -> object:
    """The value that a cell names, as Python reads it."""
    return eval(cell.strip("`"), {"RateLimit": kie4o.RateLimit})


# -- defaults --------------------------------------------------------------------------------------


def wrong_defaults(rows: Rows) -> list[str]:
    """The arguments whose cell is another value than the default. None may be a variable instead."""
    parameters = inspect.signature(AsyncKieClient).parameters
    found = []
    for first, cell, *_ in rows:
        for name in names(first):
            default = parameters[name].default
            by_variable = default is None and VARIABLE.match(cell) is not None
            if not by_variable and repr(value_of(cell)) != repr(default):
                found.append(name)
    return found


def test_every_default_of_a_setting_is_that_of_the_constructor() -> None:
    """Of numbers, flags and values; None where there is none, or the variable that is read."""
    assert wrong_defaults(table("argument", "default").rows) == []


def test_every_default_of_a_setting_that_differs_is_seen() -> None:
    """The control: each in turn is something else."""
    rows = table("argument", "default").rows
    plain = [row for row in rows if not VARIABLE.match(row[1])]
    assert len(plain) >= 12
    for row in plain:
        for other in ("31.0", "True", "'x'"):
            if other != row[1]:
                changed = [[each[0], other] if each is row else each for each in rows]
                assert wrong_defaults(changed) == names(row[0]), row


def wrong_calls(rows: Rows) -> list[str]:
    """The calls with an argument whose default is not that of the method."""
    found = []
    for first, *_ in rows:
        name, arguments = re.findall(r"client\.(\w+)\((.*)\)`", first)[0]
        parameters = inspect.signature(getattr(AsyncKieClient, name)).parameters
        for argument, default in re.findall(r'(\w+)=("[^"]*"|[^,)]+)', arguments):
            if repr(value_of(default)) != repr(parameters[argument].default):
                found.append(name)
    return found


def test_every_default_of_a_call_is_that_of_the_method() -> None:
    """In the table of calls; and, as the control, a call with another one is seen."""
    rows = table("call", "does").rows
    assert wrong_calls(rows) == []
    with_defaults = [row for row in rows if "=" in row[0]]
    for row in with_defaults:
        changed = [re.sub(r'=("[^"]*"|[^,)]+)', "=5", row[0], count=1), *row[1:]]
        assert wrong_calls([changed]), row


# -- variables -------------------------------------------------------------------------------------


def revealed(value: object) -> object:
    if isinstance(value, Secret):
        return value.reveal()
    return [revealed(each) for each in value] if isinstance(value, tuple) else value


def setting(argument: str, **more: Any) -> object:
    found = revealed(getattr(AsyncKieClient(**more)._settings, argument))
    return found[0] if isinstance(found, list) and found else found


def test_every_variable_is_read_for_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without white space around it. An argument comes before it, and a blank one counts as unset."""
    rows = table("variable", "used for").rows
    documented = {names(first)[0]: names(used)[0] for first, used, *_ in rows}
    assert len(documented) >= 5
    for variable, argument in documented.items():
        first, second = ("http://127.0.0.1:81", "http://127.0.0.1:82")
        if argument.endswith("_key"):
            first, second = ("k-0123456789", "k-abcdefghij")
        key = {} if argument == "api_key" else {"api_key": "k-0000000000"}
        monkeypatch.setenv(variable, f" {first}\n")
        assert setting(argument, **key) == first, variable
        assert setting(argument, **key | {argument: second}) == second, variable
        monkeypatch.setenv(variable, " \t")
        if argument == "api_key":
            with pytest.raises(kie4o.ConfigurationError):
                AsyncKieClient()
        else:
            assert setting(argument, **key) != first, variable
        monkeypatch.delenv(variable)


def test_a_variable_comes_after_the_one_that_its_row_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """`KIE_AI_API_KEY` counts if `KIE_API_KEY` is not set; and the table of arguments has that order."""
    rows = table("variable", "used for").rows
    [(second, first)] = [(names(row[0])[0], names(row[1])[1]) for row in rows if len(names(row[1])) > 1]
    monkeypatch.setenv(second, "k-second-key")
    assert setting("api_key") == "k-second-key"
    monkeypatch.setenv(first, "k-first-key")
    assert setting("api_key") == "k-first-key"
    [cell] = [row[1] for row in table("argument", "default").rows if row[0] == "`api_key`"]
    assert VARIABLE.findall(cell) == [first, second]


# -- the answers of a receiver ------------------------------------------------------------------------


async def never() -> AsyncIterator[bytes]:
    await asyncio.sleep(3600)
    yield b""


class Broken(memory.MemoryStore):
    """Fails once it is told to."""

    broken = False

    async def find(self, **by: Any) -> Any:
        if self.broken:
            raise kie4o.StoreError("the disk is full")
        return await super().find(**by)


class Answers:
    """Posts callbacks of one task to a receiver, and notes the status for each cause."""

    def __init__(self, client: AsyncKieClient, task_id: str, ref: str) -> None:
        self.client = client
        self.receiver = client.receiver()
        self.task_id = task_id
        self.ref = ref
        self.statuses: dict[str, int] = {}
        self._now = time.time()

    async def post(
        self, why: str, content: Any = None, *, ref: str = "", old: float = 0.0, **more: str
    ) -> None:
        self._now -= 1.0  # no callback is the repetition of another
        task_id = more.pop("task_id", self.task_id)
        body = b'{"code":200,"msg":"m","data":{"taskId":"%s","info":null}}' % task_id.encode()
        headers = sign_callback(task_id, key="w", timestamp=self._now - old)
        headers |= {"Content-Type": "application/json"}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        content = body if content is None else content
        status = await self.receiver.receive(headers.items(), content, ref or self.ref)
        self.statuses[why] = int(status)

    async def get(self, why: str) -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        await asgi_app(self.client)(scope, never, send)  # type: ignore[arg-type]  # it reads no body
        self.statuses[why] = sent[0]["status"]


async def answers_of(kie: Emulator, api_key: str) -> dict[str, int]:
    """The status that each cause really has."""
    kie.plan("x", callback="never")
    store = Broken()
    settings: dict[str, Any] = {"base_url": kie.url, "poll": QUICK, "store": store, "webhook_key": "w"}
    client = AsyncKieClient(api_key, callback_url="https://me.example/kie/{ref}", **settings)
    async with client:
        task = await client.submit("x")
        ref = kie.tasks[task.id].request["callBackUrl"].rpartition("/")[2]
        here = Answers(client, task.id, ref)
        await here.post("no JSON object", b"[]")
        await here.post("no task id", b"{}")
        await here.post("signature missing", X_Webhook_Signature="")
        await here.post("wrong", X_Webhook_Signature="AAAA")
        await here.post("too old", old=1e5)
        await here.post("no request of this client has this ref", ref="x" * 24)
        await here.post("it belongs to another task", task_id="0" * 32)
        await here.get("not a POST")
        await here.post("the body took longer", never())
        await here.post("larger than 64 KiB", b" " * (parsing.MAX_BODY + 1))
        await here.post("compressed", Content_Encoding="gzip")
        await here.post("not `application/json`", Content_Type="text/plain")
        here.receiver = client.receiver(pending=0)
        await here.post("too many unconfirmed callbacks")
        here.receiver = client.receiver()
        store.broken = True
        await here.post("the store failed")
        store.broken = False
        await here.post("accepted")
        await task
        await here.post("accepted before")
    await here.post("the client is closed")
    return here.statuses


def wrong_answers(rows: Rows, statuses: dict[str, int]) -> list[str]:
    """The causes that are in another row, and the rows without a cause."""
    described = {status: why for status, why, *_ in rows}
    wrong = [cause for cause, status in statuses.items() if cause not in described.get(str(status), "")]
    return wrong + [status for status in described if int(status) not in statuses.values()]


async def test_the_answers_of_a_receiver_are_those_of_the_table(
    api_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cause in a row is provoked; the control exchanges each two rows."""
    monkeypatch.setattr(receiving, "BODY_TIMEOUT", 0.05)
    async with Emulator(duration=0.0) as kie:
        statuses = await answers_of(kie, api_key)
    rows = table("status", "when").rows
    assert wrong_answers(rows, statuses) == []
    for one, other in itertools.pairwise(rows):
        exchanged = [
            [other[0], one[1]] if row is one else [one[0], other[1]] if row is other else row for row in rows
        ]
        assert wrong_answers(exchanged, statuses)
    assert wrong_answers([*rows, ["418", "never"]], statuses) == ["418"]


# -- figures ---------------------------------------------------------------------------------------

FIGURES = [
    f"closing takes {CLOSING:g} seconds at most",
    f"Closing takes {CLOSING:g} s at most",
    f"by up to {submissions._LONGEST_RETRY_AFTER:g} s",
    f"third in a row over at least {findings.REFUSED_FOR:g} s",
    f"Each call of the store is given up after {guard.LIMIT:g} seconds",
    f"longer than {receiving.BODY_TIMEOUT:g} seconds",
    f"does not answer for {transfers.STUCK:g} seconds",
    f"at most {downloads.MAX_REDIRECTS} redirects",
    f"{transfers.MAX_CONCURRENT} images per call",
    f"at least {transfers.UPLOAD_TIMEOUT:g}",
    f"the last {memory.KEPT:,} keys",
    f"up to {memory.MOST:,} in all",
    f"can be fetched for {EXPIRY / 86_400:g} days",
    f"The first poll comes after {policy.SAFETY_NET[0]:g} seconds",
    f"next ones every {policy.SAFETY_NET[1]:g} seconds",
    f"a lease of 30 s, renewed every {process.RENEWAL:g} s",
    f"A statement is repeated for up to {database.OUTAGE + 1:g} s",
    f"A slot must be used within {window.GOOD:g} s after it was asked for",
    f"submits pause for the window and {2 * window.GOOD:g} s",
]
WORDS = {3: "three", 5: "five", 0.5: "half a second"}


def missing_figures(pages: str) -> list[str]:
    return [figure for figure in figures() if figure.lower() not in pages.lower()]


def figures() -> Iterator[str]:
    yield from FIGURES
    yield f"one poll counts as {WORDS[policy.PollPolicy.adaptive().price or 0.0]}"
    yield f"{WORDS[batch.MAX_UNKNOWN]} lost answers in a row"
    yield f"after {WORDS[findings.REFUSALS]} in a row"
    yield f"{WORDS[trust._WEIGHT]} callbacks that arrive make up for one"
    yield f"A key is 1 to {MAX_KEY} printable characters"
    yield f"except for their first {PROMPT_SHOWN} characters"


def test_the_figures_in_the_prose_are_those_of_the_code() -> None:
    """And, as the control, none is found where its number is another."""
    assert missing_figures(text()) == []
    assert len(missing_figures(re.sub(r"\d|three|(?i:five)|half", "0", text()))) == len([*figures()])


def test_the_words_of_the_url_of_a_database_are_those_of_the_code() -> None:
    """All of them, and the schema that is the default."""
    rows = table("in the URL", "meaning", "default").rows
    assert sorted(row[0] for row in rows) == sorted(f"`?{word}=`" for word in address._OURS)
    assert [row[2] for row in rows if row[0] == "`?schema=`"] == [f"`{address.SCHEMA}`"]


def number(cell: str) -> float:
    """A cell as it is read: "17 million, 26 GB" is 17,000,000."""
    figure, _, scale = cell.partition(", ")[0].partition(" ")
    return float(figure.replace(",", "")) * {"million": 1e6, "billion": 1e9}.get(scale, 1.0)


def test_the_arithmetic_of_accounts_adds_up() -> None:
    """Two slots a second for each, the cores at what was measured for a request, and a day of entries."""
    requests = table("", "per second", "CPU of the server for one").rows[2:]
    [cpu] = {float(row[2].removesuffix(" ms")) / 1000 for row in requests}
    for accounts, use, per_second, cores, entries in table("accounts", "use").rows:
        share = 0.01 if use.startswith("1 %") else 1.0
        assert number(per_second) == pytest.approx(2 * share * number(accounts))
        assert number(cores) == pytest.approx(number(per_second) * cpu, rel=0.2)
        assert number(entries) == pytest.approx(number(per_second) * 86_400, rel=0.05)


def test_the_errors_that_stop_a_batch_are_those_of_the_list() -> None:
    """In the section about it."""
    part = section("When a batch stops").text
    [listed] = re.findall(r"^- (`\w+Error`(?:, `\w+Error`)*)$", part, re.MULTILINE)
    assert names(listed) == [kind.__name__ for kind in batch.STOPPING]
