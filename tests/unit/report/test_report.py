"""The report of a comparison: one page that needs nothing else, with every figure, and what is not known, told."""

import copy
import html
import itertools
import math
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from cxr_hvd.errors import CheckpointError
from cxr_hvd.experiment.schema import check_comparison
from cxr_hvd.report import page as report
from cxr_hvd.report import tables
from cxr_hvd.report.figures import pages as figures
from cxr_hvd.report.figures.labels import pool_bins
from cxr_hvd.report.figures.pages import Drawn, drawing, render_figures
from cxr_hvd.report.figures.placing import Box, place_labels
from cxr_hvd.report.figures.setups import draw_setups
from cxr_hvd.report.format import as_bytes, as_difference, as_p, estimate, shown
from cxr_hvd.report.page import build_page, write_report
from cxr_hvd.report.tables import (
    difference_rows,
    exchange_rows,
    label_set_rows,
    main_differences,
    matrix_rows,
    overview_rows,
    policy_rows,
)
from cxr_hvd.report.text_tables import console_table, markdown

HOSTILE = "st. <b>&$|$_x_"
LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Edema",
    "Pneumonia",
    "Pleural Effusion",
)
DEFINED = LABELS[2:]
BLOCKS = {"stem": 62_848, "denseblock1": 335_040, "transition1": 33_280, "denseblock2": 919_680, "head": 16_398}
PRIVATE = {
    "A": tuple(BLOCKS),
    "B": (),
    "C": (),
    "D": ("stem", "denseblock1", "head"),
    "D-head": ("head",),
    "D-norms": (),
}
STEPS = 60


def seeds_of(value: float | None, num_seeds: int, note: str | None = None) -> dict[str, Any]:
    spread = [None if value is None else value + 0.01 * (number - 1) for number in range(num_seeds)]
    return {"value": value, "by_seed": spread, "note": note}


def interval_of(
    value: float | None, num_seeds: int, note: str | None = None, half: float = 0.03
) -> dict[str, Any]:
    bounds = {"low": None, "high": None} if value is None else {"low": value - half, "high": value + half}
    return {**seeds_of(value, num_seeds, note), **bounds, "standard_error": None if value is None else half / 2}


def difference_of(value: float | None, num_seeds: int, note: str | None = None) -> dict[str, Any]:
    return {
        **interval_of(value, num_seeds, note, half=0.02),
        "p_value": None if value is None else 0.2 / 1e4**value,
    }


def make_comparison(
    sites: Sequence[str] = ("nih", HOSTILE),
    names: Sequence[str] = tuple(PRIVATE),
    num_seeds: int = 3,
    undefined_sites: Sequence[str] = (),
) -> dict[str, Any]:
    """Make a comparison as `compare` would, its numbers drawn from a seed.

    Args:
        undefined_sites: sites on whose test studies nothing is defined.
    """
    chance = random.Random(1)
    labels_of = {
        site: () if site in undefined_sites else DEFINED[: 5 - 2 * index] for index, site in enumerate(sites)
    }
    results = [
        _result(name, site, labels_of[site] or (), num_seeds, chance, 0.7 + 0.02 * index)
        for index, name in enumerate(names)
        for site in sites
    ]
    pairs = [(a, b) for a, b in (("C", "A"), ("D", "A"), ("D", "C"), ("D", "B")) if a in names and b in names]
    places = [*sites, "mean of sites"]
    return {
        "schema": 2,
        "tool": "cxr-hvd 0.1.0",
        "command": "cxr-hvd experiment --config real.yaml --seeds 3",
        "num_resamples": 2000,
        "label_names": list(LABELS),
        "sites": [_site(site) for site in sites],
        "experiments": [_experiment(name, num_seeds, chance) for name in names],
        "results": results,
        "matrix": [
            {
                "experiment": name,
                "network": network,
                "site": site,
                "macro_auroc": seeds_of(*_known(site in undefined_sites, chance.uniform(0.55, 0.9), num_seeds)),
            }
            for name in names
            for network in (("common",) if name in ("B", "C") else (*sites, "averaged"))
            for site in sites
        ],
        "policies": [
            {
                "experiment": name,
                "site": site,
                "policy": policy,
                "macro_auroc": interval_of(*_known(site in undefined_sites, chance.uniform(0.55, 0.9), num_seeds)),
                "mean_accuracy": interval_of(0.8, num_seeds),
            }
            for name in names
            if name[0] in "AD"
            for site in sites
            for policy in (
                "own",
                *(f"of {other}" for other in sites if other != site),
                "averaged weights",
                "ensemble",
            )
        ],
        "differences": [
            {
                "a": a,
                "b": b,
                "site": place,
                "split": split,
                **_paired(place, place in undefined_sites, labels_of.get(place), num_seeds, chance),
                "frequent": _paired(
                    place, place in undefined_sites, labels_of.get(place, ())[:2], num_seeds, chance
                ),
                "labels": [
                    {"label": label, "auroc": difference_of(chance.gauss(0, 0.05), num_seeds)}
                    for label in labels_of.get(place, ())
                    if split == "test"
                ],
            }
            for split in ("test", "validate")
            for place in places
            for a, b in pairs
        ],
        "curves": [
            {
                "experiment": name,
                "seed": 1 + number,
                "site": site,
                "steps": list(range(1, STEPS + 1)),
                "loss": [
                    0.3 + 0.3 * math.exp(-step / 60) + 0.05 * index + chance.gauss(0, 0.05)
                    for step in range(STEPS)
                ],
            }
            for name in names
            for number in range(num_seeds)
            for index, site in enumerate(sites)
        ],
        "notes": ["seed 4 of D is left out: its run is not finished", "<script>alert('$x$ | y')</script>"],
    }


def _paired(
    place: str, is_undefined: bool, labels: Sequence[str] | None, num_seeds: int, chance: random.Random
) -> dict[str, Any]:
    return {
        "mean_over": None if place == "mean of sites" else list(labels or ()),
        "macro_auroc": difference_of(*_known(is_undefined, chance.gauss(0.02, 0.03), num_seeds)),
        "mean_accuracy": difference_of(chance.gauss(0.02, 0.03), num_seeds),
    }


def _known(is_undefined: bool, value: float, num_seeds: int) -> tuple[float | None, int, str | None]:
    return (None, num_seeds, "one class only: 12 absent") if is_undefined else (value, num_seeds, None)


def _site(name: str) -> dict[str, Any]:
    counts = {"train": 320, "validate": 40, "test": 114}
    return {
        "name": name,
        "data_sha256": "9f" * 32,
        "source": "nih-cxr14",
        "pixels": "opencv",
        "image_size": 64,
        "num_studies": counts,
        "num_patients": {split: count - 7 for split, count in counts.items()},
        "num_images": {split: count + 31 for split, count in counts.items()},
        "images_per_study": {"1": 460, "2": 12, "11": 2},
        "labels": [
            {
                "label": label,
                "present": {"train": 31 + number, "test": 9},
                "absent": {"train": 200, "test": 90},
                "uncertain": {"train": 3, "test": 1},
                "blank": {"train": 86, "test": 14},
            }
            for number, label in enumerate(LABELS)
        ],
        "note": None,
    }


def _experiment(name: str, num_seeds: int, chance: random.Random) -> dict[str, Any]:
    blocks = []
    for block, size in BLOCKS.items():
        if block in PRIVATE[name]:
            blocks.append({"block": block, "scope": "private", "num_parameters": size, "bytes_per_step": 0})
            continue
        own = size // 40 if name == "D-norms" else 0
        blocks.append(
            {"block": block, "scope": "shared", "num_parameters": size - own, "bytes_per_step": 4 * (size - own)}
        )
        if own:
            blocks.append({"block": block, "scope": "private", "num_parameters": own, "bytes_per_step": 0})
    num_bytes = sum(block["bytes_per_step"] for block in blocks)
    return {
        "name": name,
        "experiment": name[0],
        "seeds": list(range(1, num_seeds + 1)),
        "trains_on": "all sites' studies, merged" if name == "B" else "each site's own studies",
        "private_said": {"A": "all", "B": "none", "C": "none", "D": "ends"}.get(name, name[2:]),
        "batchnorm": "private",
        "exchange": "weights",
        "every": 1,
        "wire": "float32",
        "num_steps": 174,
        "batch_size": 16,
        "num_ranks": 2,
        "image_size": 64,
        "blocks": blocks,
        "bytes_per_exchange": num_bytes,
        "bytes_per_run": num_bytes * 174,
        "seconds": [chance.uniform(90, 110) for _ in range(num_seeds)],
        "studies_per_s": [chance.uniform(50, 60) for _ in range(num_seeds)],
        "config_sha256": ["ab" * 32] * num_seeds,
        "commands": [
            {
                "seed": seed,
                "train": f"cxr-hvd train runs/{name}/config.yaml --run runs/{name}/seed-{seed} --set seed={seed}",
                "score": f"cxr-hvd evaluate runs/{name}/seed-{seed} --across-sites",
            }
            for seed in range(1, num_seeds + 1)
        ],
    }


def _result(
    name: str, site: str, defined: Sequence[str], num_seeds: int, chance: random.Random, base: float
) -> dict[str, Any]:
    labels = [
        _label(label, num_seeds, chance, base) if label in defined else _undefined_label(label, num_seeds)
        for label in LABELS
    ]
    note = None if defined else "one class only: 12 absent"
    values = [base + chance.uniform(-0.05, 0.05) if defined else None for _ in range(2)]
    means, frequent = (
        _means(value, names, num_seeds, note) for value, names in zip(values, (defined, defined[:2]), strict=True)
    )
    return {
        "experiment": name,
        "site": site,
        "network": "common" if name in ("B", "C") else site,
        "num_studies": 114,
        "num_patients": 107,
        **means,
        "frequent": frequent,
        "labels": labels,
    }


def _means(mean: float | None, labels: Sequence[str], num_seeds: int, note: str | None) -> dict[str, Any]:
    return {
        "mean_over": list(labels),
        "macro_auroc": interval_of(mean, num_seeds, note),
        "mean_accuracy": interval_of(mean, num_seeds, note),
        "mean_accuracy_at_threshold": interval_of(None, num_seeds, "no validation studies: no threshold"),
        "macro_average_precision": seeds_of(mean, num_seeds, note),
        "mean_brier": seeds_of(mean and 1 - mean, num_seeds, note),
        "mean_sensitivity": seeds_of(mean, num_seeds, note),
        "mean_all_negative_accuracy": 0.78 if labels else None,
    }


def _label(label: str, num_seeds: int, chance: random.Random, base: float) -> dict[str, Any]:
    value = min(0.97, base + chance.uniform(-0.1, 0.15))
    grid = [number / 100 for number in range(101)]
    power = (1 - value) / value
    rise = [at**power for at in grid]
    return {
        "label": label,
        "num_studies": 114,
        "num_present": 9,
        "note": None,
        "auroc": interval_of(value, num_seeds),
        "average_precision": seeds_of(value - 0.2, num_seeds),
        "accuracy": seeds_of(0.9, num_seeds),
        "accuracy_at_threshold": seeds_of(None, num_seeds, "no validation studies: no threshold"),
        "all_negative_accuracy": 0.91,
        "brier": seeds_of(0.08, num_seeds),
        "sensitivity": seeds_of(0.4, num_seeds),
        "expected_calibration_error": seeds_of(0.05, num_seeds),
        "roc": {
            "false_positive": grid,
            "true_positive": rise,
            "low": [max(0.0, at - 0.05) for at in rise],
            "high": [min(1.0, at + 0.05) for at in rise],
        },
        "calibration": [
            [(number + 0.5) / 10, min(1, max(0, (number + 0.5) / 10 + chance.gauss(0, 0.1))), 300 // (number + 1)]
            for number in range(10)
        ],
    }


def _undefined_label(label: str, num_seeds: int) -> dict[str, Any]:
    note = "no study" if label.startswith("Enlarged") else "one class only: 114 absent"
    nothing = seeds_of(None, num_seeds, note)
    names = ("average_precision", "accuracy", "accuracy_at_threshold", "brier", "sensitivity")
    return {
        "label": label,
        "num_studies": 0 if note == "no study" else 114,
        "num_present": 0,
        "note": note,
        "auroc": interval_of(None, num_seeds, note),
        **dict.fromkeys((*names, "expected_calibration_error"), nothing),
        "all_negative_accuracy": None if note == "no study" else 1.0,
        "roc": None,
        "calibration": [],
    }


VOID = {"meta", "br", "hr", "img", "input", "link"}
PHONE, DESKTOP, PAPER = 390, 1440, 703


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
def comparison() -> dict[str, Any]:
    return make_comparison()


@pytest.fixture(scope="module")
def folder(comparison: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_page_has_every_figure_with_its_caption(folder: Path, comparison: dict[str, Any], page: Page) -> None:
    names = {"set-ups", "overview", "differences", "matrix", "exchange", "calibration", "curves", "roc-1", "roc-2"}
    assert {file.name for file in (folder / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    }
    assert {attributes["id"] for attributes in page.all("figure")} == {f"figure-{name}" for name in names}
    assert len(page.all("svg")) == len(page.all("figcaption")) == len(names)
    assert all(attributes.get("aria-label") for _, attributes in page.tags if attributes.get("role") == "img")
    assert not list(folder.glob(".*"))


def test_what_is_undefined_says_why_and_is_no_number(page: Page) -> None:
    for note in ("one class only: 114 absent", "no study", "no validation studies: no threshold"):
        assert note in page.text
    assert not re.search(r"\b(nan|None|null|inf)\b", page.text)


def test_interval_that_is_missing_keeps_value_and_note() -> None:
    cell = estimate({**interval_of(0.5, 1), "low": None, "high": None, "note": "one patient"}, tables.as_score)
    assert (cell.text, cell.note) == ("0.500", "no interval: one patient")
    nothing = estimate({**interval_of(None, 2), "value": math.nan}, tables.as_score)
    assert (nothing.text, nothing.note) == ("", "undefined")


def test_text_of_others_is_escaped(folder: Path, text: str, page: Page) -> None:
    assert HOSTILE not in text and html.escape(HOSTILE) in text
    assert "<script" not in text and "<script>alert('$x$ | y')</script>" in page.text
    for name in ("set-ups", "overview", "differences", "exchange", "roc-2", "curves"):
        words = "".join(ElementTree.parse(folder / "figures" / f"{name}.svg").getroot().itertext())
        assert HOSTILE in words, f"{name}: the name is there as it stands, its dollar signs too"


def test_control_characters_do_not_reach_a_file() -> None:
    evil = "a\x00b\x1b[31m\u202ec\ud800\r\nd" + "e" * 500
    assert shown(evil, 20) == "a\ufffdb\ufffd[31m\ufffdc\ufffd deeeeee…"
    hostile = make_comparison(sites=(evil, "two"), names=("A", "D"), num_seeds=1)
    with drawing():
        drawn = figures.render(draw_setups(hostile) or pytest.fail("no figure"))
    Page(build_page(hostile, {"set-ups": drawn}))
    assert "\x1b" not in markdown(hostile) + drawn.svg


def test_same_comparison_gives_same_bytes(folder: Path, comparison: dict[str, Any], text: str) -> None:
    again = render_figures(copy.deepcopy(comparison))
    for name, drawn in again.items():
        assert (folder / "figures" / f"{name}.svg").read_text() == drawn.svg, name
        assert (folder / "figures" / f"{name}.png").read_bytes() == drawn.png, name
        assert not re.search(r"<metadata|<dc:|20\d\d-\d\d", drawn.svg)
    assert build_page(comparison, again) == text


def test_inline_svg_touches_nothing_else_on_the_page(page: Page, text: str) -> None:
    assert len(page.all("style")) == 1
    assert "xmlns" not in text and "<!DOCTYPE svg" not in text


def markdown_tables(text: str) -> Iterator[list[list[str]]]:
    for block in text.split("\n\n"):
        if block.startswith("|"):
            yield [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]


def test_markdown_tables_have_equal_rows(comparison: dict[str, Any]) -> None:
    text = markdown(comparison)
    found = list(markdown_tables(text))
    assert len(found) == 6 + 2
    for rows in found:
        assert len(rows) > 2 and len({len(row) for row in rows}) == 1, rows[0]
        assert all(re.fullmatch(r" ?-+:? ?", cell) for cell in rows[1])
        assert all(cell.strip() for row in rows for cell in row)
    assert HOSTILE not in text and "<" not in text and "st. &lt;b&gt;&amp;\\$\\|\\$\\_x\\_" in text
    assert [cell.strip() for cell in found[-1][0][3:]] == ["AUROC, A", "AUROC, B", "AUROC, C", "AUROC, D"]
    overview = overview_rows(comparison)
    assert len(found[1]) == 2 + len(overview.rows) and len(found[1][0]) == len(overview.columns)


def test_markdown_makes_no_link(comparison: dict[str, Any]) -> None:
    evil = {**comparison, "notes": ["[a](https://evil.example) ![b](x) `c` *d*\n# e"]}
    last = markdown(evil).strip().splitlines()[-1]
    assert "](" not in last.replace(r"]\(", "") and "://" not in last and r"\`c\` \*d\* # e" in last


def test_console_table_shows_names_as_they_stand() -> None:
    comparison = make_comparison(sites=("[red]nih[/red]", "two"), names=("A", "C"), undefined_sites=("two",))
    console = Console(file=StringIO(), width=200, force_terminal=False)
    console.print(console_table(comparison))
    output = console.file.getvalue()
    assert "[red]nih[/red]" in output and "one class only: 12 absent" in output


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
    list(markdown_tables(markdown(comparison)))


def test_four_sites_have_a_column_each() -> None:
    sites = ("one", "two", "three", "four")
    comparison = make_comparison(sites=sites, names=("D",), num_seeds=1)
    with drawing():
        figure = draw_setups(comparison)
        assert figure is not None
        paper = figure.axes[0]
        words = [label.get_text() for label in paper.texts]
        assert all(words.count(site) == 2 for site in sites)  # below its column and in the legend
        assert all(words.count(block) == 1 for block in BLOCKS)
        width, height = figure.get_size_inches()
        for label in paper.texts:
            box = label.get_window_extent().transformed(paper.transData.inverted())
            assert min(box.x0, box.y1) >= 0 and box.x1 <= width and box.y0 <= height, label.get_text()


def test_sites_from_outside_and_missing_files_are_told(comparison: dict[str, Any]) -> None:
    outside = {"name": "vindr", "data_sha256": "00" * 32, "note": "took no part; judged on only"}
    gone = {"name": "nih", "data_sha256": "11" * 32, "note": "its study file is not here"}
    new = copy.deepcopy(comparison)
    new["sites"] = [gone, new["sites"][1], outside]
    new["policies"].append({**new["policies"][0], "site": "vindr", "policy": "of nih"})
    new["matrix"].append({**new["matrix"][0], "site": "vindr"})
    check_comparison(new)
    with drawing():
        drawn = {"set-ups": figures.render(draw_setups(new) or pytest.fail("no figure"))}
    page = Page(build_page(new, drawn))
    assert "vindr" not in drawn["set-ups"].svg, "it has no column: it trains nothing"
    assert "its study file is not here" in page.text and "took no part; judged on only" in page.text
    assert "studies of vindr, which took no part" in page.text
    assert matrix_rows(new).columns[-1] == "on vindr"
    assert policy_rows(new, ["A"]).rows[-1][0].text == "vindr"


def test_broken_comparison_is_one_line(comparison: dict[str, Any], tmp_path: Path) -> None:
    for change, said in (
        ({"schema": 1}, "expected schema 2, found 1"),
        ({"schema": None}, "expected schema 2, found None"),
        ({"results": {}}, "comparison.results: expected a list, found a dict"),
        ({"sites": [None]}, "comparison.sites[0]: expected an object, found nothing"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
            write_report({**comparison, **change}, tmp_path)
        assert "\n" not in str(caught.value) and "make the comparison again" in str(caught.value)
    missing: tuple[tuple[str | int, ...], ...] = (
        ("notes",),
        ("experiments", 1, "blocks"),
        ("results", 0, "labels", 2, "auroc", "low"),
        ("results", 0, "frequent", "mean_over"),
        ("differences", 0, "frequent"),
    )
    for path in missing:
        broken: Any = copy.deepcopy(comparison)
        place = broken
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]
        for act in (markdown, console_table, lambda broken: write_report(broken, tmp_path)):
            with pytest.raises(CheckpointError, match=f"expected the key {path[-1]}, found none"):
                act(broken)
    assert not list(tmp_path.iterdir())


def test_report_is_whole_or_absent(
    comparison: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "render_figures", lambda _: {"set-ups": Drawn(SVG, b"png")})
    write_report(comparison, tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(report, "write_text", fail)
        with pytest.raises(CheckpointError, match=r"No space left on device.*may write to"):
            write_report({**comparison, "notes": []}, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before

    (tmp_path / "figures" / "thesis.docx").touch()
    with pytest.raises(CheckpointError, match="expected figures alone"):
        write_report(comparison, tmp_path)
    assert (tmp_path / "figures" / "thesis.docx").exists()
    with pytest.raises(CheckpointError, match="cannot write the report"):
        write_report(comparison, tmp_path / "report.html")


SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt" viewBox="0 0 1 1"></svg>'


def test_main_differences_are_the_study_s_and_each_variant_s_own(comparison: dict[str, Any]) -> None:
    new = copy.deepcopy(comparison)
    first = new["differences"][0]
    for b in ("A", "C", "D"):
        new["differences"].append({**first, "a": "D-head", "b": b, "split": "test"})
    pairs = {(one["a"], one["b"]) for one in main_differences(new)}
    assert pairs == {("C", "A"), ("D", "A"), ("D", "C"), ("D", "B"), ("D-head", "D")}
    assert {one["split"] for one in main_differences(new)} == {"test"}
    only = [{**first, "a": "D-head", "b": "A", "split": "validate"}]
    assert main_differences({**new, "differences": only}) == only


def test_table_of_all_pairs_has_the_bootstrap_beside_where_it_is_there(comparison: dict[str, Any]) -> None:
    new = copy.deepcopy(comparison)
    for one in new["differences"]:
        one["macro_auroc_bootstrap"] = one["frequent"]["macro_auroc_bootstrap"] = difference_of(0.0321, 3)
    assert "the same by bootstrap" in difference_rows(new, is_whole=True).columns
    assert {len(row) for row in difference_rows(new, is_whole=True).rows} == {9}
    assert difference_rows(new, is_whole=True).rows[0][5].text == "+0.032 [+0.012, +0.052]"
    assert difference_rows(new).columns == difference_rows(comparison, is_whole=True).columns


def test_every_row_says_which_labels_its_means_are_over(comparison: dict[str, Any], page: Page) -> None:
    """A row each for all labels with both classes and for the frequent ones; one where these are the same."""
    few = "with 10 present and 10 absent or more"
    rows = [[cell.text for cell in row[:3]] for row in overview_rows(comparison).rows]
    assert rows[:2] == [["nih", "A", "5 labels with both classes"], ["nih", "A", f"2 labels {few}"]]
    alike = copy.deepcopy(comparison)
    for one in alike["results"]:
        one["frequent"] = {name: one[name] for name in one["frequent"]}
    assert {row[2].text for row in overview_rows(alike).rows} == {f"5 labels, all {few}", f"3 labels, all {few}"}
    differences = [row[2].text for row in difference_rows(comparison).rows]
    assert differences[:2] == ["5 labels with both classes", f"2 labels {few}"]
    assert differences[-1] == f"each site's labels {few}"
    assert label_set_rows(comparison).rows[0][2].text == ", ".join(DEFINED[:2])
    assert "means over one set of labels" in page.text and f"of these, {few}" in page.text
    assert "2 labels with 10 present" in markdown(comparison)


def test_exchange_is_in_order_of_bytes(comparison: dict[str, Any]) -> None:
    names = [row[0].text for row in exchange_rows(comparison).rows]
    assert names[:2] == ["A", "D"] and set(names[-2:]) == {"B", "C"}


def test_labels_lie_apart_and_inside() -> None:
    chance = random.Random(0)
    within = Box(0, 0, 300, 200)
    for _ in range(20):
        points = [(chance.choice([20, 150, 152, 155, 160]), chance.uniform(10, 190)) for _ in range(11)]
        sizes = [(chance.uniform(8, 60), 9.5) for _ in points]
        dots = [Box(x - 3, y - 3, 6, 6) for x, y in points]
        placed = place_labels(points, sizes, dots, within)
        assert all(within.holds(box) for box in placed)
        assert not any(box.overlaps(other) for box, other in itertools.combinations(placed, 2))
        assert not any(box.overlaps(dot) for box in placed for dot in dots)


def test_pooled_calibration_is_that_of_all_studies() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.random((3, 200)), rng.integers(0, 2, (3, 200)).astype(np.float64)

    def curve(scores_N: Any, targets_N: Any) -> list[tuple[float, float, int]]:
        bins = np.minimum((scores_N * 10).astype(int), 9)
        of_bin = [bins == number for number in range(10)]
        return [(scores_N[one].mean(), targets_N[one].mean(), int(one.sum())) for one in of_bin if one.any()]

    pooled = pool_bins([curve(*one) for one in zip(scores, targets, strict=True)])
    np.testing.assert_allclose(pooled, curve(scores.ravel(), targets.ravel()))


def test_numbers_are_written_as_they_are_read() -> None:
    assert [as_difference(value) for value in (0.0124, -0.0124, -0.0004)] == ["+0.012", "−0.012", "0.000"]
    assert [as_p(value) for value in (0.0341, 0.00049, None)] == ["0.034", "< 0.001", "undefined"]
    assert [as_bytes(value) for value in (0, 0.0, 999, 28_110_000, 4.95e9, None)] == [
        "0",
        "0",
        "999 B",
        "28.1 MB",
        "4.95 GB",
        "not known",
    ]


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
