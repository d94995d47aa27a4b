"""The report of a comparison: one page that needs no network and no script, and its figures as files.

Owns the words and how the page is put together. Numbers come from `tables` and `details`, pictures from `figures`;
order and layout stand in report.html.jinja and report.css. All that comes from a comparison is escaped.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cxr_hvd.errors import CheckpointError, UsageError
from cxr_hvd.experiment.schema import check_comparison
from cxr_hvd.files import begin_folder, check_output, finish_folder, write_text
from cxr_hvd.report import details, tables
from cxr_hvd.report.figures.pages import Drawn, render_figures
from cxr_hvd.report.format import as_count, is_number, shown

PAGE, COMPARISON = "report.html", "comparison.json"
FIGURES = "figures"
# What the page says of itself, so that a later report may take its place.
_MARK = '<meta name="generator" content="cxr-hvd report">'

_HERE = Path(__file__).with_name("templates")
_NAMESPACE = re.compile(r"\{[^}]*\}")


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder where a report would replace what is no earlier report.

    Raises:
        UsageError: there is a page, a comparison or a folder of figures of another origin, and `overwrite` is
            False; or one of them is a link, a FIFO or a device.
    """
    page, figures = folder / PAGE, folder / FIGURES
    is_report = False
    if page.is_file():
        with page.open("rb") as file:
            is_report = _MARK.encode() in file.read(1000)
    for path in (page, folder / COMPARISON):
        check_output(path, overwrite or is_report)
    if figures.is_symlink() or (figures.exists() and not (figures.is_dir() and (overwrite or is_report))):
        raise UsageError(
            f"{figures}: expected nothing or the figures of an earlier report, found something else; choose "
            "another --out or add --overwrite to replace them"
        )


def write_report(comparison: Mapping[str, Any], folder: Path) -> Path:
    """Write report.html and figures/*.svg, *.png into a folder; return the page's path.

    Figures of an earlier report there are replaced. Each is written whole or not at all, the page last.

    Raises:
        CheckpointError: this is no comparison of schema 2, or it cannot be written there.
    """
    check_comparison(comparison)
    drawn = render_figures(comparison)
    page = build_page(comparison, drawn)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_figures(folder / FIGURES, drawn)
        write_text(folder / PAGE, page)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot write the report ({error.strerror}); name a folder that you may write to"
        ) from error
    return folder / PAGE


def build_page(comparison: Mapping[str, Any], drawn: Mapping[str, Drawn]) -> str:
    """Return the page as HTML, with these figures in it."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "count": as_count}
    sites = tables.site_names(comparison)
    return environment.get_template("report.html.jinja").render(
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        title=_title(comparison),
        summary=summary(comparison),
        comparison=comparison,
        tables=tables,
        details=details,
        sites=sites,
        chosen=tables.chosen(comparison),
        results={site: [one for one in comparison["results"] if one["site"] == site] for site in sites},
        figures={name: Markup(inline(one.svg, name)) for name, one in drawn.items()},
        roc={site: f"roc-{number}" for number, site in enumerate(sites, start=1)},
    )


def summary(comparison: Mapping[str, Any]) -> list[str]:
    """Say in plain sentences what was compared."""
    setups, judged = comparison["experiments"], tables.site_names(comparison)
    sites = [site for site in comparison["sites"] if site["name"] in judged]
    outside = [shown(site["name"]) for site in comparison["sites"] if site["name"] not in judged]
    seeds = sorted({seed for one in setups for seed in one["seeds"]}, key=lambda seed: (len(str(seed)), str(seed)))
    steps = sorted({one["num_steps"] for one in setups if is_number(one["num_steps"])})
    places = [_said_site(site) for site in sites]
    said = [
        f"{_counted(len(setups), 'set-up')} of one network {'was' if len(setups) == 1 else 'were'} trained on the "
        f"studies of {_counted(len(sites), 'site')}: {_listed(places)}."
    ]
    if seeds:
        many = f"{'seeds' if len(seeds) > 1 else 'seed'} {_listed(list(map(shown, seeds)))}"
        of_each = {tuple(sorted(one["seeds"], key=str)) for one in setups}
        each = (
            f"Each was trained with {many}"
            if len(of_each) == 1
            else f"They were trained with {many}, not each with all"
        )
        said.append(f"{each}, for {_range(steps)} steps." if steps else f"{each}.")
    said.append("All were judged on the same test studies of every site.")
    if outside:
        said.append(f"Networks were also tried on studies of {_listed(outside)}, which took no part in training.")
    if is_number(comparison["num_resamples"]):
        resamples = as_count(comparison["num_resamples"])
        said.append(
            f"Intervals are of 95%, from {resamples} resamples of patients and seeds unless said otherwise."
        )
    return said


def inline(svg: str, name: str) -> str:
    """Return an SVG file as an element of a page: no namespaces, no styles for all of the page, ids of its own."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in [one for one in parent if one.tag.endswith(("}style", "}metadata"))]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        for key in list(element.attrib):
            value = element.attrib.pop(key)
            if key == "id":
                value = f"{name}-{value}"
            elif key.endswith("href"):
                value = f"#{name}-{value.removeprefix('#')}"
            elif value.startswith("url(#"):
                value = f"url(#{name}-{value.removeprefix('url(#')}"
            element.attrib[_NAMESPACE.sub("", key)] = value
        if "font-family" in (style := element.attrib.get("style", "")):
            element.attrib["style"] = style.replace(
                "'DejaVu Sans', sans-serif", "'DejaVu Sans', Verdana, sans-serif"
            )
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"stroke-linejoin": "round", "aria-hidden": "true", "focusable": "false"}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _write_figures(folder: Path, drawn: Mapping[str, Drawn]) -> None:
    if folder.is_dir() and any(each.suffix not in (".svg", ".png") for each in folder.iterdir()):
        raise CheckpointError(f"{folder}: expected figures alone, found other files; choose another folder")
    beside = begin_folder(folder)
    for name, one in drawn.items():
        (beside / f"{name}.svg").write_text(one.svg, encoding="utf-8")
        (beside / f"{name}.png").write_bytes(one.png)
    finish_folder(folder)


def _title(comparison: Mapping[str, Any]) -> str:
    names = [shown(one["name"]) for one in comparison["experiments"]]
    sites = list(map(shown, tables.site_names(comparison)))
    return f"{_counted(len(names), 'set-up')} compared at {_listed(sites) or 'no site'}"


def _said_site(site: Mapping[str, Any]) -> str:
    counts = site.get("num_studies") or {}
    said = [f"{as_count(counts[split])} to {split}" for split in ("train", "test") if split in counts]
    return f"{shown(site['name'])} ({', '.join(said)})" if said else shown(site["name"])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _range(numbers: Sequence[float]) -> str:
    ends = dict.fromkeys((as_count(numbers[0]), as_count(numbers[-1])))
    return " to ".join(ends)
