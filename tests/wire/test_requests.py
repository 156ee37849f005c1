"""Requests as bytes: names, defaults, the ref in a callback URL, and the endpoints."""

import json
import math
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie4o.image_request import ImageRequest
from kie4o.wire import requests
from kie4o.wire.requests import Endpoint, body_of, json_body, ref_in, with_ref

FULL = ImageRequest(
    "A calm lake",
    size="3:2",
    files_url=["https://x.example/1.png", "https://x.example/2.png"],
    n_variants=4,
    callback_url="https://y.example/hook",
    is_enhance=True,
    upload_cn=True,
    enable_fallback=True,
    fallback_model="GPT_IMAGE_1",
)


def test_every_field_travels_under_kies_name() -> None:
    """All parameters of the generate page are sent, spelled as there."""
    with pytest.warns(UserWarning, match="mask_url"), pytest.warns(DeprecationWarning, match="fileUrl"):
        request = attrs.evolve(FULL, mask_url="https://x.example/m.png", file_url="https://x.example/f.png")
    assert json.loads(body_of(request)) == {
        "prompt": "A calm lake",
        "size": "3:2",
        "filesUrl": ["https://x.example/1.png", "https://x.example/2.png"],
        "maskUrl": "https://x.example/m.png",
        "nVariants": 4,
        "callBackUrl": "https://y.example/hook",
        "isEnhance": True,
        "uploadCn": True,
        "enableFallback": True,
        "fallbackModel": "GPT_IMAGE_1",
        "fileUrl": "https://x.example/f.png",
    }
    assert len(json.loads(body_of(request))) == len(attrs.fields(ImageRequest)) - 1  # without `extra`


def test_defaults_are_not_sent() -> None:
    """A field at its default is left out, except `size`, which Kie requires."""
    assert body_of(ImageRequest("A")) == b'{"prompt":"A","size":"1:1"}'
    assert json.loads(body_of(ImageRequest("A", fallback_model="FLUX_MAX", n_variants=1))) == {
        "prompt": "A",
        "size": "1:1",
    }


def test_a_callback_url_replaces_the_requests_own() -> None:
    """It is sent even if the request has none."""
    for request in (FULL, ImageRequest("A")):
        sent = json.loads(body_of(request, callback_url="https://z.example/?ref=1"))
        assert sent["callBackUrl"] == "https://z.example/?ref=1"


REF = "fD3kP0qLx8TtB1sVnE5rKwZa7Yu2Hc9J"  # as `new_ref` makes them
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(
    WORDS,
    st.sampled_from(["1:1", "3:2", "2:3"]),
    st.sampled_from([1, 2, 4]),
    st.lists(st.sampled_from(["https://a.example/ü", "http://b.example/?q=1&r=%20"]), max_size=5),
    st.booleans(),
)
def test_a_body_says_what_the_request_says(prompt: Any, size: Any, count: Any, urls: Any, flag: bool) -> None:
    """The JSON has exactly the given values, in UTF-8, and equal requests give equal bytes."""
    fields: dict[str, Any] = {"size": size, "n_variants": count, "files_url": urls, "is_enhance": flag}
    content = body_of(ImageRequest(prompt, **fields))
    sent = json.loads(content.decode())
    assert sent == {
        "prompt": prompt,
        "size": size,
        **({"nVariants": count} if count != 1 else {}),
        **({"filesUrl": urls} if urls else {}),
        **({"isEnhance": True} if flag else {}),
    }
    assert content == body_of(ImageRequest(prompt, **fields))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h.example/cb", "https://h.example/cb?kie4o_ref=R-1"),
        ("https://h.example/cb?a=b", "https://h.example/cb?a=b&kie4o_ref=R-1"),
        ("https://h.example/cb?ref=mine", "https://h.example/cb?ref=mine&kie4o_ref=R-1"),
        ("https://h.example/cb#f", "https://h.example/cb?kie4o_ref=R-1"),
        ("https://h.example/cb?a=b#f?", "https://h.example/cb?a=b&kie4o_ref=R-1"),
        ("https://h.example/{ref}/cb#f", "https://h.example/R-1/cb"),
        ("https://h.example/cb?token={ref}", "https://h.example/cb?token=R-1"),
    ],
)
def test_with_ref(url: str, expected: str) -> None:
    """The ref replaces {ref}, or becomes one more query parameter; only a fragment, which HTTP does not
    send, is left out."""
    assert with_ref(url, "R-1") == expected
    if "{ref}" not in url:
        assert parse_qs(urlsplit(expected).query)["kie4o_ref"] == ["R-1"]


@pytest.mark.parametrize(
    "template",
    [
        *("https://h.example/{ref}", "https://h.example/a/{ref}/", "https://h.example/a/{ref}/b?ref=mine"),
        *(
            "https://h.example/é/%7E-{ref}.json",
            "https://h.example/{ref}/{ref}",
            "https://h.example/?{}={{ref}}",
        ),
        *("https://h.example/a?x={ref}", "https://h.example/a?ref=mine&x={ref}&y=1"),
        *(
            "https://h.example/a?x=1&x={ref}",
            "https://h.example/a?x=&x={ref}",
            "https://h.example/a?x=%26-{ref}-1&y",
            "https://h.example?x={ref}",
        ),
    ],
)
def test_a_ref_is_found_where_the_template_has_it(template: str) -> None:
    """`ref_in` undoes `with_ref`, also behind a proxy or mount that changes the beginning of the path."""
    template = template.replace("{}", "ö%26").replace("{{", "{").replace("}}", "}")
    parts = urlsplit(with_ref(template, REF))
    for prefix in ("", "/mounted/below", "/a"):
        assert ref_in(prefix + unquote(parts.path), parts.query, template=template) == REF


@pytest.mark.parametrize(
    ("template", "path", "query"),
    [
        (None, "/a", "x=1"),
        ("https://h.example/a?x=1", "/a", "x=1"),
        ("https://h.example/a?x=1", "/a", f"x=1{REF}"),
        ("https://h.example/a/{ref}/b", "/a/b", ""),
        ("https://h.example/a/{ref}", "/a/", ""),
        ("https://h.example/a-{ref}", "/a-", ""),
        ("https://h.example/{ref}/{ref}", "/one/two", ""),
        ("https://h.example/a?x={ref}", "/a", ""),
        ("https://h.example/a?x={ref}", "/a", "x="),
        ("https://h.example/a?x=1&x={ref}", "/a", "x=1"),
        ("https://h.example/a?x=id-{ref}", "/a", f"x={REF}"),
        ("https://h.example/a?x={ref}", "/a", "x=newsletter"),
        ("https://h.example/a/{ref}", "/b/hook", ""),
        ("https://h.example/a?x=aba{ref}aba", "/a", "x=aba"),
    ],
)
def test_no_ref_is_found_elsewhere(template: str | None, path: str, query: str) -> None:
    """A URL that the template cannot have become has no ref."""
    assert ref_in(path, query, template=template) is None


def test_json_is_sent_as_utf_8() -> None:
    """Without blanks and escapes, of which the text would only become longer."""
    assert json_body({"prompt": "ein Schäfchen 😀", "n": [1, 2]}) == (
        '{"prompt":"ein Schäfchen 😀","n":[1,2]}'.encode()
    )


def test_json_that_cannot_be_written_is_refused() -> None:
    """NaN is not JSON and is not sent."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_body({"x": math.nan})


def test_endpoints_are_those_of_the_documentation() -> None:
    """Methods, paths and hosts, as Kie's pages give them."""
    rows = {
        (row.method, row.path, row.uploads) for row in vars(requests).values() if isinstance(row, Endpoint)
    }
    assert rows == {
        ("POST", "/api/v1/gpt4o-image/generate", False),
        ("GET", "/api/v1/gpt4o-image/record-info", False),
        ("POST", "/api/v1/gpt4o-image/download-url", False),
        ("GET", "/api/v1/chat/credit", False),
        ("POST", "/api/file-base64-upload", True),
        ("POST", "/api/file-stream-upload", True),
        ("POST", "/api/file-url-upload", True),
    }
