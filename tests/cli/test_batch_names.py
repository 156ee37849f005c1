"""Names of images: valid everywhere, and no two alike anywhere."""

import unicodedata
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from kie4o.cli.batch.names import claimed, comparable, free_stem, stem_of, stems_of
from kie4o.files.images import file_name

NAMES = st.text(st.sampled_from("aA_01-. /\\éE\u0301ßẞ:\0") | st.characters(), max_size=300)


def files_of(stem: str) -> Iterator[str]:
    """Every file that a download under this name may write."""
    yield file_name("task", 0, "png", stem)
    yield from (file_name("task", index, "png", stem, several=True) for index in range(4))


@given(NAMES, st.integers(1, 10**6))
def test_a_name_stays_what_it_is(name: str, number: int) -> None:
    """A download under it writes a file of exactly that name, which any system takes."""
    stem = stem_of(name, number)
    assert next(files_of(stem)) == f"{stem}.png"
    assert stem == stem_of(stem, number)
    assert 0 < len(stem.encode()) <= 200
    assert not set(stem) & set('/\\:*?"<>|\0')
    assert stem[0] not in ". "
    assert stem[-1] not in ". "


@given(st.lists(NAMES, max_size=30))
def test_no_two_names_are_alike(names: list[str]) -> None:
    """Also where case is ignored and Unicode is normalised, and whatever the numbers of images."""
    taken: set[str] = set()
    files: list[str] = []
    for number, name in enumerate(names, 1):
        stem = free_stem(stem_of(name, number), taken)
        taken |= claimed(stem)
        files += files_of(stem)
        assert stems_of(files_of(stem)) == claimed(stem)
    for form in ("NFC", "NFD"):
        seen = [unicodedata.normalize(form, file).casefold() for file in files]
        assert len(set(seen)) == len(seen)


def test_the_first_free_name() -> None:
    """A number is added; files that are no images take no name."""
    assert free_stem("cat", ()) == "cat"
    assert free_stem("cat", claimed("CAT")) == "cat-2"
    assert free_stem("cat_0", claimed("cat")) == "cat_0-2"
    assert stems_of(["a.PNG", "b.txt", "c.tar.webp", "index.html"]) == {comparable("a"), comparable("c.tar")}
