"""What the pages say is sent again, repeated and polled again is what the code does, for every code.

The tables are read as a person reads them, and held against the verdict, the plan and the error of each
answer: each code in Kie's JSON, and each HTTP status without it. The control changes every cell.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Coroutine, Iterator
from functools import cache
from typing import Any

import attrs
import pytest
from clients import client_of
from clocks import run_scaled
from faults import Connection, FaultServer, http, unused_port
from pages import section, table

import kie4o
from kie4o import RateLimit, errors
from kie4o.errors import worth_repeating
from kie4o.polling.findings import REFUSALS, REFUSED_FOR, weigh
from kie4o.polling.watches import Watch
from kie4o.submission.resending import resend_after
from kie4o.submission.verdict import Judgement, Verdict, judge
from kie4o.transport.retrying import TRIES
from kie4o.wire.envelope import data_of, status_error
from kie4o.wire.record_info import details_of

pytestmark = pytest.mark.once

Row = list[str]
Rows = list[Row]
PAGE = b"<html>a page of a proxy</html>"
EMPTY = "Your credits are insufficient"
CODES = [*range(100, 600), 777, 999]
VERDICTS = {
    "nothing was started": Verdict.NOT_SENT,
    "refused": Verdict.REFUSED,
    "it may have been charged": Verdict.UNKNOWN,
}


def body_of(code: int, message: str = "no") -> bytes:
    return json.dumps({"code": code, "msg": message, "data": None}).encode()


def numbers(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\b\d{3}\b", text)}


# -- submits: what the table says ------------------------------------------------------------------


@attrs.frozen
class Plan:
    """What an attempt comes to, how often it is sent again, and after which delays."""

    verdict: Verdict | None
    times: int
    after: str


class Documented:
    """The table, row by row. A row that cannot be told from another is None."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._named: dict[int, list[Row]] = {}
        for row in rows:
            for code in numbers(re.sub(r"\(.*?\)|but \d+", "", row[0])):  # these are excepted
                self._named.setdefault(code, []).append(row)
        self.not_sent = self._about("it was not sent")
        self.lost = self._about("connection lost, timeout")
        self.redirect = self._about("redirect")
        self.unreadable = self._about("unreadable response")
        self.no_credits = self._about("any code but 200 .*credits are insufficient")
        self._any_code = self._about("any other code")
        self._any_4xx = self._about(r"another HTTP 4xx .*without Kie's JSON")
        self._any_5xx = self._about("a 5xx without Kie's JSON")
        self._not_any_4xx = numbers(" ".join(re.findall(r"\(except .*?\)", (self._any_4xx or [""])[0])))

    def _about(self, words: str) -> Row | None:
        return self._only([row for row in self._rows if re.search(words, row[0])])

    def _only(self, rows: list[Row]) -> Row | None:
        return rows[0] if len(rows) == 1 else None

    def of_code(self, code: int) -> Row | None:
        named = self._named.get(code)
        return self._only(named) if named else self.unreadable if code == 200 else self._any_code

    def of_status(self, status: int) -> Row | None:
        if status >= 500:
            return self._any_5xx
        if status < 400:
            return self.redirect if status >= 300 else self.unreadable
        named = self._named.get(status)
        return self._only(named) if named else None if status in self._not_any_4xx else self._any_4xx


def plan_in(row: Row | None) -> Plan | None:
    if row is None:
        return None
    _, often, after, why = row
    verdict = next((verdict for words, verdict in VERDICTS.items() if words in why), None)
    often = "0 times" if often == "never" else often
    return Plan(verdict, int(often.removesuffix(" times")), after)


# -- submits: what the code does -------------------------------------------------------------------


def plan_of(judgement: Judgement) -> Plan:
    _, resend = resend_after(judgement)
    if resend is None:
        return Plan(judgement.verdict, 0, "")
    limit = "up to " if resend.jitter else ""
    delays = [f"{limit}{resend.delay(sent, 1.0):g} s" for sent in range(resend.times)]
    return Plan(judgement.verdict, resend.times, ", ".join(delays) if not resend.window else WINDOW)


WINDOW = "`rate_limit.per`, for all submits"


@cache
def answers() -> dict[str, tuple[Callable[[Documented], Row | None], Plan]]:
    """Each way that an attempt can go: the row that is about it, and what the code makes of it."""
    cases: dict[str, tuple[Callable[[Documented], Row | None], Judgement]] = {
        "not sent": (lambda table: table.not_sent, judge(sent=False, fault="cannot connect")),
        "lost": (lambda table: table.lost, judge(sent=True, fault="the connection broke")),
        "timeout": (lambda table: table.lost, judge(sent=True, fault="timed out")),
        "empty": (lambda table: table.unreadable, judge(sent=True, status=200)),
    }
    for code in CODES:
        cases |= {
            f"code {code} in HTTP {status}": (
                lambda table, code=code: table.of_code(code),
                judge(sent=True, status=status, body=body_of(code)),
            )
            for status in (200, code)
        }
        if code != 200:
            cases[f"code {code}, no credits"] = (
                lambda table: table.no_credits,
                judge(sent=True, status=200, body=body_of(code, EMPTY)),
            )
        if code < 600:
            cases[f"HTTP {code}"] = (
                lambda table, code=code: table.of_status(code),
                judge(sent=True, status=code, body=PAGE),
            )
    return {name: (row, plan_of(judgement)) for name, (row, judgement) in cases.items()}


def differences(rows: Rows) -> Iterator[str]:
    documented = Documented(rows)
    plans = {id(row): plan_in(row) for row in rows}
    for name, (row_of, plan) in answers().items():
        described = plans.get(id(row_of(documented)))
        if described != plan:
            yield f"{name}: {plan} is described as {described}"


def resent_rows() -> Rows:
    return table("what happened to a submit").rows


def test_the_table_of_resends_is_what_is_done_with_each_answer() -> None:
    """The verdict, how often a submit is sent again, and the delays: of every code, every HTTP status without
    Kie's JSON, and every code whose message says that the credits are insufficient."""
    assert list(differences(resent_rows())) == []


def changes(rows: Rows) -> Iterator[Rows]:
    """Each row left out, each number in each cell changed or left out, each reason exchanged."""
    for at, row in enumerate(rows):
        yield [*rows[:at], *rows[at + 1 :]]
        for column, cell in enumerate(row[:3]):
            for match in re.finditer(r"\b\d+(?:\.\d)?\b", cell):
                for other in ("", "7", "418"):
                    changed = f"{cell[: match.start()]}{other}{cell[match.end() :]}"
                    if not (column == 1 and not other):
                        yield [*rows[:at], [*row[:column], changed, *row[column + 1 :]], *rows[at + 1 :]]
        yield [
            *rows[:at],
            [*row[:3], "it may have been charged" if "refused" in row[3] else "refused"],
            *rows[at + 1 :],
        ]
        often = "1 times" if row[1] == "never" else "never"
        yield [*rows[:at], [row[0], often, *row[2:]], *rows[at + 1 :]]


def test_every_change_of_the_table_is_seen() -> None:
    """The control."""
    tables = list(changes(resent_rows()))
    assert len(tables) > 100
    unseen = [rows for rows in tables if not any(differences(rows))]
    # 500 and 501 are examples of "any other code", and 408 is in the row above it and excepted in this one.
    assert len(unseen) == 2 * len({"500", "501", "408"})


# -- submits: what a client really does -------------------------------------------------------------


class Kie(FaultServer):
    """Answers each submit with the code or the HTTP status that its prompt names."""

    def __init__(self) -> None:
        super().__init__(self._serve_all)
        self.prompts: list[str] = []

    async def _serve_all(self, connection: Connection) -> None:
        while True:
            prompt = json.loads(await connection.request())["prompt"]
            self.prompts.append(prompt)
            kind, number = prompt.split()
            body, status = (PAGE, f"{number} X") if kind == "HTTP" else (body_of(int(number)), "200 OK")
            if kind == "empty":
                body = body_of(int(number), EMPTY)
            await connection.send(http(body, status))


LINE = re.compile(r"a submit is sent again in ([\d.]+) s \(\d of (\d)\): (.*)")


def test_a_client_sends_again_what_the_table_says(caplog: pytest.LogCaptureFixture) -> None:
    """Each cause that is sent again, until it is raised: the log has the figures of the table."""
    caplog.set_level(logging.INFO, "kie4o")
    rows = [row for row in resent_rows() if row[1] != "never"]

    async def attempt(url: str, prompt: str) -> None:
        async with client_of(url, rate_limit=RateLimit(20, per=10.0), timeout=10_000) as client:
            with pytest.raises(kie4o.KieError) as caught:
                await client.submit(prompt)
        assert getattr(caught.value, "retryable", True), prompt

    async def run() -> list[str]:
        async with Kie() as kie:
            prompts = [f"code {code}" for row in rows for code in numbers(row[0])] + ["HTTP 455"]
            calls = [attempt(kie.url, prompt) for prompt in prompts]
            await asyncio.gather(*calls, attempt(f"http://127.0.0.1:{unused_port()}", "code 200"))
            return kie.prompts

    prompts = run_scaled(run(), 1000)
    found = (LINE.fullmatch(record.getMessage()) for record in caplog.records)
    lines = [match.groups() for match in found if match]
    for what, often, after, _ in rows:
        for cause in map(str, numbers(what) or {"no answer"}):
            times = int(often.split()[0])
            said = [line for line in lines if line[2].startswith(cause)]
            several = 2 if cause == "455" else 1  # in Kie's JSON, and as an HTTP status
            assert len(said) == several * times
            assert {line[1] for line in said} == {str(times)}
            if cause != "no answer":
                assert prompts.count(f"code {cause}") == 1 + times
            limits = [float(number) for number in re.findall(r"([\d.]+) s", after)] or [10.0] * times
            for limit, figure in zip(
                sorted(limits * several), sorted(float(line[0]) for line in said), strict=True
            ):
                assert figure <= limit if "up to" in after else figure == pytest.approx(limit, abs=1.0)


async def test_a_client_sends_nothing_again_that_is_never_sent_again() -> None:
    """And the error of what was refused says so: `retryable` is False."""
    rows = [row for row in resent_rows() if row[1] == "never"]
    again = set[int]().union(*(numbers(row[0]) for row in resent_rows() if row[1] != "never"))
    named = set[int]().union(*(numbers(row[0]) for row in rows))
    prompts = [f"code {code}" for code in sorted({*named, 418, 531, 599, 777})]
    prompts += [f"HTTP {status}" for status in sorted({*range(400, 430), *range(500, 506), 550, 302} - again)]
    prompts += [f"empty {code}" for code in sorted({*named, *again})]
    async with Kie() as kie, client_of(kie.url, rate_limit=RateLimit(1000, per=1.0)) as client:
        found = await asyncio.gather(*(_error_of(client.submit(prompt)) for prompt in prompts))
        assert sorted(kie.prompts) == sorted(prompts)
    for prompt, error in zip(prompts, found, strict=True):
        documented, (kind, number) = Documented(resent_rows()), prompt.split()
        row = documented.of_status(int(number)) if kind == "HTTP" else documented.of_code(int(number))
        if kind == "empty" and number != "200":
            assert isinstance(error, kie4o.InsufficientCreditsError), prompt
            row = documented.no_credits
        plan = plan_in(row)
        assert plan is not None
        refused = isinstance(error, kie4o.APIStatusError) and not error.retryable
        assert refused or isinstance(error, kie4o.SubmissionUnknownError), prompt
        assert refused == (plan.verdict is Verdict.REFUSED), prompt


async def _error_of(call: Coroutine[Any, Any, object]) -> Exception:
    with pytest.raises(kie4o.KieError) as caught:
        await call
    return caught.value


# -- free calls and polls ----------------------------------------------------------------------------


def codes_in(text: str) -> set[int]:
    """The codes of a list such as "408, 5xx except 505"."""
    text, _, excepted = text.partition("except")
    return (numbers(text) | ({*range(500, 600)} if "5xx" in text else set())) - numbers(excepted)


def failure(read: Callable[[], object]) -> Exception:
    with pytest.raises(kie4o.KieError) as caught:
        read()
    return caught.value


def test_free_calls_are_repeated_after_what_is_listed() -> None:
    """Every code in Kie's JSON, every HTTP status without it; never an empty balance."""
    prose = section("What is sent again").prose
    words = re.search(
        rf"made up to {TRIES} times, after connection errors, unreadable responses and the codes (.*?)\. A "
        r"message that the credits are insufficient ends them",
        prose,
    )
    assert words
    listed = codes_in(words[1])
    for code in [code for code in CODES if code != 200]:
        error = failure(lambda code=code: data_of(200, body_of(code)))
        assert worth_repeating(error) == (code in listed), code
        assert not worth_repeating(failure(lambda code=code: data_of(200, body_of(code, EMPTY)))), code
        if code < 600:
            bare = failure(lambda code=code: data_of(code, PAGE))
            assert worth_repeating(bare) == (code in listed or code < 400), code
    assert worth_repeating(kie4o.APIConnectionError("x"))
    assert codes_in(words[1].replace("451, ", "")) != listed != codes_in(words[1].replace("except 505", ""))


def test_polls_are_repeated_after_what_is_listed() -> None:
    """The row of temporary errors has every code that does not count as a refusal."""
    rows = {row[0].partition(":")[0]: row for row in table("what Kie reports", "the wait").rows}
    temporary, refusal = rows["a temporary error"], rows["a refusal"]
    listed = codes_in(temporary[0])
    counted = set()
    for code in [code for code in CODES if code not in (200, 404, 422)]:  # these say something about the task
        watch = Watch("t", 0.0)
        for now in (0.0, REFUSED_FOR, REFUSED_FOR + 1.0):
            ended = weigh(watch, failure(lambda code=code: details_of("t", 200, body_of(code))), now)
        assert (ended is not None) == (watch.refusals[0] >= REFUSALS)
        counted |= set() if ended is None else {code}
        if code < 600:
            page = failure(lambda code=code: details_of("t", code, PAGE))
            assert worth_repeating(page), code
            assert weigh(Watch("t", 0.0), page, 0.0) is None, code
    assert {*CODES} - counted - {200, 404, 422} == listed
    assert numbers(refusal[0]) <= counted
    assert f"over at least {REFUSED_FOR:g} s" in refusal[1]


# -- errors ------------------------------------------------------------------------------------------


def error_rows() -> Iterator[tuple[type[kie4o.KieError], str, str]]:
    for first, meaning, remedy in table("error", "meaning", "remedy").rows:
        [name, *_] = re.findall(r"`(\w+)`", first)
        yield getattr(errors, name), meaning, remedy


def test_the_codes_in_the_error_table_are_those_that_have_the_class() -> None:
    """In both directions, for every code; a 5xx without a class of its own is in the row of "another 5xx"."""
    named = {
        kind: numbers(meaning) for kind, meaning, _ in error_rows() if issubclass(kind, errors.APIStatusError)
    }
    rest = next(kind for kind, meaning, _ in error_rows() if "another 5xx" in meaning)
    elsewhere = set[int]().union(*(codes for kind, codes in named.items() if kind is not rest))
    named[rest] |= {*range(500, 600)} - elsewhere
    for code in CODES:
        kind = type(status_error(code, "no"))
        assert code in named[kind] or kind is errors.APIStatusError, code
        assert not any(code in codes for other, codes in named.items() if other is not kind), code


def test_the_error_table_says_what_may_be_repeated() -> None:
    """`retryable` is True exactly where a row speaks of retries or of trying again, and the classes of what
    is sent again say that it was."""
    rows = [row for row in error_rows() if issubclass(row[0], errors.APIStatusError)]
    for kind, meaning, remedy in rows:
        says_so = "after the retries" in meaning or remedy.startswith("try again")
        assert kind.retryable == says_so or kind is errors.APIStatusError, kind
    resent = [code for row in resent_rows() if row[1] != "never" for code in numbers(row[0])]
    assert {kind for kind, meaning, _ in rows if "even after the retries" in meaning} == {
        type(status_error(code, "")) for code in resent
    }


def test_the_attributes_in_the_error_table_exist() -> None:
    """What a row names in backticks after its colon is an attribute of every such error."""
    for kind, meaning, _ in error_rows():
        for name in re.findall(r"`([a-z_]+)`", meaning.partition(":")[2]):
            assert hasattr(kind("x"), name), (kind, name)
