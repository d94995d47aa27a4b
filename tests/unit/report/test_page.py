"""The page of a comparison: it needs nothing else, shows every figure, and says why what is missing is so."""

import html
import itertools
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cxr_hvd.errors import CheckpointError
from cxr_hvd.experiment.comparison import Comparison
from cxr_hvd.report import page as report
from cxr_hvd.report.figures import pages as figures
from cxr_hvd.report.figures.pages import Drawn, drawing, render_figures
from cxr_hvd.report.figures.setups import draw_setups
from cxr_hvd.report.format import shown
from cxr_hvd.report.page import build_page, write_report
from cxr_hvd.report.tables import matrix_rows, policy_rows
from cxr_hvd.report.text_tables import markdown
from tests.helpers.comparisons import HOSTILE, make_comparison, make_tree, read

VOID = {"meta", "br", "hr", "img", "input", "link"}
PHONE, DESKTOP, PAPER = 390, 1440, 703
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt" viewBox="0 0 1 1"></svg>'


class Page(HTMLParser):
    """A page as a tree of tags, which it checks to be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside of {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_comparison()


@pytest.fixture(scope="module")
def folder(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "not" / "there yet"
    assert write_report(comparison, folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_page_needs_nothing_else(text: str, page: Page) -> None:
    assert not re.search(r"https?:|//[a-z]|@import", text, re.IGNORECASE)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object", "base")]
    for _, attributes in page.tags:
        assert not any(key == "src" or key.startswith("on") for key in attributes), attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert all(match == "#" for match in re.findall(r"url\((.)", text))


def test_page_is_in_order(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [(attributes.get("href") or "#")[1:] for tag, attributes in page.tags if tag in ("a", "use")]
    assert len(targets) > 20 and set(targets) <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 20
    assert page.tags[0] == ("html", {"lang": "en"})


def test_page_has_every_figure_with_its_caption(folder: Path, comparison: Comparison, page: Page) -> None:
    names = {"set-ups", "overview", "differences", "matrix", "exchange", "calibration", "curves"}
    names |= {"roc-1", "roc-2", "precision-1", "precision-2"}
    assert {file.name for file in (folder / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    }
    assert {attributes["id"] for attributes in page.all("figure")} == {f"figure-{name}" for name in names}
    assert len(page.all("svg")) == len(page.all("figcaption")) == len(names)
    assert all(attributes.get("aria-label") for _, attributes in page.tags if attributes.get("role") == "img")
    assert not list(folder.glob(".*"))


def test_axes_have_names(folder: Path) -> None:
    for name, words in {
        "roc-1": ("false positive rate", "true positive rate"),
        "precision-1": ("recall (sensitivity)", "precision (PPV)"),
        "overview": (">macro AUROC<", ">accuracy<"),
        "differences": ("difference of macro AUROC", "percentage points"),
        "calibration": ("predicted", "share present"),
        "curves": ("step", "training loss"),
        "exchange": ("hands over in a run", "macro AUROC"),
    }.items():
        svg = (folder / "figures" / f"{name}.svg").read_text()
        assert all(word in svg for word in words), name


def test_what_is_undefined_says_why_and_is_no_number(page: Page) -> None:
    for note in ("one class only: 114 absent", "no study", "no validation studies: no threshold"):
        assert note in page.text
    assert not re.search(r"\b(nan|None|null|inf)\b", page.text)


def test_text_of_others_is_escaped(folder: Path, text: str, page: Page) -> None:
    assert HOSTILE not in text and html.escape(HOSTILE) in text
    assert "<script" not in text and "<script>alert('$x$ | y')</script>" in page.text
    for name in ("set-ups", "overview", "differences", "exchange", "roc-2", "curves"):
        words = "".join(ElementTree.parse(folder / "figures" / f"{name}.svg").getroot().itertext())
        assert HOSTILE in words, f"{name}: the name is there as it stands, its dollar signs too"


def test_control_characters_do_not_reach_a_file() -> None:
    evil = "a\x00b\x1b[31m\u202ec\ud800\r\nd" + "e" * 500
    assert shown(evil, 20) == "a\ufffdb\ufffd[31m\ufffdc\ufffd deeeeee…"
    evil = evil.replace("\ud800", "")  # no file of a comparison can hold half a pair
    hostile = make_comparison(sites=(evil, "two"), names=("A", "D"), num_seeds=1)
    with drawing():
        drawn = figures.render(draw_setups(hostile) or pytest.fail("no figure"))
    Page(build_page(hostile, {"set-ups": drawn}))
    assert "\x1b" not in markdown(hostile) + drawn.svg


def test_same_comparison_gives_same_bytes(folder: Path, comparison: Comparison, text: str) -> None:
    again = render_figures(comparison.model_copy(deep=True))
    for name, drawn in again.items():
        assert (folder / "figures" / f"{name}.svg").read_text() == drawn.svg, name
        assert (folder / "figures" / f"{name}.png").read_bytes() == drawn.png, name
        assert not re.search(r"<metadata|<dc:|20\d\d-\d\d", drawn.svg)
    assert build_page(comparison, again) == text


def test_inline_svg_touches_nothing_else_on_the_page(page: Page, text: str) -> None:
    assert len(page.all("style")) == 1
    assert "xmlns" not in text and "<!DOCTYPE svg" not in text


@pytest.mark.parametrize(
    ("sites", "names", "undefined"),
    [
        (("alone",), ("A", "C"), ()),
        (("one", "two", "three of a name that is too long for any column", "four"), ("A", "B", "C"), ("four",)),
        (("one", "two"), ("A", "D-head"), ("one", "two")),
    ],
    ids=["one site", "four sites without D", "nothing defined"],
)
def test_other_comparisons_work(
    sites: tuple[str, ...], names: tuple[str, ...], undefined: tuple[str, ...]
) -> None:
    comparison = make_comparison(sites=sites, names=names, num_seeds=2, undefined_sites=undefined)
    drawn = render_figures(comparison)
    page = Page(build_page(comparison, drawn))
    assert len(page.all("svg")) == len(drawn)
    assert ("matrix" in drawn) == ("exchange" in drawn) == ("calibration" in drawn) == (sites != undefined)
    assert {f"roc-{number}" in drawn for number, site in enumerate(sites, 1) if site in undefined} <= {False}
    assert ("one class only: 12 absent" in page.text) == bool(undefined)
    assert markdown(comparison)


def test_sites_from_outside_and_missing_files_are_told() -> None:
    outside = {"name": "vindr", "data_sha256": "00" * 32, "note": "took no part; judged on only"}
    gone = {"name": "nih", "data_sha256": "11" * 32, "note": "its study file is not here"}
    tree = make_tree()
    tree["sites"] = [gone, tree["sites"][1], outside]
    tree["policies"].append({**tree["policies"][0], "site": "vindr", "policy": "of nih"})
    tree["matrix"].append({**tree["matrix"][0], "site": "vindr"})
    new = read(tree)
    with drawing():
        drawn = {"set-ups": figures.render(draw_setups(new) or pytest.fail("no figure"))}
    page = Page(build_page(new, drawn))
    assert "vindr" not in drawn["set-ups"].svg, "it has no column: it trains nothing"
    assert "its study file is not here" in page.text and "took no part; judged on only" in page.text
    assert "studies of vindr, which took no part" in page.text
    assert matrix_rows(new).columns[-1] == "on vindr"
    assert policy_rows(new, ["A"]).rows[-1][0].text == "vindr"


def test_report_is_whole_or_absent(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "render_figures", lambda _: {"set-ups": Drawn(SVG, b"png")})
    write_report(comparison, tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(report, "write_text", fail)
        with pytest.raises(CheckpointError, match=r"No space left on device.*may write to"):
            write_report(comparison.model_copy(update={"notes": ()}), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before

    (tmp_path / "figures" / "thesis.docx").touch()
    with pytest.raises(CheckpointError, match="expected figures alone"):
        write_report(comparison, tmp_path)
    assert (tmp_path / "figures" / "thesis.docx").exists()
    with pytest.raises(CheckpointError, match="cannot write the report"):
        write_report(comparison, tmp_path / "report.html")


@pytest.mark.slow
@pytest.mark.parametrize("width", [PHONE, DESKTOP, PAPER])
def test_page_is_no_wider_than_the_window(text: str, tmp_path: Path, width: int) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    if width == PAPER:
        assert "@media print" in text
        text = text.replace("@media print", "@media all")
    # In a frame of its own, since a browser's window has a least width.
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f'<!doctype html><body><iframe style="width:{width}px;height:800px;border:0" srcdoc="{html.escape(text)}" '
        'onload="const page=this.contentDocument.documentElement; for (const one of '
        "page.querySelectorAll('details')) one.open=true; document.body.dataset.found=page.scrollWidth+' of '+"
        'page.clientWidth"></iframe></body>',
        encoding="utf-8",
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    command.append(f"--user-data-dir={tmp_path}/profile")
    done = subprocess.run([*command, wrapper.as_uri()], capture_output=True, text=True, timeout=300, check=False)
    found = re.search(r'data-found="(\d+) of (\d+)"', done.stdout)
    assert found, done.stderr[-1000:]
    assert found.groups() == (str(width), str(width))
