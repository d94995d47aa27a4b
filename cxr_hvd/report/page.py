"""The report of a comparison: one page that needs no network and no script, and its figures as files.

Owns the words and how the page is put together. Numbers come from `tables` and `details`, pictures from `figures`;
order and layout stand in report.html.jinja and report.css. All that comes from a comparison is escaped.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cxr_hvd.errors import CheckpointError, UsageError
from cxr_hvd.experiment.comparison import Comparison, SiteDescription
from cxr_hvd.files import begin_folder, check_output, finish_folder, write_text
from cxr_hvd.report import clinical, details, tables
from cxr_hvd.report.figures.pages import Drawn, render_figures
from cxr_hvd.report.format import as_count, as_named, shown

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


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write report.html and figures/*.svg, *.png into a folder; return the page's path.

    Figures of an earlier report there are replaced. Each is written whole or not at all, the page last.

    Raises:
        CheckpointError: it cannot be written there.
    """
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


def build_page(comparison: Comparison, drawn: Mapping[str, Drawn]) -> str:
    """Return the page as HTML, with these figures in it."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "count": as_count}
    sites = comparison.site_names
    return environment.get_template("report.html.jinja").render(
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        title=_title(comparison),
        summary=summary(comparison),
        comparison=comparison,
        tables=tables,
        details=details,
        clinical=clinical,
        has_thresholds=clinical.has_thresholds(comparison),
        has_subgroups=any(result.subgroups for result in comparison.results),
        is_alone=len(comparison.experiments) == 1,
        has_seeds=any(len(setup.seeds) > 1 for setup in comparison.experiments),
        sites=sites,
        chosen=tables.choose_setups(comparison),
        results={site: [result for result in comparison.results if result.site == site] for site in sites},
        figures={name: Markup(inline(figure.svg, name)) for name, figure in drawn.items()},
        place={site: number for number, site in enumerate(sites, start=1)},
    )


def summary(comparison: Comparison) -> list[str]:
    """Say in plain sentences what was compared."""
    setups, judged = comparison.experiments, comparison.site_names
    sites = [site for site in comparison.sites if site.name in judged]
    outside = [shown(site.name) for site in comparison.sites if site.name not in judged]
    seeds = sorted({seed for setup in setups for seed in setup.seeds})
    steps = sorted({setup.num_steps for setup in setups})
    is_alone = len(setups) == 1
    subject = "One network was" if is_alone else f"{as_named(len(setups), 'set-up')} of one network were"
    sentences = [
        f"{subject} trained on the studies of {as_named(len(sites), 'site')}: "
        f"{_listed(list(map(_describe_site, sites)))}."
    ]
    if seeds:
        names = f"{'seeds' if len(seeds) > 1 else 'seed'} {_listed(list(map(str, seeds)))}"
        are_alike = len({tuple(sorted(setup.seeds)) for setup in setups}) == 1
        trained = f"{'It' if is_alone else 'Each'} was trained with {names}"
        if not are_alike:
            trained = f"They were trained with {names}, not each with all"
        ends = " to ".join(dict.fromkeys((as_count(steps[0]), as_count(steps[-1]))))
        sentences.append(f"{trained}, for {ends} steps.")
    judged_on = "the test studies of every site" if len(sites) > 1 else "the site's test studies"
    sentences.append(f"{'It was' if is_alone else 'All were'} judged on {judged_on}.")
    if outside:
        institutions = _listed(outside)
        sentences.append(f"Networks were also tried on studies of {institutions}, which took no part in training.")
    resamples = as_count(comparison.num_resamples)
    sentences.append(
        f"Intervals are of 95%, from {resamples} resamples of patients{' and seeds' if len(seeds) > 1 else ''} "
        "unless said otherwise."
    )
    return sentences


def inline(svg: str, name: str) -> str:
    """Return an SVG file as an element of a page: no namespaces, no styles for all of the page, ids of its own."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in [element for element in parent if element.tag.endswith(("}style", "}metadata"))]:
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
    if folder.is_dir() and any(path.suffix not in (".svg", ".png") for path in folder.iterdir()):
        raise CheckpointError(f"{folder}: expected figures alone, found other files; choose another folder")
    beside = begin_folder(folder)
    for name, figure in drawn.items():
        (beside / f"{name}.svg").write_text(figure.svg, encoding="utf-8")
        (beside / f"{name}.png").write_bytes(figure.png)
    finish_folder(folder)


def _title(comparison: Comparison) -> str:
    sites = list(map(shown, comparison.site_names))
    if len(comparison.experiments) == 1:
        return f"{shown(comparison.experiments[0].name)} at {_listed(sites) or 'no site'}"
    return f"{as_named(len(comparison.experiments), 'set-up')} compared at {_listed(sites) or 'no site'}"


def _describe_site(site: SiteDescription) -> str:
    counts = site.num_studies
    parts = [f"{as_count(counts[split])} to {split}" for split in ("train", "test") if split in counts]
    return f"{shown(site.name)} ({', '.join(parts)})" if parts else shown(site.name)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
