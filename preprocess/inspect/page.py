"""The page that `inspect --html` writes: one file, no script, nothing fetched; light and dark.

Sites stand side by side, each in a color of its own. What is drawn comes from `inspection`, `distances` and
`contact_sheet`; this module only lays it out (page.css styles it). Everything out of a file is escaped.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cxr_hvd.errors import DataError
from cxr_hvd.files import write_text
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from preprocess.inspect.contact_sheet import Tile, draw_tiles
from preprocess.inspect.distances import SHADES, STATES, Traits
from preprocess.inspect.summary import not_compared, share

_COLORS = 4
_SHOWN = ("present", "uncertain", "absent", "blank")
# A distance of so many times what chance gives is set in bold.
_FAR = 3.0


def write_page(
    path: Path,
    files: Sequence[Path],
    described: Sequence[dict[str, Any]],
    sites: Sequence[Traits],
    apart: Sequence[dict[str, Any]],
    seed: int,
) -> None:
    """Write the page of one or more study files, readable by its owner only: it shows images of patients.

    Args:
        path: the page. files: the study files.
        described, sites, apart: what `inspection.describe`, `distances.traits` and `site_distances` say of them.
        seed: of the studies that are shown.

    Raises:
        DataError: the page cannot be written.
    """
    names = " · ".join(escape(str(one["site"])) for one in described)
    parts = [
        f"<h1>{names}</h1><p>What {'these study files hold' if len(files) > 1 else 'this study file holds'}, "
        "counted by study. Bars are shares of all studies of a file; “present” is the share among the studies "
        "where the label was assessed, present or absent.</p>",
        f'<section class="row">{"".join(map(_overview, range(len(files)), described))}</section>',
        "<h2>Labels</h2>" + _labels(described, apart),
        "<h2>Gray shades</h2>" + _shades(described, sites, apart),
        *[_distances(pair, described) for pair in apart],
        "<h2>Contact sheets</h2><p>Random studies of each split: the first image of each, its views, and the "
        f"labels that are present. Seed {seed}.</p>",
        *[
            _sheets(number, file, one, seed)
            for number, (file, one) in enumerate(zip(files, described, strict=True))
        ],
    ]
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{names}</title><style>{style}</style></head><body>'
        f"<main>{''.join(parts)}<footer>Written by cxr-preprocess inspect. It shows images of patients: keep it "
        "as you keep the study files.</footer></main></body></html>\n"
    )
    try:
        write_text(path, page)
    except OSError as error:
        raise DataError(f"{path}: cannot write the page here ({error.strerror}); choose another --html") from error


def _color(number: int) -> str:
    return f"--c:var(--s{number % _COLORS})"


def _overview(number: int, one: dict[str, Any]) -> str:
    totals = {
        "studies": one["studies"],
        "patients": sum(split["patients"] for split in one["splits"].values()),
        "images": one["images"],
        "of one shade": one["one_shade"],
        "MB": one["bytes"] / 1e6,
    }
    numbers = "".join(f"<div><b>{value:,.0f}</b><span>{name}</span></div>" for name, value in totals.items())
    rows = "".join(
        f"<tr><td>{split}</td>" + "".join(f'<td class="n">{count:,}</td>' for count in counts.values()) + "</tr>"
        for split, counts in one["splits"].items()
    )
    return (
        f'<div class="card site" style="{_color(number)}"><h2>{escape(one["site"])}</h2>'
        f"<small>{escape(one['file'])}<br>source {escape(one['source'])} · pixels {escape(one['pixels'])} at "
        f"{one['image_size']} px · seed {one['seed']} · {escape(one['created'])}</small>"
        f'<div class="numbers">{numbers}</div><table><tr><th>split</th><th class="n">patients</th>'
        f'<th class="n">studies</th><th class="n">images</th></tr>{rows}</table>'
        f"<h3 style='margin-top:18px'>Images per study</h3>{_bars(one['images_per_study'])}"
        f"<h3 style='margin-top:18px'>Views</h3>{_bars(one['views'])}</div>"
    )


def _bars(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    longest = max(counts.values())
    return (
        '<div class="bars">'
        + "".join(
            f'<span>{escape(name)}</span><i style="width:{count / longest:.2%}"></i>'
            f"<span>{count:,} ({count / total:.1%})</span>"
            for name, count in counts.items()
        )
        + "</div>"
    )


def _labels(described: Sequence[dict[str, Any]], apart: Sequence[dict[str, Any]]) -> str:
    """A row a label; a stacked bar for each site, and for exactly two sites how far apart they are."""
    pair = apart[0] if len(apart) == 1 else None
    names = dict.fromkeys(name for one in described for name in one["labels"])
    head = "".join(f'<th>{escape(one["site"])}</th><th class="n">present</th>' for one in described)
    head += '<th class="n">JS, bits</th>' if pair else ""
    rows = []
    for name in names:
        cells = "".join(_stack(number, one, name) for number, one in enumerate(described))
        if pair:
            cells += _far_cell(pair["labels"].get(name), "js_bits", "chance", 3)
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    key = "".join(f'<span><i class="{state}" style="{_color(0)}"></i>{state}</span>' for state in _SHOWN)
    table = f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
    return f'<div class="card"><div class="key">{key}</div>{table}</div>'


def _stack(number: int, one: dict[str, Any], name: str) -> str:
    counts = one["labels"].get(name)
    if counts is None:
        return '<td></td><td class="n"></td>'
    shares = {state: counts[state] / one["studies"] for state in STATES}
    parts = "".join(
        f'<i class="{state}" style="width:{shares[state]:.3%}" title="{state} {shares[state]:.1%}"></i>'
        for state in _SHOWN
    )
    bar = f'<div class="stack" style="{_color(number)}">{parts}</div>'
    return f'<td>{bar}</td><td class="n">{share(counts["prevalence"])}</td>'


def _far_cell(found: dict[str, Any] | None, name: str, chance: str, digits: int) -> str:
    if found is None:
        return '<td class="n"></td>'
    is_far = found[name] > _FAR * found[chance]
    return f'<td class="n{" far" if is_far else ""}">{found[name]:.{digits}f}</td>'


def _shades(described: Sequence[dict[str, Any]], sites: Sequence[Traits], apart: Sequence[dict[str, Any]]) -> str:
    """Histograms over each other, and their figures."""
    width, height = 1000, 180
    top = max(np.quantile(site.shades_MS.mean(0), 0.985) for site in sites) * 1.15
    drawn = []
    for number, site in enumerate(sites):
        ys = height - np.minimum(1.0, site.shades_MS.mean(0) / top) * height
        line = " ".join(f"{shade * width / (SHADES - 1):.1f},{y:.1f}" for shade, y in enumerate(ys))
        color = f"var(--s{number % _COLORS})"
        drawn.append(
            f'<polygon points="0,{height} {line} {width},{height}" fill="{color}" fill-opacity=".14"/>'
            f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>'
        )
    marks = "".join(
        f'<text x="{shade * width / 255:.0f}" y="{height + 16}" text-anchor="{anchor}">{shade}</text>'
        for shade, anchor in ((0, "start"), (64, "middle"), (128, "middle"), (192, "middle"), (255, "end"))
    )
    rows = "".join(
        f'<tr><td style="color:var(--s{number % _COLORS})"><b>{escape(one["site"])}</b></td>'
        + "".join(f'<td class="n">{one["shades"][name]:.0f}</td>' for name in ("mean", "std", "p5", "p50", "p95"))
        + "".join(f'<td class="n">{one["shades"][name]:.1%}</td>' for name in ("black", "white"))
        + "</tr>"
        for number, one in enumerate(described)
    )
    head = "".join(f'<th class="n">{name}</th>' for name in ("mean", "std", "5%", "50%", "95%", "black", "white"))
    mixed = "".join(
        f"<p><b>A {escape(pair['files'][0])}, B {escape(pair['files'][1])}: {escape(not_compared(pair))}.</b></p>"
        for pair in apart
        if pair["pixels"] is None
    )
    return (
        f'{mixed}<div class="card"><svg viewBox="0 0 {width} {height + 22}" role="img" aria-label="gray shades">'
        f"{''.join(drawn)}{marks}</svg><table><tr><th></th>{head}</tr>{rows}</table></div>"
    )


def _distances(pair: dict[str, Any], described: Sequence[dict[str, Any]]) -> str:
    names = [escape(one["site"]) for file in pair["files"] for one in described if one["file"] == file][:2]
    rows = ""
    for what, found, name, chance, digits, unit in (
        ("labels, mean Jensen-Shannon divergence", pair["labels_total"], "js_bits", "chance", 4, "bits"),
        ("pixels, Jensen-Shannon divergence", pair["pixels"], "js_bits", "js_chance", 4, "bits"),
        ("pixels, Wasserstein distance", pair["pixels"], "wasserstein_shades", "wasserstein_chance", 1, "shades"),
    ):
        if found is not None and found[name] is not None:
            rows += (
                f"<tr><td>{what}</td>{_far_cell(found, name, chance, digits)}"
                f'<td class="n">{found[chance]:.{digits}f}</td><td class="n">{unit}</td></tr>'
            )
    return (
        f"<h2>How far apart: {' and '.join(names)}</h2><p>0 means alike. Beside each distance stands what chance "
        f"gives where the same studies are dealt out at random; in bold what exceeds {_FAR:.0f} times that.</p>"
        '<div class="card"><table><tr><th></th><th class="n">distance</th><th class="n">by chance</th>'
        f"<th></th></tr>{rows}</table></div>"
    )


def _sheets(number: int, path: Path, one: dict[str, Any], seed: int) -> str:
    with StudyFile(path) as file:
        tiles = {split: draw_tiles(file, split, seed) for split in Split}
    parts = [
        f"<h3>{split.name.lower()}</h3><div class='tiles'>{''.join(map(_figure, drawn))}</div>"
        for split, drawn in tiles.items()
        if drawn
    ]
    return (
        f'<div class="card site" style="{_color(number)};margin-bottom:18px"><h2>{escape(one["site"])}</h2>'
        f'<div style="margin-top:12px">{"".join(parts)}</div></div>'
    )


def _figure(tile: Tile) -> str:
    views = " ".join(view.lower() if len(view) > 2 else view for view in tile.views)
    labels = ", ".join(map(escape, tile.labels)) or "no label present"
    return (
        f'<figure><img src="{tile.url}" alt="study {tile.index}" loading="lazy">'
        f"<figcaption><b>{tile.index}</b> {escape(views)}<br>{labels}</figcaption></figure>"
    )
