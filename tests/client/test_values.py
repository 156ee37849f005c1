"""Values as people have them: enums, URL objects, secrets, uploaded files, tasks and paths with a tilde."""

import asyncio
import enum
import json
import pickle
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pydantic
import pytest
import yarl
from clients import client_of
from paths import IMPORT_ROOT
from portable import environment
from starlette.datastructures import URL as StarletteURL

from kie4o import (
    AsyncKieClient,
    Completion,
    ConfigurationError,
    ImageRequest,
    InvalidRequestError,
    KeyConflictError,
    KieError,
    SubmissionUnknownError,
    TaskNotFoundError,
    UploadedFile,
)
from kie4o.arguments import request_of, task_id_of
from kie4o.batch.items import Items
from kie4o.emulator import Emulator, Fault
from kie4o.settings import resolve
from kie4o.stores.store import fingerprint
from kie4o.urls import is_private
from kie4o.wire.requests import body_of

URL = "https://files.example.com/a.png?b=c"
KEY = "0123456789abcdef" * 2


class Text(enum.StrEnum):
    LAKE = "A calm lake"
    WIDE = "3:2"
    MODEL = "GPT_IMAGE_1"
    LINK = URL


class OldText(str, enum.Enum):  # noqa: UP042  # on purpose
    """How enums of texts were written before Python 3.11."""

    LAKE = "A calm lake"
    WIDE = "3:2"
    MODEL = "GPT_IMAGE_1"
    LINK = URL


class Plain(enum.Enum):
    LAKE = "A calm lake"
    WIDE = "3:2"
    MODEL = "GPT_IMAGE_1"
    LINK = URL
    TWO = 2
    YES = True


class Number(enum.IntEnum):
    TWO = 2


class Words(str):
    """As markupsafe's and numpy's."""


class Whole(int):
    pass


class Links(pydantic.BaseModel):
    link: pydantic.HttpUrl
    any_link: pydantic.AnyUrl


MODEL = Links.model_validate({"link": URL, "any_link": URL})
URLS: list[Any] = [
    *(MODEL.link, MODEL.any_link, yarl.URL(URL), httpx2.URL(URL), StarletteURL(URL)),
    *(
        urllib.parse.urlsplit(URL),
        urllib.parse.urlparse(URL),
        Text.LINK,
        OldText.LINK,
        Plain.LINK,
        Words(URL),
    ),
]


# -- requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Text, OldText, Plain], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("two", [Number.TWO, Plain.TWO, Whole(2)], ids=repr)
def test_a_member_of_an_enum_is_its_value(kind: Any, two: Any) -> None:
    """Fields, pickle, body and fingerprint are those of the plain values, and so is every type."""
    more: dict[str, Any] = {"size": kind.WIDE, "n_variants": two, "fallback_model": kind.MODEL}
    request = ImageRequest(kind.LAKE, **more, enable_fallback=True)
    same = ImageRequest(
        "A calm lake", size="3:2", n_variants=2, fallback_model="GPT_IMAGE_1", enable_fallback=True
    )
    assert request == same
    assert hash(request) == hash(same)
    assert pickle.dumps(request, 0) == pickle.dumps(same, 0)
    assert repr(request) == repr(same)
    assert fingerprint(request) == fingerprint(same)
    assert {type(request.prompt), type(request.size), type(request.n_variants)} == {str, int}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_variants", True),
        ("n_variants", Plain.YES),
        ("n_variants", Plain.LAKE),
        ("size", Plain.TWO),
        ("size", Text.LAKE),
        ("fallback_model", Text.WIDE),
        ("is_enhance", Plain.TWO),
        ("mask_url", Text.LAKE),
    ],
)
def test_a_member_with_another_value_is_refused(name: str, value: Any) -> None:
    """The control: it is the value that counts, and a bool is no number."""
    with pytest.raises(InvalidRequestError, match=rf"^invalid {name}="):
        ImageRequest("A", **{name: value})


@pytest.mark.parametrize("url", URLS, ids=lambda url: type(url).__name__)
def test_a_url_object_is_its_text(url: Any) -> None:
    """In every field of a request; the value is a plain string."""
    request = ImageRequest("A", files_url=[url], mask_url=url, callback_url=url)
    assert request == ImageRequest("A", files_url=[URL], mask_url=URL, callback_url=URL)
    assert {type(each) for each in (*request.files_url, request.mask_url, request.callback_url)} == {str}
    with pytest.warns(DeprecationWarning, match="fileUrl"):
        assert ImageRequest(file_url=url).file_url == URL


class Curl:
    """Its name says url, its text does not."""

    def __str__(self) -> str:
        return "a handle"


class Page:
    """Its text says url, its name does not."""

    def __str__(self) -> str:
        return URL


@pytest.mark.parametrize(
    "value",
    [Curl(), Page(), yarl.URL("/a.png"), yarl.URL("ftp://a.example/b")],
    ids=["named for something else", "an unrelated str()", "without a host", "ftp"],
)
def test_what_is_no_web_url_is_refused(value: Any) -> None:
    """The control: both the type and the text have to say so."""
    with pytest.raises(InvalidRequestError, match=r"files_url\[0\]="):
        ImageRequest("A", files_url=[value])


def test_an_uploaded_file_is_its_url() -> None:
    """What `upload` returned can be passed as it is."""
    file = UploadedFile(URL, name="a.png", path="kie4o/a.png", size=70, mime_type="image/png")
    request = ImageRequest("A", files_url=[file, URL])
    assert request.files_url == (URL, URL)
    assert ImageRequest("A", files_url=[file], mask_url=file).mask_url == URL
    with pytest.raises(InvalidRequestError, match="a list of URLs"):
        ImageRequest("A", files_url=file)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Path("cat.png"), "what upload\\(\\) returned"),
        ("cat.png", "what upload\\(\\) returned"),
        ("file:///tmp/cat.png", "what upload\\(\\) returned"),
        (b"\x89PNG", "what upload\\(\\) returned"),
        ("data:image/png;base64,AAAA", "what upload\\(\\) returned"),
    ],
    ids=str,
)
def test_a_local_file_is_uploaded_first(value: Any, words: str) -> None:
    """The message names the call, whichever field it is, also without a list."""
    for fields in ({"files_url": [value]}, {"mask_url": value}, {"file_url": value}):
        with pytest.raises(InvalidRequestError, match=words):
            ImageRequest("A", **fields)
    with pytest.raises(InvalidRequestError, match=r"files_url=\[url\].*upload\(\)"):
        ImageRequest("A", files_url=value)


def test_a_long_value_is_cut() -> None:
    """A data: URL or the bytes of an image would fill the screen."""
    for value in ("data:image/png;base64," + "A" * 10_000, b"A" * 10_000):
        with pytest.raises(InvalidRequestError) as caught:
            ImageRequest("A", mask_url=value)  # type: ignore[arg-type]  # wrong on purpose
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("given", "fields", "words"),
    [
        ({"prompt": "A"}, {}, r"got a dict.*ImageRequest\(\*\*"),
        (["A", "B"], {}, "got a list.*generate_many"),
        (("A",), {}, "got a tuple.*generate_many"),
        ("A", {"nVariants": 2}, "did you mean n_variants="),
        ("A", {"callBackUrl": URL}, "did you mean callback_url="),
        ("A", {"variants": 2}, "did you mean n_variants="),
        ("A", {"files_urls": [URL]}, "did you mean files_url="),
        ("A", {"siez": "3:2"}, "did you mean size="),
        ("A", {"weather": 1}, "expected one of prompt, size"),
    ],
)
def test_a_wrong_call_is_told_the_right_one(given: Any, fields: dict[str, Any], words: str) -> None:
    """Kie's names, typing errors, and values of another call."""
    with pytest.raises(InvalidRequestError, match=words):
        request_of(given, fields)


# -- extra -----------------------------------------------------------------------------------------


def test_extra_is_sent_under_kies_names() -> None:
    """It goes beside the known fields, may replace a default, and its order does not matter."""
    one = ImageRequest("A", extra={"size": "16:9", "quality": Text.WIDE, "seed": {"b": (1, 2.5), "a": None}})
    other = ImageRequest("A", extra={"seed": {"a": None, "b": [1, 2.5]}, "quality": "3:2", "size": "16:9"})
    assert json.loads(body_of(one)) == {
        "prompt": "A",
        "size": "16:9",
        "quality": "3:2",
        "seed": {"a": None, "b": [1, 2.5]},
    }
    assert one == other
    assert hash(one) == hash(other)
    assert body_of(one) == body_of(other)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != ImageRequest("A")
    assert fingerprint(one) != fingerprint(ImageRequest("A"))
    assert json.loads(body_of(ImageRequest(extra={"prompt": "A"})))["prompt"] == "A"
    assert body_of(one, callback_url=URL).endswith(b'"callBackUrl":"%b"}' % URL.encode())


def test_extra_is_a_copy() -> None:
    """What the caller does to the mapping afterwards changes no request."""
    mine: dict[str, Any] = {"styles": ["a"]}
    request = ImageRequest("A", extra=mine)
    before = body_of(request)
    mine["styles"].append("b")
    mine["other"] = 1
    assert body_of(request) == before


def circle() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["a"] = found
    return found


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"callBackUrl": URL}, "callback_url=.*ref"),
        ({"callback_url": URL}, "callback_url=.*ref"),
        ({"callbackUrl": URL}, "callback_url=.*ref"),
        ({"n_variants": 2}, r"n_variants= or extra\['nVariants'\]"),
        ({"nvariants": 2}, r"n_variants= or extra\['nVariants'\]"),
        ({"isEnhance": True}, "either is_enhance= or"),
        ({"prompt": "B"}, "either prompt= or"),
        ({"a": float("nan")}, r"\['a'\] is nan"),
        ({"a": [float("inf")]}, r"\['a'\]\[0\] is inf"),
        pytest.param({"a": 10**30}, r"\['a'\] is an integer", id="large"),
        ({"a": {1: 2}}, r"\['a'\] has a key that is no string"),
        ({1: 2}, "has a key that is no string"),
        ({"a": "\ud800"}, r"\['a'\] is a lone surrogate"),
        ({"\ud800": 1}, "is a lone surrogate"),
        ({"a": b"x"}, r"\['a'\] is b'x'"),
        ({"a": {1, 2}}, r"\['a'\] is {1, 2}"),
        (circle(), "nested too deeply"),
        ([("a", 1)], "it is a list"),
        (None, "it is a NoneType"),
        ("a", "it is a str"),
    ],
)
def test_an_unusable_extra(extra: Any, words: str) -> None:
    """What kie4o sets itself, what is set twice, and what JSON cannot hold, with the place of it."""
    with pytest.raises(InvalidRequestError, match=words) as caught:
        ImageRequest("A", is_enhance=True, extra=extra)
    assert str(caught.value).startswith("invalid extra")
    assert caught.value.__context__ is None
    str(caught.value).encode()


async def test_extra_is_part_of_the_request_under_a_key(tmp_path: Path) -> None:
    """It survives a file store; the same key with another `extra` is another request."""
    store = tmp_path / "run.db"
    async with Emulator(speed=20) as kie:
        request = ImageRequest("A", extra={"seed": [1, {"b": 2, "a": 1.5}], "quality": "high"})
        async with client_of(kie.url, store=str(store)) as client:  # type: ignore[arg-type]  # a path will do
            result = await client.generate(request, key="k")
        async with client_of(kie.url, store=str(store)) as client:  # type: ignore[arg-type]  # a path will do
            again = ImageRequest("A", extra={"quality": "high", "seed": (1, {"a": 1.5, "b": 2})})
            assert await client.generate(again, key="k") == result
            with pytest.raises(KeyConflictError):
                await client.generate("A", key="k", extra={"quality": "low"})
            keys = [done.key async for done in client.generate_many([request, again], batch=Text.LAKE)]
            assert len(set(keys)) == 2
        assert [task.request["quality"] for task in kie.tasks.values()] == ["high"] * 3


# -- arguments -------------------------------------------------------------------------------------


async def test_what_has_a_task_id_stands_for_it(tmp_path: Path) -> None:
    """Tasks, results, details, completions and errors; an enum as a key and the name of a batch."""
    async with Emulator(speed=20) as kie, client_of(kie.url) as client:
        task = await client.submit(Text.LAKE, key=Text.WIDE)
        result = await client.wait(task)
        assert (await client.submit("A calm lake", key="3:2")).id == task.id
        done = Completion("k", index=0, request=None, task_id=task.id)
        error = TaskNotFoundError("not found", task_id=task.id)
        for each in (task, result, result.details, done, error, Words(task.id), task.id):
            assert client.task(each).id == task.id
            assert (await client.details(each)).task_id == task.id
            assert await client.wait(each) == result
        link = await client.download_url(result, yarl.URL(result.urls[0]))
        assert link.startswith("http")
        assert len(kie.tasks) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Completion("k", index=0, request=None), "this Completion has no task id"),
        (KieError("x"), "this KieError has no task id"),
        (5, "^invalid task_id=5: "),
        (None, "^invalid task_id=None: "),
        ("a b", "^invalid task_id='a b': "),
        (Plain.TWO, "^invalid task_id="),
        (ImageRequest("A"), "^invalid task_id=ImageRequest"),
    ],
)
def test_what_has_none_is_refused(given: Any, words: str) -> None:
    """The control."""
    with pytest.raises(InvalidRequestError, match=words):
        task_id_of(given)


def test_settings_take_secrets_and_urls() -> None:
    """As pydantic's settings have them, and several webhook keys while they are rotated."""
    secret = pydantic.SecretStr(f" {KEY}\n")
    given: Any = {
        "base_url": pydantic.HttpUrl("https://kie.example"),
        "upload_url": yarl.URL("https://u.example/"),
    }
    found = resolve(api_key=secret, webhook_key=[secret, "old"], environment={}, **given)
    assert found.api_key.reveal() == KEY
    assert [each.reveal() for each in found.webhook_key] == [KEY, "old"]
    assert (found.base_url, found.upload_url) == ("https://kie.example", "https://u.example")
    assert resolve(api_key="k", webhook_key=secret, environment={}, **given).webhook_key[0].reveal() == KEY
    client = AsyncKieClient(secret, callback_url=pydantic.HttpUrl(URL), proxy=secret_proxy(), **given)
    assert client._options.callback_url == URL
    assert client._options.proxy == "http://u:p@proxy.example:3128"


def secret_proxy() -> pydantic.SecretStr:
    return pydantic.SecretStr("http://u:p@proxy.example:3128")


@pytest.mark.parametrize(
    "secret",
    [pydantic.SecretBytes(b"sk-secret"), yarl.URL("https://sk-secret.example"), pydantic.SecretStr("a b")],
)
def test_another_secret_is_refused_without_an_echo(secret: Any) -> None:
    """The type is named, the text is not."""
    with pytest.raises(ConfigurationError) as caught:
        resolve(api_key=secret, base_url=None, upload_url=None, webhook_key=None, environment={})
    assert "sk-" not in str(caught.value)
    assert caught.value.__context__ is None


BAD_KEYS = [
    ("'{}'", "quotes"),
    ('"{}"', "quotes"),
    ("“{}”", "quotes"),
    ("`{}`", "quotes"),
    ("{}'", "quotes"),
    ("KIE_API_KEY={}", "name of the variable"),
    ('KIE_API_KEY="{}"', "name of the variable"),
    ("api_key: {}", "name of the variable"),
    ("export KIE_API_KEY={}", "command"),
    ("set KIE_API_KEY={}", "command"),
    ("$env:KIE_API_KEY = '{}'", "command"),
    ("Bearer {}", "Bearer"),
    ("Authorization: Bearer {}", "Bearer"),
    ("{}\n{}", "line"),
    ("A={}\r\nB=2", "line"),
    ("${{KIE_API_KEY}}", "not replaced; pass its value"),
    ("${{KIE_API_KEY:-}}", "not replaced; pass its value"),
    ("$KIE_API_KEY", "not replaced; pass its value"),
    ("%KIE_API_KEY%", "not replaced; pass its value"),
    ("{{{{ kie_api_key }}}}", "not replaced; pass its value"),
    ("<your-api-key>", "placeholder"),
    ("YOUR_API_KEY", "placeholder"),
    ("your-key-here", "placeholder"),
    ("sk-...", "placeholder"),
    ("xxxxxxxx", "placeholder"),
    ("/run/secrets/kie", "path"),
    ("~/.kie", "path"),
    ("./key.txt", "path"),
    (r"C:\keys\kie", "path"),
    (".env", "path"),
    ("{} {}", "space"),
]


@pytest.mark.parametrize(("around", "words"), BAD_KEYS)
@pytest.mark.parametrize("origin", ["api_key", "KIE_API_KEY", "webhook_key", "KIE_WEBHOOK_KEY"])
def test_what_is_no_key_is_named(around: str, words: str, origin: str) -> None:
    """One sentence for each kind, with where it came from and without the key."""
    text = around.format(KEY, KEY)
    given: dict[str, Any] = {"api_key": "k", "webhook_key": None, "base_url": None, "upload_url": None}
    environment = {origin: text} if origin.isupper() else {}
    given |= {"api_key": None} if origin == "KIE_API_KEY" else {}
    given |= {} if environment else {origin: text}
    if words == "space" and "webhook" in origin.lower():
        words = ""  # Kie's page does not say what a webhookHmacKey looks like
    try:
        resolve(environment=environment, **given)
    except ConfigurationError as error:
        assert words
        assert words in str(error)
        assert origin in str(error)
        assert KEY[:8] not in str(error)
    else:
        assert not words


@pytest.mark.parametrize(
    "key",
    [
        *(
            KEY,
            "sk-proj-aB3_d",
            "dGhpcyBpcyBiYXNlNjQ+Lw==",
            "/aB3+d/efgh==",
            "exportabc",
            "settings123",
            "a.b-c_d~e",
        ),
        *("k", "k-123", "bearing", "keyed", "token=", "yours", "xx", "you-rself", "%41", "a$b"),
    ],
)
def test_any_other_text_is_a_key(key: str) -> None:
    """The control: hosts other than Kie's may have keys of any form."""
    settings: dict[str, Any] = {"base_url": None, "upload_url": None, "environment": {}}
    assert resolve(api_key=key, webhook_key=key, **settings).api_key.reveal() == key


async def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the path of a store, a backup and an upload, as text, as a path and in an address."""
    home = tmp_path / "home"
    (work := tmp_path / "work").mkdir()
    home.mkdir()
    monkeypatch.chdir(work)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    async with Emulator(speed=20) as kie:
        for name, store in (("a", "~/a.db"), ("b", Path("~/b.db")), ("c", "sqlite:///~/c.db")):
            async with client_of(kie.url, store=store) as client:  # type: ignore[arg-type]  # a path will do
                await client.submit("x", key=name)
                await client.backup(f"~/{name}.copy")
            assert {f"{name}.db", f"{name}.copy"} <= {path.name for path in home.iterdir()}
        async with client_of(kie.url) as client:
            (home / "a.png").write_bytes(b"\x89PNG")
            assert (await client.upload("~/a.png")).name == "a.png"
    assert [*work.iterdir()] == []


# -- warnings --------------------------------------------------------------------------------------

PNG = "https://a.example/a.png?x=1.gif"
WARNED: list[tuple[dict[str, Any], str]] = [
    ({"fallback_model": "GPT_IMAGE_1"}, "enable_fallback=True"),
    ({"mask_url": PNG}, "without a file"),
    ({"mask_url": PNG, "files_url": [PNG, PNG]}, "more than one"),
    ({"mask_url": PNG, "files_url": ["https://a.example/a.JPG"]}, "same format"),
    ({"mask_url": "https://a.example/m.webp", "files_url": [PNG]}, "same format"),
    ({"files_url": ["https://a.example/a.gif"]}, r"\.gif"),
    ({"files_url": [PNG, "https://a.example/a.HEIC?token=1"]}, r"\.heic"),
    ({"files_url": [PNG], "mask_url": "https://a.example/m.bmp"}, r"\.bmp"),
]
CALM: list[dict[str, Any]] = [
    {"fallback_model": "GPT_IMAGE_1", "enable_fallback": True},
    {"fallback_model": "GPT_IMAGE_1", "extra": {"enableFallback": True}},
    {"mask_url": PNG, "files_url": [PNG]},
    {"mask_url": PNG, "extra": {"filesUrl": [PNG]}},
    {"mask_url": PNG, "files_url": ["https://a.example/image.php?id=5"]},
    {"mask_url": "https://a.example/m.jpg", "files_url": ["https://a.example/a.JPEG"]},
    {"files_url": [f"https://a.example/a{suffix}" for suffix in (".jfif", ".pjp", ".webp", "", ".v2")]},
    {
        "files_url": ["http://localhost/a.png"],
        "callback_url": "http://10.0.0.1/",
    },  # where it is sent is not known
]


@pytest.mark.parametrize(("fields", "words"), WARNED)
def test_money_for_nothing_is_warned_about_once(fields: dict[str, Any], words: str) -> None:
    """At the line of the caller, for the constructor and through the package; not again for what is known."""
    makers: list[Callable[[], ImageRequest]] = [
        lambda: ImageRequest("A", **fields),
        lambda: request_of("A", fields),
        lambda: request_of(ImageRequest("A"), fields),
    ]
    for make in makers:
        with pytest.warns(UserWarning, match=words) as seen:
            request = make()
        assert [one.filename for one in seen] == [__file__]
    assert request_of(request, {"is_enhance": True}) != request
    assert pickle.loads(pickle.dumps(request)) == request


@pytest.mark.parametrize("fields", CALM)
def test_a_sensible_request_does_not_warn(fields: dict[str, Any]) -> None:
    """The control: warnings are errors here."""
    ImageRequest("A", **fields)


async def test_the_line_of_an_awaiting_caller_is_named() -> None:
    """Through `generate(**fields)` too, however many frames are between."""
    async with Emulator(speed=20) as kie, client_of(kie.url) as client:
        with pytest.warns(UserWarning, match="enable_fallback") as seen:
            await client.generate("A", fallback_model="GPT_IMAGE_1")
        assert [one.filename for one in seen] == [__file__]


LOCAL = [
    *(
        "http://localhost:8000/a.png",
        "https://127.0.0.1/a.png",
        "http://[::1]/a.png",
        "http://192.168.1.5/a.png",
    ),
    *(
        "http://10.1.2.3/a.png",
        "http://minio:9000/a.png",
        "http://nas.local/a.png",
        "http://169.254.1.1/a.png",
    ),
    *("http://app.localhost./a.png", "http://[fe80::1]/a.png", "http://0.0.0.0/a.png"),
]


@pytest.mark.parametrize("url", LOCAL)
async def test_what_kie_cannot_open_is_warned_about(url: str) -> None:
    """Once for each call, before anything is sent, by a client whose own host is not on loopback."""
    client = AsyncKieClient(KEY, base_url="https://kie.example", proxy="http://127.0.0.1:1", timeout=1)
    client._runtime.submissions.submit = refuse  # type: ignore[method-assign,assignment]  # nothing is sent
    for name, value in (("files_url", [url]), ("mask_url", url), ("callback_url", url)):
        fields: Any = {"files_url": ["https://a.example/a.png"], name: value}
        with pytest.warns(UserWarning, match=f"Kie cannot open {name}") as seen:
            with pytest.raises(KieError, match="refused here"):
                await client.generate("A", **fields)
        assert [(one.filename, "a.png" in str(one.message)) for one in seen] == [(__file__, False)]
    with pytest.raises(KieError, match="refused here"):
        await client.generate("A", files_url=["https://a.example/a.png"])
    await client.aclose()
    with pytest.warns(UserWarning, match="Kie cannot open callback_url") as seen:
        AsyncKieClient(KEY, base_url="https://kie.example", callback_url=url)
    assert [one.filename for one in seen] == [__file__]
    AsyncKieClient(KEY, base_url="http://127.0.0.1:1", callback_url=url)


async def refuse(*_: object, **__: object) -> None:
    raise KieError("refused here")


@pytest.mark.parametrize(
    "url", ["https://a.example", "http://8.8.8.8", "https://[2606:4700::1111]/", "https://x.local.example"]
)
def test_a_public_url_is_not_private(url: str) -> None:
    """The control."""
    assert not is_private(url)


async def test_the_line_of_a_batch_is_named(tmp_path: Path) -> None:
    """Its items run in tasks that asyncio steps, so no frame of the caller is on the stack."""
    script = tmp_path / "batch.py"
    script.write_text(
        "import asyncio\n"
        "from kie4o import AsyncKieClient, ImageRequest\n"
        "async def main():\n"
        f"    client = AsyncKieClient({KEY!r}, base_url='https://a.example', proxy='http://127.0.0.1:1')\n"
        "    async with client as c:\n"
        "        requests = [ImageRequest('A', files_url=['http://localhost/a.png'])]\n"
        "        async for done in c.generate_many(requests):\n"
        "            pass\n"
        "asyncio.run(main())\n"
    )
    for options, expected in (
        (("-W", "error"), b"UserWarning: Kie cannot open files_url[0]"),
        ((), b"batch.py:9: UserWarning: Kie cannot open files_url[0]"),
    ):
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, *options, str(script)),
            stderr=asyncio.subprocess.PIPE,
            env=environment(PYTHONPATH=str(IMPORT_ROOT)),
        )
        _, words = await child.communicate()
        assert expected in words


async def test_what_the_store_has_is_not_warned_about_again() -> None:
    """Warnings are errors here: a result that is paid for is had all the same."""
    async with Emulator(duration=0.0, speed=100) as kie, client_of(kie.url, speed=100) as client:
        await client.generate("A", key="a", callback_url="http://localhost/")
        object.__setattr__(client._runtime.lifecycle, "loopback", False)
        result = await client.generate("A", key="a", callback_url="http://localhost/")
        assert result.source == "store"
        with pytest.warns(UserWarning, match="Kie cannot open callback_url"):
            await client.generate("A", key="b", callback_url="http://localhost/")


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0.0, -0.0), ([0], [False])])
def test_equal_requests_have_equal_bodies(one: Any, other: Any) -> None:
    """Python's 1, 1.0 and True are equal; in JSON they are not, nor under a key."""
    first, second = ImageRequest("A", extra={"seed": one}), ImageRequest("A", extra={"seed": other})
    assert body_of(first) != body_of(second)
    assert first != second
    assert first == ImageRequest("A", extra={"seed": one})
    assert hash(first) == hash(ImageRequest("A", extra={"seed": one}))


class OddText(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class OddURL:
    def __str__(self) -> str:
        return OddText(PNG)


class OddNumber(int):
    def __int__(self) -> int:
        return 4


def test_a_subclass_is_what_it_holds() -> None:
    """Whatever it says of itself; a value of another type would not be read by every store."""
    photo = UploadedFile(OddText(PNG), name="a.png", path="", size=1, mime_type="image/png")
    for url in (OddText(PNG), OddURL(), photo):
        request = ImageRequest("A", files_url=[url])
        assert (request.files_url, type(request.files_url[0])) == ((PNG,), str)
    assert ImageRequest("A", n_variants=OddNumber(2)).n_variants == 2
    task = type("Named", (), {"task_id": OddText("5" * 32)})()
    assert task_id_of(task) == "5" * 32


@pytest.mark.parametrize("kind", ["str", "Enum"])
def test_an_id_of_a_batch_is_the_value_of_its_member(kind: str) -> None:
    """Also after the name of the batch, where Python versions format members differently."""
    ids: Any = enum.Enum("Ids", {"A": "a"}, type=str) if kind == "str" else enum.Enum("Ids", {"A": "a"})
    for name, key in (("lakes", "lakes/a"), ("", "a")):
        item = Items({ids.A: "A lake"}, name).next()
        assert item is not None
        assert (item.key, item.error) == (key, None)


async def test_a_key_that_is_a_member_is_settled() -> None:
    """As it is submitted."""
    key = enum.Enum("Keys", {"ORDER": "order-1"}).ORDER
    async with Emulator(duration=0.0) as kie, client_of(kie.url) as client:
        kie.plan("A", answer=Fault("submit", code=500))
        with pytest.raises(SubmissionUnknownError):
            await client.submit("A", key=key)
        assert (await client.settle(key, charged=False)).callers_key == "order-1"


class Sealed:
    """A secret that cannot be had."""

    def get_secret_value(self) -> str:
        raise RuntimeError("the vault is closed")


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": -1}, {"webhook_key": [KEY, 5]}, {"webhook_key": [KEY, Sealed()]}, {"api_key": Sealed()}],
    ids=["timeout", "number", "secret", "api_key"],
)
def test_no_frame_of_ours_shows_a_webhook_key(wrong: dict[str, Any]) -> None:
    """A reporter of errors shows the local variables of each frame."""
    with pytest.raises((ConfigurationError, RuntimeError)) as caught:
        AsyncKieClient(**{"api_key": "key-of-the-api", "webhook_key": KEY} | wrong)
    frames = [entry.frame for entry in caught.traceback if "kie4o" in str(entry.path.parent.name)]
    assert frames
    assert KEY not in repr([frame.f_locals for frame in frames])
