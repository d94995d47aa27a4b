"""What is said of study files: duplicates, distances, the page, and a flipped byte among many threads."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_hvd.errors import DataError, StudyFileError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split, StudyRow, View
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.study.study_writer import StudyFileWriter
from lab.study_files import SIZE, header, write_study_file
from preprocess.inspect.distances import SiteSample, js_divergence, load_sample, site_distances, wasserstein
from preprocess.inspect.duplicates import Place, find_duplicates
from preprocess.inspect.verify import verify_digests
from preprocess.parallel.progress import Silence
from tests.helpers.commands import preprocess_here


def _write(path: Path, images_of_study: list[list[int]], **changes: object) -> Path:
    """Write studies whose images are named by number: equal numbers are equal images; 0 is black."""
    rows = [
        StudyRow(f"s{index}", f"p{index // 2}", Split(index // 2 % 3), (View.PA,) * len(images), (0.0,) * 14)
        for index, images in enumerate(images_of_study)
    ]
    writer = StudyFileWriter(path, header(**changes), len(rows))
    for row, images in zip(rows, images_of_study, strict=True):
        drawn = [
            np.random.default_rng(number).integers(0, 256, (SIZE, SIZE), dtype=np.uint8) * (number > 0)
            for number in images
        ]
        writer.append(row, np.stack(drawn).astype(np.uint8))
    writer.close()
    return path


def test_duplicates_are_found_within_and_across_files(tmp_path: Path) -> None:
    one = _write(tmp_path / "a.h5", [[1, 2], [0, 3], [4], [2], [0], [5]])
    other = _write(tmp_path / "b.h5", [[6], [7, 3], [0], [3], [1], [8]])
    duplicates = find_duplicates([one, other])
    split = [Split.TRAIN, Split.TRAIN, Split.VALIDATE, Split.VALIDATE, Split.TEST, Split.TEST]
    assert [[place[:3] for place in places] for places in duplicates.places] == [
        [(0, 0, 0), (1, 4, 0)],
        [(0, 0, 1), (0, 3, 0)],
        [(0, 1, 1), (1, 1, 1), (1, 3, 0)],
    ]
    assert all(isinstance(p, Place) and p.split is split[p.study] for places in duplicates.places for p in places)
    # Pairs of files to images, studies and patients of the first.
    assert duplicates.overlaps == {(0, 0): (2, 2, 2), (0, 1): (2, 2, 1), (1, 1): (2, 2, 2)}
    assert (duplicates.num_blank, duplicates.num_leaks) == (3, 3)
    job = preprocess_here("compare", one, other)
    assert job.exit_code == 3 and "A study 0 image 0 (train) = B study 4 image 0 (test)" in job.output
    assert json.loads(preprocess_here("compare", one, other, "--json").output)["leaks"] == 3
    assert not re.search(r"\b[ps]\d", job.output)


def test_files_without_a_common_image_and_of_other_pipelines(tmp_path: Path) -> None:
    one = _write(tmp_path / "a.h5", [[1], [2], [3]])
    other = _write(tmp_path / "b.h5", [[4], [5], [0]])
    job = preprocess_here("compare", one, other)
    assert job.exit_code == 0 and "no image occurs twice" in job.output
    refused = _write(tmp_path / "c.h5", [[1]], pixels="other-1")
    with pytest.raises(DataError, match="expected the pixel pipeline of"):
        find_duplicates([one, refused])
    # A script tells what was found from what was refused.
    assert preprocess_here("compare", one, refused).exit_code == 1
    assert "Exit code 3" in preprocess_here("compare", "--help").output


shares = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)


@given(shares, shares)
def test_divergence_is_a_distance_of_shares(one: list[int], other: list[int]) -> None:
    p, q = np.array(one, float), np.array(other, float)
    apart = float(js_divergence(p, q))
    assert 0 <= apart <= 1 + 1e-12 and math.isclose(apart, float(js_divergence(q, p)), abs_tol=1e-12)
    assert math.isclose(float(js_divergence(p, 3 * p)), 0, abs_tol=1e-12)
    # The written definition: entropy of the middle less the mean entropy.
    p, q = p / p.sum(), q / q.sum()
    entropy = [-sum(x * math.log2(x) for x in part if x > 0) for part in ((p + q) / 2, p, q)]
    assert math.isclose(apart, entropy[0] - (entropy[1] + entropy[2]) / 2, abs_tol=1e-9)


def test_divergence_and_wasserstein_of_known_cases() -> None:
    assert float(js_divergence(np.array([1.0, 0]), np.array([0, 5.0]))) == 1
    shades = np.eye(256)
    assert wasserstein(shades[10], shades[30]) == 20
    assert wasserstein(shades[10] + shades[20], shades[20] + shades[30]) == 10


def test_equal_sites_are_as_far_apart_as_chance_and_other_sites_are_farther(tmp_path: Path) -> None:
    paths = [write_study_file(tmp_path / f"{seed}.h5", 200, seed) for seed in (1, 2)]
    pair = site_distances([load_sample(path) for path in paths])[0]
    assert list(pair.labels) == list(LABELS)
    assert pair.labels_total.js_bits < 3 * pair.labels_total.chance
    assert pair.pixels.wasserstein_shades < 5
    one = load_sample(paths[0])
    ill = SiteSample("ill", one.label_names, np.zeros_like(one.states_NL), np.roll(one.shades_MS, 40, axis=1))
    far = site_distances([one, ill])[0]
    assert far.labels_total.js_bits > 20 * far.labels_total.chance
    assert far.labels["Edema"].prevalence[1] == 1


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_stands_alone_and_is_escaped(tmp_path: Path) -> None:
    files = [
        write_study_file(tmp_path / "a.h5", 30, 1, tuple(Split)),
        write_study_file(tmp_path / "b.h5", 30, 2, tuple(Split), source="<script>x</script>"),
    ]
    html = tmp_path / "page.html"
    job = preprocess_here("inspect", *files, "--html", html)
    assert job.exit_code == 0 and "Wasserstein" in job.output
    text = html.read_text()
    page = _Page()
    page.feed(text)
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2 * 30
    assert all(source.startswith("data:image/png;base64,") for source in images)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    assert not re.search(r"https?://|@import|url\(", text)
    assert "patient1" not in text and "study1" not in text
    assert html.stat().st_mode & 0o077 == 0
    assert preprocess_here("inspect", *files, "--html", html).exit_code == 2


@pytest.mark.parametrize("changes", [{"pixels": "other-1"}, {"image_size": 32}], ids=["pipeline", "size"])
def test_pixels_of_two_pipelines_are_not_compared_and_everybody_is_told(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    one = write_study_file(tmp_path / "a.h5", 30, 1, tuple(Split))
    other, html = tmp_path / "b.h5", tmp_path / "page.html"
    writer = StudyFileWriter(other, header(**changes), 3)
    size = int(changes.get("image_size", SIZE))  # type: ignore[call-overload]
    for split in Split:
        row = StudyRow(f"s{split}", f"p{split}", split, (View.PA,), (0.0,) * 14)
        writer.append(row, np.full((1, size, size), 9, np.uint8))
    writer.close()
    job = preprocess_here("inspect", one, other, "--html", html)
    assert job.exit_code == 0 and "Wasserstein" not in job.output + html.read_text()
    for text in (job.output, html.read_text()):
        assert "do not train on both" in " ".join(text.split()) and f"test-1 at {SIZE} px" in text
    [pair] = json.loads(preprocess_here("inspect", one, other, "--json").output)["distances"]
    assert pair["pixels"] is None and pair["labels_total"]["js_bits"] > 0
    assert "not compared" not in preprocess_here("inspect", one, one).output


def test_films_of_one_shade_are_counted(tmp_path: Path) -> None:
    path, html = _write(tmp_path / "a.h5", [[1, 0], [0, 2], [3]]), tmp_path / "page.html"
    job = preprocess_here("inspect", path, "--html", html)
    assert "films of one shade, which show nothing: 2 images" in job.output
    assert "<b>2</b><span>of one shade</span>" in html.read_text()
    assert json.loads(preprocess_here("inspect", path, "--json").output)["files"][0]["one_shade"] == 2


def test_a_share_is_the_same_in_both_tables_and_on_the_page(tmp_path: Path) -> None:
    """Also where it falls between two tenths of a percent, where labels are blank, and where none was assessed."""
    present, absent = 37, 2000 - 37  # 1.85%
    values = [1.0] * present + [0.0] * absent + [-1.0] * 40 + [np.nan] * 23
    names, html = ("Edema", "Fracture"), tmp_path / "page.html"
    for name in ("a.h5", "b.h5"):
        writer = StudyFileWriter(tmp_path / name, header(label_names=names, image_size=8), len(values))
        for index, value in enumerate(values):
            split = Split(index % 3)
            row = StudyRow(f"s{index}", f"p{index}", split, (View.PA,), (value, np.nan))
            writer.append(row, np.full((1, 8, 8), index % 256, np.uint8))
        writer.close()
    job = preprocess_here("inspect", tmp_path / "a.h5", tmp_path / "b.h5", "--html", html)
    edema = {share for line in job.lines("Edema") for share in re.findall(r"[\d.]+%", line)}
    assert len(edema) == 1
    assert set(re.findall(r'<td class="n">([\d.]+%|never assessed)</td>', _labels_of(html))) == {
        *edema,
        "never assessed",
    }
    assert all("never assessed" in line and "%" not in line for line in job.lines("Fracture"))


def _labels_of(html: Path) -> str:
    return html.read_text().partition("<h2>Labels</h2>")[2].partition("<h2>Gray shades</h2>")[0]


def test_verify_names_the_first_of_several_damaged_studies(tmp_path: Path) -> None:
    path = write_study_file(tmp_path / "a.h5", 300)
    assert verify_digests(path, Silence(), 4)[0] == 300
    content = bytearray(path.read_bytes())
    with StudyFile(path) as file:
        for index in (290, 130, 131):
            content[content.index(file.images(index)[-1].tobytes()) + 7] ^= 4
    path.write_bytes(content)
    with pytest.raises(StudyFileError, match=r"of study 130 differs .*\(3 of 300 studies are damaged\)"):
        verify_digests(path, Silence(), 4)
