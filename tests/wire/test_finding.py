"""Where a task id and image URLs are found: everywhere they have been seen, and not where there are none."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_decoding import ANYTHING

from kie4o.wire import finding
from kie4o.wire.decoding import TASK_ID

ID = "5fd1000000000000000000000000a1ea"
OTHER = "0123456789abcdef0123456789abcdef"
URLS = ["https://a.example/1.png"]

# Without the two usual places, which other tests have.
HIDDEN = [
    {"data": ID},
    {"data": json.dumps({"taskId": ID})},
    {"data": json.dumps(f"{ID}") and f" {json.dumps([{'task_id': ID}])} "},
    {"data": {"task": {"taskId": ID}}},
    {"data": {"result": {"task": {"task_id": ID}}}},
    {"data": [{"taskId": ID}]},
    {"data": [[[{"taskId": ID}]]]},
    {"data": [{"taskId": ID}, {"taskId": ID}, "x"]},
    {"data": {"response": json.dumps({"taskId": ID})}},
    {"data": {"id": ID}},
    {"data": [{"id": ID}]},
    {"data": {"task": {"id": ID}}},
    {"data": {"taskId": "", "id": ID}},
    {"data": {"taskId": None, "task": {"taskId": ID, "id": OTHER}}},
]


@pytest.mark.parametrize("message", HIDDEN, ids=json.dumps)
def test_an_id_is_found_in_any_place(message: dict[str, Any]) -> None:
    """A submit that was accepted names its task somewhere. A refusal is believed in the usual places only."""
    assert finding.task_id({"code": 200, **message}) == ID
    assert finding.task_id({"code": 400, **message}, anywhere=False) is None
    assert finding.named_ids(message) == {ID}


@pytest.mark.parametrize("number", [10_000_000, 1234567890])
@pytest.mark.parametrize("place", ["taskId", "task_id", "id"])
def test_an_id_may_be_a_number(place: str, number: int) -> None:
    """It has eight digits or more."""
    assert finding.task_id({"data": {place: number}}) == str(number)
    assert finding.task_id({"data": number}) == str(number)
    assert finding.task_id({"data": {place: 9_999_999}}) is None


@pytest.mark.parametrize(
    "data",
    [
        *(
            None,
            "",
            "success",
            "A-very-long-word-without-digits",
            "ok 12345678",
            5,
            99999,
            True,
            -(10**9),
            1e9,
        ),
        *(
            [],
            {},
            [None],
            {"id": "abc"},
            {"id": 7},
            {"task": {"id": "success"}},
            "[",
            '{"taskId":',
            "x" * 200,
        ),
        *({"params": {"prompt": ID}}, {"taskId": {"taskId": "a b"}}, [[[[{"taskId": ID}]]]]),
        *([{"taskId": ID}, {"taskId": OTHER}], {"a": {"id": ID}, "b": {"id": OTHER}}),
    ],
    ids=lambda data: repr(data)[:40],
)
def test_no_id_is_made_up(data: Any) -> None:
    """A word, a small number, a prompt or one of several tasks is not the task."""
    assert finding.task_id({"code": 200, "msg": "success", "data": data}) is None


@given(ANYTHING)
def test_anything_gives_an_id_or_none(value: Any) -> None:
    task_id = finding.task_id({"data": value})
    assert task_id is None or TASK_ID.fullmatch(task_id)


@given(ANYTHING)
def test_image_urls(value: Any) -> None:
    """Anything gives a tuple of URLs."""
    urls = finding.image_urls(value)
    assert type(urls) is tuple
    assert all(type(url) is str and url.lower().startswith(("http://", "https://")) for url in urls)


@given(st.lists(st.from_regex(r"https://[a-z]{1,9}\.example/[a-z0-9]{0,9}\.png", fullmatch=True), min_size=1))
def test_spellings_of_image_urls(urls: list[str]) -> None:
    """Under any name, in an object or a list, as JSON text or not, the URLs and their order are the same."""
    objects: list[Any] = [{"resultUrls": urls}, {"result_urls": urls}, {"resultUrls": json.dumps(urls)}, urls]
    objects += [{"resultUrls": [None, "", *urls, 5]}, {"resultUrls": [], "result_urls": urls}]
    for response in objects:
        assert finding.image_urls(response) == tuple(urls)
        assert finding.image_urls(json.dumps(response)) == tuple(urls)
    for name in ("resultUrls", "result_urls", "resultUrl", "resultImageUrl", "url"):
        assert finding.image_urls({name: urls[0]}) == (urls[0],)
    for name in ("response", "info", "resultJson", "data"):
        for inner in (*objects, json.dumps(objects[0]), json.dumps(urls)):
            assert finding.image_urls({name: inner}) == tuple(urls)
            assert finding.image_urls({"state": "success", "url": None, name: inner}) == tuple(urls)
    assert finding.image_urls(urls[0]) == (urls[0],)
    for name in ("url", "resultUrl", "resultImageUrl"):
        assert finding.image_urls([{name: url} for url in urls]) == tuple(urls)


@pytest.mark.parametrize(
    "response", [{"data": {"info": {"resultUrls": URLS}}}, [[[URLS]]], {"data": [{"resultUrls": URLS}]}]
)
def test_image_urls_at_the_greatest_depth(response: Any) -> None:
    """Objects and lists may be within each other four deep."""
    assert finding.image_urls(response) == tuple(URLS)


@pytest.mark.parametrize(
    "response",
    [
        *(None, "", "x", "[", "{", "null", "5", "[" * 100_000, 5, True, [], {}, [None], [5]),
        *({"resultUrls": None}, {"resultUrls": {}}, {"resultUrls": 5}, {"resultUrls": "["}),
        *({"resultUrls": "abc"}, {"resultUrls": ["abc", "ftp://x", "//x", "data:image/png;base64,x"]}),
        *({"inputUrls": ["https://x"]}, {"filesUrl": "https://x"}, "see https://x"),
        {"data": {"info": {"response": {"resultUrls": ["https://too.deep"]}}}},
        [[[[["https://too.deep"]]]]],
    ],
    ids=lambda response: repr(response)[:30],
)
def test_no_image_urls(response: Any) -> None:
    """A response without URLs is not an error, because records lag behind."""
    assert finding.image_urls(response) == ()
