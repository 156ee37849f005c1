"""The OpenAPI document says what the emulator does: its routes, and every answer that it gives."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from paths import IMPORT_ROOT
from routes import routes_of
from test_conformance import CASES, Client, answer_of
from witness import CALLBACK, Sent, recordings

from kie4o.emulator import Emulator, control
from kie4o.emulator.openapi import document

pytestmark = pytest.mark.once


def closed(schema: Any) -> Any:
    """The schema with every object closed: what is not described is then an error."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    return (
        inner | {"additionalProperties": False} if "properties" in schema and "allOf" not in schema else inner
    )


@cache
def closed_document() -> Any:
    whole = document()
    answers = {name: closed(each) for name, each in whole["components"]["schemas"].items()}
    whole["components"]["schemas"] = answers
    return whole


def resolved(whole: Any, node: Any) -> Any:
    """What a node says, or what it refers to."""
    while "$ref" in node:
        found = whole
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def operation_of(whole: Any, endpoint: str) -> Any:
    method, path = endpoint.split()
    return whole["paths"][path][method.lower()]


def content_of(whole: Any, endpoint: str, sent: Sent) -> dict[str, Any]:
    """What the document has for an answer with this status: a schema by media type."""
    if endpoint == CALLBACK:
        [expression] = whole["paths"]["/api/v1/gpt4o-image/generate"]["post"]["callbacks"]["ended"].values()
        return dict(expression["post"]["requestBody"]["content"])
    responses = operation_of(whole, endpoint)["responses"]
    answer = resolved(whole, responses.get(str(sent.status), responses["default"]))
    return dict(answer["content"])


def complaints(endpoint: str, sent: Sent, whole: Any) -> list[str]:
    """What the document has against an answer."""
    content = content_of(whole, endpoint, sent)
    media = sent.content_type.partition(";")[0].strip()
    if media not in content:
        return [f"content type {media}"]
    value = json.loads(sent.body) if media == "application/json" else sent.body.decode()
    schema = content[media]["schema"] | {"components": whole["components"]}
    return [error.message for error in Draft202012Validator(schema).iter_errors(value)]


def described(name: str) -> bool:
    """Whether the case is a callback, or a request that the document has. Faults may send anything."""
    if name.startswith(("page ", "record ")):
        return False
    endpoint = CASES[name].endpoint
    if endpoint == CALLBACK:
        return True
    method, path = endpoint.split()
    return method.lower() in document()["paths"].get(path, ())


# -- the document --------------------------------------------------------------------------------


def test_it_is_openapi() -> None:
    """The document is valid OpenAPI 3.1, and its examples follow their schemas."""
    whole = document()
    assert [error.message for error in OpenAPIV31SpecValidator(whole).iter_errors()] == []
    assert whole["openapi"].startswith("3.1.")
    for schema in whole["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
        for example in schema.get("examples", ()):
            Draft202012Validator(schema | {"components": whole["components"]}).validate(example)


def test_every_operation_can_be_generated() -> None:
    """Each has an id of its own, a summary, a description and a default answer."""
    operations = [each for path in document()["paths"].values() for each in path.values()]
    ids = [each["operationId"] for each in operations]
    assert len({*ids}) == len(ids) > 9
    assert all(each["summary"] and each["description"] for each in operations)
    assert all("default" in each["responses"] for each in operations)


def test_it_has_the_routes_of_the_emulator() -> None:
    """Each route is an operation, and each operation a route."""
    operations = {(method.upper(), path) for path, item in document()["paths"].items() for method in item}
    routes = routes_of(Emulator())
    assert control.ROUTES.keys() <= routes
    kie = {(method, path) for method, path in routes if not control.is_control(path)}
    assert operations == kie | control.ROUTES.keys()


def test_both_programs_print_it() -> None:
    """`--openapi` prints the document as JSON, and ends."""
    for program in (["kie4o.emulator"], ["kie4o", "emulator"]):
        printed = subprocess.run(
            [sys.executable, "-W", "error", "-m", *program, "--openapi"],
            cwd=IMPORT_ROOT,
            capture_output=True,
            check=True,
        )
        assert json.loads(printed.stdout) == document()
        assert printed.stderr == b""


# -- the answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(filter(described, CASES)))
async def test_an_answer_is_as_described(name: str) -> None:
    """Every answer of the emulator follows its schema, and has nothing that the schema lacks."""
    case = CASES[name]
    assert complaints(case.endpoint, await answer_of(case), closed_document()) == []


async def test_the_control_is_as_described() -> None:
    """Each answer of the control follows its schema, and has nothing that the schema lacks."""
    async with Emulator(duration=300.0, pictures=False) as kie:
        call, asked = Client(kie), []

        async def ask(method: str, path: str, body: Any = None, **names: str) -> None:
            endpoint = f"{method} {path}"
            asked.append((method, path))
            sent = await call(
                f"{method} {path.format(**names)}", {} if method == "POST" and body is None else body
            )
            assert complaints(endpoint, sent, closed_document()) == []
            assert sent.status == (404 if names.get("task_id") == "none" else 200), sent

        ids = [await call.task(callBackUrl="https://example.com") for _ in range(4)]
        await call.look(ids[0])
        for what, body in {"end": {}, "fail": {"outcome": "policy"}, "delay": {"seconds": 5}}.items():
            await ask("POST", f"/-/tasks/{{task_id}}/{what}", body, task_id=ids.pop())
        await ask("POST", "/-/tasks/{task_id}/callback", task_id=ids.pop())
        await ask("POST", "/-/tasks/{task_id}/end", task_id="none")
        await ask("POST", "/-/plans", {"prompt": "A lake", "outcome": "failed"})
        await ask("POST", "/-/credits", {"credits": 5})
        await ask("POST", "/-/time", {"seconds": 5})
        await ask("GET", "/-/time")
        await ask("GET", "/-/state")
        await ask("POST", "/-/reset")
        assert {*asked, ("POST", "/-/faults")} == control.ROUTES.keys()


async def test_time_stays_a_time() -> None:
    """More than a year at once is refused: later records would have no time."""
    async with Emulator(duration=0.0, pictures=False) as kie:
        call = Client(kie)
        for seconds, status in ((1e9, 400), (6e307, 400), (31_536_000, 200)):
            assert (await call("POST /-/time", {"seconds": seconds})).status == status
        for seconds in (0, -1, math.nan, math.inf, 10**400, "3", True, None):
            with pytest.raises(ValueError, match="expected a number above 0 and at most 31536000, a year"):
                kie.advance(seconds)
        task_id = await call.task()
        assert json.loads((await call.look(task_id)).body)["data"]["createTime"] > 0
    async with Emulator(pictures=False) as kie:
        task_id = await Client(kie).task()
        for seconds in (0, -1, math.nan, 1e9, "3"):
            with pytest.raises(ValueError, match="expected a number above 0 and at most 31536000, a year"):
                kie.delay(task_id, seconds)
        assert kie.tasks[task_id].duration == 20


def test_recorded_answers_are_as_described() -> None:
    """Those that were recorded from Kie itself, new fields included."""
    whole = document()
    seen = [one for one in recordings() if one.endpoint != "any" and one.name.endswith(("_real", "_success"))]
    assert len(seen) > 8
    assert {one.name: wrong for one in seen if (wrong := complaints(one.endpoint, one.sent, whole))} == {}


# -- the controls --------------------------------------------------------------------------------


CHANGES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "a field that is not described": ("progress", None),
    "another state": ("successFlag", {"enum": [0]}),
    "another type": ("createTime", {"type": "string"}),
    "no null": ("errorCode", {"type": "integer"}),
    "another form": ("progress", {"type": "string", "pattern": "%$"}),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_control_a_wrong_document_is_seen(name: str) -> None:
    """The same answer, held against a document that lacks something."""
    sent = await answer_of(CASES["look success"])
    whole = copy.deepcopy(closed_document())
    endpoint = CASES["look success"].endpoint
    assert complaints(endpoint, sent, whole) == []
    field, schema = CHANGES[name]
    fields = whole["components"]["schemas"]["Record"]["properties"]
    fields[field] = schema
    if schema is None:
        del fields[field]
    assert complaints(endpoint, sent, whole) != []


def test_control_a_lost_route_is_seen() -> None:
    """A document without one of the paths is not that of the emulator; one that is none is not valid."""
    whole = document()
    del whole["paths"]["/api/v1/chat/credit"]
    assert ("GET", "/api/v1/chat/credit") in routes_of(Emulator())
    whole["paths"]["credit"] = {"get": {"responses": {"200": {}}}}
    assert [error.message for error in OpenAPIV31SpecValidator(whole).iter_errors()] != []
