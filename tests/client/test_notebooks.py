"""What results look like in a notebook: their images, with the prompt and the id of the task."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

from clients import client_of

from kie4o import Completion, ImageRequest, ImageResult
from kie4o.emulator import Emulator
from kie4o.errors import KieError

HOSTILE = "\"><script>alert(1)</script> ' & onerror=x"


class Page(HTMLParser):
    """The elements of a piece of HTML, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_results_show_their_images() -> None:
    """A result and its completion by their URLs, fetched images by their bytes, alone and together."""
    async with Emulator(duration=0.0, pictures=False) as kie, client_of(kie.url) as client:
        request = ImageRequest(HOSTILE, n_variants=2)
        result = await client.generate(request)
        images = await client.fetch(result)
        completion = Completion("k", index=0, request=request, task_id=result.task_id, result=result)
        for shown in (result, completion):
            page = Page(shown._repr_html_())
            assert [image["src"] for image in page.images] == list(result)
            assert {image["alt"] for image in page.images} == {HOSTILE}
            assert HOSTILE in page.text
            assert result.task_id in page.text
            assert set(page.tags) == {"div", "img", "code"}
        together = Page(images._repr_html_())  # type: ignore[attr-defined]  # the list that a notebook shows
        data = [f"data:image/png;base64,{base64.b64encode(image.data).decode()}" for image in images]
        assert [image["src"] for image in together.images] == data
        assert [image["src"] for image in Page(images[0]._repr_html_()).images] == data[:1]


async def test_an_error_is_shown() -> None:
    """In place of images, as text. A result of which little is known shows what it has."""
    failed = Completion("k", index=0, request=None, error=KieError(HOSTILE))
    page = Page(failed._repr_html_())
    assert page.text == HOSTILE
    assert set(page.tags) == {"div"}
    async with Emulator(duration=0.0, pictures=False) as kie, client_of(kie.url) as client:
        task = await client.submit("A calm lake")
        result = await task
    bare = ImageResult(result.task_id, urls=(HOSTILE,), details=result.details)
    assert Page(bare._repr_html_()).images[0]["src"] == HOSTILE
