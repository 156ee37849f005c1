"""The grammar of faults, whose turn it is, what did not fire, and prompts that say what happens."""

from __future__ import annotations

import json
import random
import re
import tomllib
from typing import Any, get_args

import attrs
import pytest
from faulty import VARIANTS
from paths import DOCS, PACKAGE

from kie4o.emulator import Arrival, Emulator, Fault, Outcome, parse_fault
from kie4o.emulator.effects import CODES, EFFECTS, KINDS, OPTIONS, VALUES, WHEN, Kind, as_markdown
from kie4o.emulator.fault_queue import Faults
from kie4o.emulator.faults import FaultOptions
from kie4o.emulator.magic import ANSWERS, NAMES, magic_of
from kie4o.emulator.tasks import MESSAGES, OUTCOMES
from kie4o.emulator.variants import PAGES

LAKE = {"prompt": "A calm lake", "size": "1:1"}


# The grammar -----------------------------------------------------------------------------------------


def test_one_table_is_the_grammar() -> None:
    """The fields of a fault, those for type checkers and the rows of the tables are the same."""
    fields = [field.name for field in attrs.fields(Fault)]
    assert fields[0] == "kind"
    assert (
        set(fields[1:]) == set(FaultOptions.__annotations__) == WHEN.keys() | EFFECTS.keys() | OPTIONS.keys()
    )
    assert VALUES.keys() == set(fields[1:])
    assert get_args(Kind) == KINDS
    for effect in EFFECTS.values():
        assert set(effect.options) <= OPTIONS.keys()
        assert set(effect.kinds) <= set(KINDS)
    options = {option for effect in EFFECTS.values() for option in effect.options}
    assert options == OPTIONS.keys()
    assert set(MESSAGES) < set(CODES)


def test_the_documentation_has_the_tables() -> None:
    """Word for word; `as_markdown` prints them."""
    assert as_markdown() in (DOCS / "testing.md").read_text("utf-8")
    assert all(f'| `"{name}"` |' in as_markdown() for table in VARIANTS.values() for name in table)
    assert not re.search(r"\|.*\n(?!\|)\|", as_markdown())


SAMPLES: dict[str, Any] = {
    "code": 455,
    "page": "empty",
    "body": "{}",
    "http_status": 503,
    "redirect": "/there",
    "headers": {"X-Odd": "yes"},
    "record": "lag",
    "image": "cut",
    "reset": "after",
    "cut": -1,
    "stall": 5,
    "drip": 1.5,
    "framing": "too_long",
    "open_ended": True,
    "refuse": 5,
    "by": lambda arrival: None,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("effect", EFFECTS)
def test_an_effect_is_for_its_kinds_only(effect: str, kind: Any) -> None:
    """For any other kind it is an error that names the effects there are."""
    if kind in EFFECTS[effect].kinds:
        fault = Fault(kind, **{effect: SAMPLES[effect]})
        assert fault.effect == effect
        assert fault.times == 1
        return
    with pytest.raises(ValueError, match=f"could never fire: {effect} is for .*the effects for {kind} are"):
        Fault(kind, **{effect: SAMPLES[effect]})


@pytest.mark.parametrize(("first", "second"), [("code", "page"), ("cut", "stall"), ("code", "drip")])
def test_two_effects_contradict_each_other(first: str, second: str) -> None:
    with pytest.raises(ValueError, match=f"has {first} and {second}, which contradict each other"):
        Fault("submit", **{first: SAMPLES[first], second: SAMPLES[second]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "sumbit", "code": 455}, "invalid kind='sumbit': expected one of submit, look"),
        ({"code": 455}, "a fault without a kind: expected kind to be one of submit"),
        ({"kind": "submit", "cdoe": 455}, r"unknown field 'cdoe' .* \(did you mean code\?\): expected"),
        ({"kind": "submit", 7: 455}, "unknown field 7 of a fault: expected some of kind, times"),
        ({"kind": "submit"}, "has no effect: expected exactly one of code, page"),
        ({"kind": "submit", "code": 456}, "invalid code=456: expected one of 200, 400, 401"),
        ({"kind": "submit", "code": "455"}, "invalid code='455'"),
        ({"kind": "submit", "code": True}, "invalid code=True"),
        ({"kind": "submit", "page": "html"}, "invalid page='html': expected one of bad_gateway"),
        ({"kind": "submit", "page": ["empty"]}, "invalid page="),
        ({"kind": "submit", "code": 455, "times": 0}, "invalid times=0: .*would never fire"),
        ({"kind": "submit", "code": 455, "times": "twice"}, 'invalid times=.twice.: expected an integer'),
        ({"kind": "submit", "code": 455, "probability": 0}, "invalid probability=0: .*would never fire"),
        ({"kind": "submit", "code": 455, "probability": 1.5}, "invalid probability=1.5"),
        ({"kind": "submit", "code": 455, "after": -1}, "invalid after=-1: expected an integer, 0 or more"),
        ({"kind": "submit", "code": 455, "lasting": 0}, "invalid lasting=0"),
        ({"kind": "submit", "code": 455, "lasting": 5, "times": 2}, "pass either times or lasting"),
        ({"kind": "submit", "code": 455, "task": "x"}, "could never fire: submit requests have no task"),
        ({"kind": "credits", "code": 455, "prompt": "x"}, "never fire: credits requests have no prompt"),
        ({"kind": "upload", "code": 455, "task": "x"}, "could never fire: upload requests have no task"),
        ({"kind": "look", "code": 455, "charged": True}, "could never fire: look requests are never charged"),
        ({"kind": "submit", "reset": "during"}, "invalid reset='during': expected one of before, after"),
        ({"kind": "submit", "reset": "before", "charged": True}, "use reset='after'"),
        ({"kind": "submit", "reset": "before", "prompt": "x"}, "the prompt is not read before the reset"),
        ({"kind": "submit", "refuse": 5, "times": 2}, "only after goes with refuse"),
        ({"kind": "submit", "refuse": 0}, "invalid refuse=0"),
        ({"kind": "submit", "cut": 0.5}, "invalid cut=0.5: expected a number of bytes"),
        ({"kind": "submit", "stall": -1}, 'stall=-1: expected a number of seconds above 0, or "forever"'),
        ({"kind": "submit", "stall": "long"}, "invalid stall='long'"),
        ({"kind": "submit", "open_ended": False}, "invalid open_ended=False: expected true"),
        ({"kind": "submit", "redirect": "/", "http_status": 200}, "one of the HTTP statuses 301, 302"),
        ({"kind": "submit", "redirect": "/a\r\nb"}, "invalid redirect="),
        ({"kind": "submit", "headers": {"Content-Length": "3"}}, "none of them about framing"),
        ({"kind": "submit", "headers": {"A": "b\r\nc"}}, "invalid headers="),
        ({"kind": "submit", "headers": {}}, "invalid headers="),
        ({"kind": "submit", "code": 429, "retry_after": "date"}, "invalid retry_after='date'"),
        ({"kind": "submit", "code": 429, "retry_after": "1\r\n"}, "invalid retry_after="),
        ({"kind": "submit", "cut": 3, "retry_after": 5}, "retry_after does not go with cut; expected"),
        ({"kind": "submit", "by": "code"}, "invalid by='code': expected a function"),
        (["submit"], "expected a mapping"),
    ],
)  # fmt: skip  # a row is a line
def test_what_is_refused(fields: Any, message: str) -> None:
    """An error says what is wrong with which value, and what is allowed."""
    with pytest.raises(ValueError, match=message):
        parse_fault(fields)


def test_every_spelling_is_the_same_fault() -> None:
    """Python, a marker, JSON and TOML."""
    fault = Fault("look", code=429, times=None, retry_after="date+30", headers={"X-Odd": "yes"})
    fields = {
        "kind": "look",
        "code": 429,
        "times": "always",
        "retry_after": "date+30",
        "headers": {"X-Odd": "yes"},
    }
    toml = 'kind = "look"\ncode = 429\ntimes = "always"\nretry_after = "date+30"\nheaders = {X-Odd = "yes"}'
    assert parse_fault(fields) == fault
    assert parse_fault(json.loads(json.dumps(fields))) == fault
    assert parse_fault(tomllib.loads(toml)) == fault
    assert parse_fault(tomllib.loads('kind = "look"\nstall = inf')) == Fault("look", stall="forever")
    kie = Emulator()
    assert kie.fault("look", **{name: value for name, value in fields.items() if name != "kind"}) == fault
    assert kie.fault(fault) is fault
    with pytest.raises(ValueError, match=r"unknown field 'cdoe' .* \(did you mean code\?\)"):
        kie.fault("submit", cdoe=455)  # type: ignore[call-arg]  # type checkers see it too
    assert str(Fault("submit", code=455, times=2)) == "fault('submit', times=2, code=455)"


# Whose turn it is ------------------------------------------------------------------------------------


def submit(at: float = 0.0, prompt: str = "A calm lake") -> Arrival:
    return Arrival(kind="submit", at=at, prompt=prompt)


def taken(faults: Faults, arrivals: list[Arrival], seed: int = 1) -> list[int | None]:
    """The code that each request gets."""
    chance = random.Random(seed)
    firings = [faults.take(arrival, chance) for arrival in arrivals]
    return [firing.fault.code if firing else None for firing in firings]


def queue(*faults: Fault) -> Faults:
    found = Faults()
    for fault in faults:
        found.add(fault)
    return found


def test_times_and_after() -> None:
    """Each fault counts every request that matches it, also those that another one took."""
    faults = queue(
        Fault("submit", code=455, times=2), Fault("submit", code=550, after=3), Fault("submit", code=500)
    )
    assert taken(faults, [submit()] * 6) == [455, 455, 500, 550, None, None]
    assert faults.unused() == []


def test_conditions() -> None:
    """Only requests of its kind, about its prompt and its task count."""
    faults = queue(Fault("submit", code=455, prompt="a"), Fault("look", code=500, task="t", after=1))
    look = Arrival(kind="look", at=0.0, task="t")
    others = [submit(prompt="b"), Arrival(kind="look", at=0.0, task="u"), look]
    assert taken(faults, [*others, submit(prompt="a"), look, look]) == [None, None, None, 455, 500, None]


def test_lasting() -> None:
    """From its first time on, for so many seconds, however often."""
    faults = queue(Fault("submit", code=455, lasting=60, after=1))
    times = [0.0, 100.0, 100.5, 159.9, 160.0, 300.0]
    assert taken(faults, [submit(at) for at in times]) == [None, 455, 455, 455, None, None]
    assert faults.unused() == []


def test_probability_is_drawn_from_the_seed() -> None:
    """The same seed gives the same requests; another one gives others; about as many as asked for."""
    fault = Fault("submit", code=455, times="always", probability=0.3)
    runs = [taken(queue(fault), [submit()] * 1000, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert 250 < sum(code == 455 for code in runs[0]) < 350
    assert len(set(map(str, (Emulator(seed=7).chance.random(), Emulator(seed=7).chance.random())))) == 1
    assert Emulator().chance.random() != Emulator().chance.random()


def test_a_function() -> None:
    """It sees the request, returns an effect, and None leaves the fault for another one."""
    seen: list[Arrival] = []

    def by(arrival: Arrival) -> dict[str, Any] | None:
        seen.append(arrival)
        return {"code": 433} if arrival.prompt == "b" else None

    faults = queue(Fault("submit", by=by))
    requests = [submit(prompt=prompt) for prompt in "abb"]
    assert taken(faults, requests) == [None, 433, None]
    assert seen == requests[:2]
    assert faults.unused() == []


@pytest.mark.parametrize("wrong", [{"refuse": 5}, {"reset": "before"}, {"cod": 5}, {}])
def test_a_function_with_a_wrong_effect(wrong: dict[str, Any]) -> None:
    """The error is raised, and remembered for the end of the test."""
    faults = queue(Fault("submit", by=lambda arrival: wrong))
    with pytest.raises(ValueError, match=r"too late|unknown field|no effect"):
        taken(faults, [submit()])
    assert re.search(r"failed: ValueError: ", faults.unused()[0])


def test_a_reset_waits_for_its_turn() -> None:
    """An earlier fault goes first if it certainly fires, although the body is not read yet."""
    chance = random.Random(1)
    faults = queue(Fault("submit", code=455), Fault("submit", reset="before"))
    assert faults.take_unread(submit(), chance) is None
    assert faults.take(submit(), chance) is not None
    assert faults.take_unread(submit(), chance) is not None
    assert faults.take_unread(submit(), chance) is None
    assert faults.unused() == []


def test_a_fault_that_is_taken_back() -> None:
    """It is as if the request had not come."""
    faults, chance = queue(Fault("submit", code=455, charged=True)), random.Random(1)
    firing = faults.take(submit(), chance)
    assert firing is not None
    firing.undo()
    assert faults.unused() != []
    assert faults.take(submit(), chance) is not None
    assert faults.unused() == []
    faults.add(Fault("submit", code=500))
    faults.clear()
    assert not faults


def test_what_did_not_fire() -> None:
    """A sentence for each; chance and functions have no number of times to reach."""
    rare = Fault("submit", code=550, probability=0.5, times=50)
    faults = queue(Fault("submit", code=455, times=3), Fault("look", code=500), rare)
    taken(faults, [submit()] * 2)
    assert faults.unused() == [
        "fault('submit', times=3, code=455) fired 2 of 3 times",
        "fault('look', code=500) did not fire; matching requests: 0",
        f"{rare} did not fire; matching requests: 2",
    ]
    taken(faults, [submit()] * 9)
    assert faults.unused() == ["fault('look', code=500) did not fire; matching requests: 0"]


# Plans -----------------------------------------------------------------------------------------------


def test_unused_plans_name_the_nearest_prompt() -> None:
    """The prompt that came and that a plan was probably meant for."""
    kie = Emulator()
    kie.plan("A calm lake", outcome="policy")
    kie.plan("A red kite", answer=455, duration=5.0)
    kie.plan("A red kite", outcome=Outcome("failed", code=501))
    kie.next(answer="dropped")
    kie.next(callback="never")
    assert "plan('A calm lake', outcome='policy') did not fire; no prompt came" in kie.unused()
    for prompt in ("A calm lakes", "A dog"):
        kie.submit(LAKE | {"prompt": prompt}, 0.0)
    calm, kite, failed = kie.unused()[:3]
    assert calm.startswith("plan('A calm lake', outcome='policy') did not fire; the nearest prompt that ")
    assert calm.endswith(" came is 'A calm lakes'")
    assert kite.startswith("plan('A red kite', duration=5.0, answer=fault('submit', code=455)) did not fire;")
    assert "outcome=Outcome(kind='failed', code=501, message='')" in failed
    kie.plan("A dog", outcome="stuck")
    assert "plan('A dog', outcome='stuck') did not fire; its prompt came too seldom" in kie.unused()
    assert len(kie.unused()) == 4
    kie.submit(dict(LAKE), 20.0)
    assert len(kie.unused()) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        Fault("look", code=455),
        Fault("submit", code=455, times=2),
        Fault("submit", reset="before"),
        Fault("submit", refuse=5),
        Fault("submit", by=lambda arrival: None),
    ],
    ids=["kind", "times", "reset", "refuse", "by"],
)
def test_what_is_no_answer(wrong: Fault) -> None:
    """A plan has its own conditions, and is for a submit that was read."""
    with pytest.raises(ValueError, match=r"invalid answer=.*expected a fault of a submit without times"):
        Emulator().plan("x", answer=wrong)


# Prompts ---------------------------------------------------------------------------------------------


def test_names_in_prompts() -> None:
    """Every outcome, every code, every page and every answer, each name once."""
    assert len(NAMES) == len(set(NAMES))
    assert set(NAMES) == {*OUTCOMES, *map(str, CODES), *PAGES, *ANSWERS}
    for name in NAMES:
        magic = magic_of(f"A lake [[kie:{name}]]")
        assert (magic.outcome is None) != (magic.fault is None)
    both = magic_of("[[kie:dropped]] A lake [[kie:policy]]")
    assert (both.outcome, both.fault) == (Outcome("policy"), Fault("submit", cut=0))
    for plain in (None, "", "A lake", "[kie:policy]", "[[kie]]", "[[policy]]"):
        assert magic_of(plain).outcome is magic_of(plain).fault is None


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("[[kie:polcy]]", r"unknown \[\[kie:polcy\]\] \(did you mean policy\?\): expected one of success, "),
        ("[[kie:]]", r"unknown \[\[kie:\]\]: expected one of"),
        ("[[kie:455]] [[kie:500]]", "contradictory .* 455, 500: expected one outcome and one answer"),
        ("[[kie:stuck]] [[kie:policy]]", "contradictory"),
    ],
)
def test_wrong_names_in_prompts(prompt: str, message: str) -> None:
    """The submit is refused with a text that names what is allowed; literally, it is a prompt like any."""
    with pytest.raises(ValueError, match=message):
        magic_of(prompt)
    kie = Emulator()
    answer = kie.submit(LAKE | {"prompt": prompt}, 0.0)
    assert answer.code == 422
    assert re.search(message, answer.msg)
    assert (kie.paid, kie.planned_answer(LAKE | {"prompt": prompt})) == (0, None)
    assert Emulator(magic=False).submit(LAKE | {"prompt": prompt}, 0.0).code == 200


def test_task_ids_are_those_of_the_seed() -> None:
    """Of the form that Kie has; without a seed they are unpredictable."""

    def ids(**settings: Any) -> list[str]:
        kie = Emulator(**settings)
        return [kie.submit(dict(LAKE), 0.0).data["taskId"] for _ in range(5)]

    assert ids(seed=3) == ids(seed=3) != ids(seed=4)
    assert ids() != ids()
    assert all(re.fullmatch("[0-9a-f]{32}", task_id) for task_id in ids(seed=3))


@pytest.mark.parametrize("name", ["effects", "fault_queue", "faults", "magic", "variants"])
def test_the_grammar_is_pure(name: str) -> None:
    """It knows no network, no event loop and no clock."""
    source = (PACKAGE / "emulator" / f"{name}.py").read_text("utf-8")
    assert not re.search(r"^(import|from) (aiohttp|asyncio|time|socket)\b", source, re.MULTILINE)
    assert re.search(r"^(import|from) asyncio\b", "import asyncio", re.MULTILINE)  # the control
