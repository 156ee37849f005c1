"""The page as a file: what is in it, which files of the folder it names, and when thumbnails are made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import attrs
import portable
import pytest
from paths import IMPORT_ROOT
from runs import ODD_NAMES, ONERROR, RECORDS, SCRIPT, record, write_run

from kie4o.emulator import pictures
from kie4o.errors import KieError
from kie4o.gallery import selection, thumbnails
from kie4o.gallery.folder import Folder, is_image_name, keep_command
from kie4o.gallery.page import write_gallery
from kie4o.gallery.records import FILE_NAME, Record, line
from kie4o.gallery.thumbnails import ThumbnailMaker, has_thumbnail, thumbnail_name


class Page(HTMLParser):
    """What a browser makes of the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.outside: list[str] = []
        html = path.read_text("utf-8")
        [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
        assert "<" not in data
        self.data: list[dict[str, Any]] = json.loads(data)
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        urls = [value or "" for name, value in found.items() if name in ("href", "src", "srcset", "action")]
        self.outside += [url for url in urls if re.match(r"\w+:|//", url)]
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag == "img":
            self.images.append(str(found["src"]))


def test_every_file_of_the_page_is_there(run: Path) -> None:
    """Links lead to the images and sources to their thumbnails, all relative to the page."""
    page = Page(run / "index.html")
    files = [name for each in RECORDS for name in each.files]
    assert [link for link in page.links if not link.startswith("#")] == files
    assert page.images == [thumbnail_name(name) for name in files]
    assert page.outside == []
    assert [item["prompt"] for item in page.data] == [each.prompt for each in RECORDS]
    assert {SCRIPT, ONERROR} < {item["prompt"] for item in page.data}


def test_texts_of_any_kind(tmp_path: Path) -> None:
    """Lone surrogates, line separators and an end of a script do not break the page."""
    text = "a \ud800 b \u2028 </script><!-- <script> \x00"
    records = [Record(text, prompt=text, state="surprising", error=text, task_id=text)]
    page = Page(write_gallery(write_run(tmp_path, records), title=text))
    assert page.data[0]["prompt"] == text.replace("\ud800", "?")
    assert page.data[0]["state"] == "unknown"


def test_a_folder_without_results(tmp_path: Path) -> None:
    """Its images are shown by their names, variants as one card. An empty folder has a page too."""
    assert Page(write_gallery(tmp_path)).data == []
    task = "0123456789abcdef" * 2
    for name in (f"{task}_0.png", f"{task}_1.png", "boat.PNG", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(pictures.BLANK)
    items = Page(write_gallery(tmp_path)).data
    assert [(item["task"], [name for name, _ in item["files"]]) for item in items] == [
        (task, [f"{task}_0.png", f"{task}_1.png"]),
        ("", ["boat.PNG"]),
    ]


def test_names_that_lead_elsewhere_are_left_out(tmp_path: Path) -> None:
    """Of files outside of the folder, absolute, by `..` or by a link, and of what is no image."""
    folder, outside = tmp_path / "run", tmp_path / "secret.png"
    folder.mkdir()
    outside.write_bytes(pictures.BLANK)
    (folder / "key.txt").write_text("secret")
    (folder / "sub").mkdir()
    (folder / "sub" / "fine.png").write_bytes(pictures.BLANK)
    (folder / "folder.png").mkdir()
    names = [str(outside), "../secret.png", "sub/../../secret.png", "key.txt", "missing.png", "folder.png"]
    names += [
        "http://127.0.0.1/x.png",
        "//127.0.0.1/x.png",
        "a\nb.png",
        "\ud800.png",
        "",
        ".",
        "sub/fine.png",
    ]
    try:
        (folder / "link.png").symlink_to(outside)
        (folder / "loop.png").symlink_to(folder / "loop.png")
    except OSError:  # Windows without the right to
        pass
    (folder / FILE_NAME).write_text(line(Record("k", state="done", files=[*names, "link.png", "loop.png"])))
    page = Page(write_gallery(folder))
    assert [link for link in page.links if not link.startswith("#")] == ["sub/fine.png"]
    assert len(page.data) == 1
    with pytest.raises(KieError, match="nothing was copied"):
        selection.copy_images(folder, ["sub/fine.png", "../secret.png"], tmp_path / "copies")
    assert not (tmp_path / "copies").exists()


@pytest.mark.posix("file names with these characters")
def test_odd_names_are_quoted(tmp_path: Path) -> None:
    """A URL of the page leads to exactly that file, and is no URL of another scheme."""
    records = [Record(name, state="done", files=[name]) for name in ODD_NAMES]
    page = Page(write_gallery(write_run(tmp_path, records)))
    links = [link for link in page.links if not link.startswith("#")]
    assert [unquote(link) for link in links] == ODD_NAMES
    assert not re.search(r"[:#?\"'<> ]", "".join(links))
    assert page.outside == []


def retry_on(page: Path) -> str | None:
    """The command of the page, if it has one."""
    found = re.search(r'<code id="retry">(.*?)</code>', page.read_text("utf-8"), re.DOTALL)
    return None if found is None else unescape(found[1])


@pytest.mark.parametrize("name", ["images", "two\nlines"])
def test_the_command_is_that_of_the_batch_or_none(tmp_path: Path, name: str) -> None:
    """It is what the batch has kept in the folder, of this folder and for requests that failed."""
    command = "kie4o batch 'my file.txt' --out images --store \ud800.db --retry-failed"
    folder = tmp_path / name
    try:
        folder.mkdir()
    except OSError:  # Windows has no such names
        pytest.skip("a name with two lines")
    write_run(folder, RECORDS[1:3])
    assert retry_on(write_gallery(folder)) is None
    keep_command(folder, command)
    assert retry_on(write_gallery(folder)) == command.replace("\ud800", "?")
    (folder / FILE_NAME).write_text(line(RECORDS[1]))
    assert retry_on(write_gallery(folder)) is None  # nothing has failed
    (folder / FILE_NAME).write_text(line(RECORDS[2]))
    moved = folder.rename(tmp_path / "moved")
    assert retry_on(write_gallery(moved)) is None
    keep_command(moved, command)
    keep_command(moved, "")
    assert retry_on(write_gallery(moved)) is None
    (moved / ".kie4o.command").write_bytes(b"\xff")
    assert retry_on(write_gallery(moved)) is None


@pytest.mark.parametrize("name", ["a.txt", "index.html", ".thumbs/a.png.webp", "a/../b.png", "..", "a.png/b"])
def test_what_is_no_image_name(name: str) -> None:
    """By the name alone."""
    assert not is_image_name(name)
    assert is_image_name("a/b.png")


def test_what_is_no_folder(tmp_path: Path) -> None:
    """A file, or nothing at all."""
    (tmp_path / "file").write_text("")
    for wrong in ("file", "missing"):
        with pytest.raises(KieError, match="is not a directory"):
            Folder(tmp_path / wrong)


# -- thumbnails --------------------------------------------------------------------------------------


def times(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {path.name: path.stat() for path in sorted((folder / thumbnails.FOLDER).iterdir())}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_a_thumbnail_is_made_once(tmp_path: Path) -> None:
    """As images arrive or with the page; again only for an image that was replaced."""
    pytest.importorskip("PIL")
    folder = write_run(tmp_path, RECORDS[:2])
    with ThumbnailMaker(folder) as maker:
        assert maker.add("row-2.png").result()
        assert not maker.add("missing.png").result()
    first = times(folder)
    assert list(first) == ["row-2.png.webp"]
    write_gallery(folder)
    write_gallery(folder)
    second = times(folder)
    assert second["row-2.png.webp"] == first["row-2.png.webp"]
    assert len(second) == 5
    stat = (folder / "row-2.png").stat()
    os.utime(folder / "row-2.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 5_000_000_000))
    write_gallery(folder)
    assert times(folder)["row-2.png.webp"] != first["row-2.png.webp"]


def test_thumbnails_are_small_webp(tmp_path: Path) -> None:
    """360 pixels at most, in the ratio of the image, with what is transparent; made in other threads."""
    image_module = pytest.importorskip("PIL.Image")
    (tmp_path / "wide.png").write_bytes(pictures.draw("sea", "3:2", 0))
    image_module.new("RGBA", (50, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    image_module.new("P", (900, 900)).save(tmp_path / "few.gif")
    image_module.new("L", (1000, 400)).save(tmp_path / "grey.jpg")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    here = threading.get_ident()
    with ThumbnailMaker(tmp_path, threads=2) as maker:
        made = {
            name: maker.add(name) for name in ("wide.png", "clear.png", "few.gif", "grey.jpg", "broken.png")
        }
        assert here not in {thread.ident for thread in maker._pool._threads}
    assert [name for name, future in made.items() if not future.result()] == ["broken.png"]
    sizes = {}
    for name in list(made)[:4]:
        with image_module.open(tmp_path / thumbnail_name(name)) as small:
            assert small.format == "WEBP"
            sizes[name] = (*small.size, small.mode)
    assert sizes == {
        "wide.png": (360, 240, "RGB"),
        "clear.png": (50, 20, "RGBA"),
        "few.gif": (360, 360, "RGB"),
        "grey.jpg": (360, 144, "RGB"),
    }
    assert Page(write_gallery(tmp_path)).images.count("broken.png") == 1  # it stands for itself


@pytest.mark.once
def test_a_kill_leaves_no_half_thumbnail(tmp_path: Path) -> None:
    """Killed while it makes thumbnails, the next run makes the rest; each one is whole at any time."""
    image_module = pytest.importorskip("PIL.Image")
    names = [f"{number:03}.png" for number in range(60)]
    png = pictures.draw("a forest", "1:1", 0)
    for name in names:
        (tmp_path / name).write_bytes(png)
    program = (
        "import sys; from pathlib import Path; from kie4o.gallery.page import write_gallery;"
        "write_gallery(Path(sys.argv[1]))"
    )
    environment = portable.environment(PYTHONPATH=str(IMPORT_ROOT))
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment) as process:
        while process.poll() is None and len(list(tmp_path.glob(".thumbs/*.webp"))) < 5:
            pass
        process.kill()
    made = list(tmp_path.glob(".thumbs/*.webp"))
    assert 5 <= len(made) < 60
    assert not (tmp_path / "index.html").exists()
    for path in made:
        with image_module.open(path) as small:
            small.load()
    before = times(tmp_path)
    write_gallery(tmp_path)
    assert all(has_thumbnail(tmp_path, name) for name in names)
    after = times(tmp_path)
    assert [path.name for path in made if after[path.name] != before[path.name]] == []


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images stand for themselves, and no folder is made."""
    folder = write_run(tmp_path, [record(2, "A calm lake", "3:2")])
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert Page(write_gallery(folder)).images == ["row-2.png"]
    assert not (folder / thumbnails.FOLDER).exists()


# -- a selection, and the command --------------------------------------------------------------------


def kie4o(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "kie4o.cli", *arguments]
    environment = portable.environment(PYTHONPATH=str(IMPORT_ROOT), PATH="")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.once
def test_the_command_writes_the_page(tmp_path: Path) -> None:
    """Of the folder that is named, or of this one."""
    folder = write_run(tmp_path, RECORDS[1:3])
    for arguments in ((str(folder),), ()):
        done = kie4o(folder, "gallery", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert Path(done.stdout.strip()).samefile(folder / "index.html")
        (folder / "index.html").unlink()


@pytest.mark.once
def test_the_command_copies_a_selection(tmp_path: Path) -> None:
    """Of names with a leading - and with spaces too, as an editor of Windows saves the list."""
    names = ["row-2.png", "-a b.png"]
    folder = write_run(tmp_path, [attrs.evolve(RECORDS[1], files=names)])
    (tmp_path / "list.txt").write_bytes("\ufeffrow-2.png\r\n-a b.png\r\n\r\nrow-2.png".encode())
    done = kie4o(folder, "gallery", "--only", "list.txt", "--copy-to", "chosen/ones")
    assert (done.returncode, done.stderr) == (0, "")
    copies = sorted((tmp_path / "chosen" / "ones").iterdir())
    assert [copy.name for copy in copies] == sorted(names)
    assert all(copy.read_bytes() == (folder / copy.name).read_bytes() for copy in copies)


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "'nowhere' is not a directory"),
        (["--only", "list.txt"], "--copy-to DIR is missing"),
        (["--copy-to", "x"], "--only LIST is missing"),
        (["--only", "binary", "--copy-to", "x"], "'binary' is not a text in UTF-8"),
        (["--only", "list.txt", "--copy-to", "x"], "'gone.png' is not an image in"),
    ],
    ids=["folder", "copy-to", "only", "binary", "missing"],
)
def test_wrong_use_of_the_command(tmp_path: Path, arguments: list[str], said: str) -> None:
    """One line that names the option or the value; nothing is written."""
    (tmp_path / "list.txt").write_text("gone.png\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    before = sorted(tmp_path.rglob("*"))
    done = kie4o(tmp_path, "gallery", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_cards_are_in_the_order_of_their_lines(tmp_path: Path) -> None:
    """Whichever ended first; what has no line comes last."""
    names = {"c": 3, "none": None, "a": 1, "b": 2}
    records = [Record(name, prompt=f"prompt {name}", state="failed", line=at) for name, at in names.items()]
    (tmp_path / FILE_NAME).write_text("".join(map(line, records)), "ascii")
    page = write_gallery(tmp_path).read_text("utf-8")
    places = [page.index(f"prompt {name}") for name in ("a", "b", "c", "none")]
    assert places == sorted(places)
