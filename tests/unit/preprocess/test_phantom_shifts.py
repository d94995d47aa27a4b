"""Shifts between institutions: each changes one thing, by a degree, and leaves all else as it was."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from cxr_hvd.study.labels import LABELS
from preprocess.phantom.hospital import (
    COMMON,
    CONFUSED,
    RARE,
    RISING,
    STYLES,
    Shift,
    SiteStyle,
    Study,
    draw_studies,
    shift_acquisition,
    shift_concept,
    shift_labels,
)
from preprocess.phantom.phantom import expose, write_phantom
from preprocess.records import SourceOptions
from preprocess.sources import SOURCES
from tests.helpers.commands import preprocess_here
from tests.helpers.phantoms import file_digests

DEGREES = (0.0, 0.25, 0.5, 0.75, 1.0)

CELLS = st.lists(st.sampled_from(("1.0", "0.0", "-1.0", "")), min_size=14, max_size=14).map(tuple)

SHARES = st.floats(0, 1, exclude_max=True)


@given(CELLS, SHARES)
def test_a_shift_of_degree_0_is_the_identity(cells: tuple[str, ...], chance: float) -> None:
    assert shift_concept(cells, 0, chance) == cells
    for style in STYLES.values():
        assert shift_labels(style, 0) == shift_acquisition(style, 0) == style


@pytest.mark.parametrize("shift_style", [shift_labels, shift_acquisition])
@pytest.mark.parametrize("layout", STYLES)
def test_label_and_acquisition_shift_touch_other_parts_of_a_style(
    layout: str, shift_style: Callable[[SiteStyle, float], SiteStyle]
) -> None:
    before, after = vars(STYLES[layout]), vars(shift_style(STYLES[layout], 1))
    changed = {name for name in before if before[name] != after[name]}
    acquisition = {"gamma", "zoom", "flattening", "noise", "blur_px", "collimation"}
    assert changed == ({"prevalence"} if shift_style is shift_labels else acquisition)


@pytest.mark.parametrize("layout", STYLES)
def test_label_shift_gives_the_same_patients_more_of_some_findings_and_less_of_others(layout: str) -> None:
    sites = [_studies(shift_labels(STYLES[layout], degree), 3000, 1) for degree in DEGREES]
    for style, studies in zip((shift_labels(STYLES[layout], degree) for degree in DEGREES), sites, strict=True):
        for name in set(style.prevalence) - {"Lung Opacity", "Support Devices"}:
            share = (1 - style.healthy) * style.prevalence[name]
            share_of_studies = np.mean([name in study.findings for study in studies])
            assert abs(share_of_studies - share) < 4.5 * np.sqrt(share * (1 - share) / len(studies)), name
    assert sites[-1] != sites[0]
    for lower, higher in pairwise(sites):
        for before, after in zip(lower, higher, strict=True):
            assert (before.patient, before.body, before.views) == (after.patient, after.body, after.views)
            # Study by study, what gets common is only added and what gets rare only taken away.
            assert before.findings & RISING <= after.findings & RISING
            ordinary = set(LABELS) - RISING - {"No Finding", "Lung Opacity"}
            assert before.findings & ordinary >= after.findings & ordinary
            for label, *cells in zip(LABELS, before.cells, after.cells, strict=True):
                if (label in before.findings) == (label in after.findings):
                    assert cells[0] == cells[1]
    ends = shift_labels(STYLES[layout], 1).prevalence
    assert ends == {name: COMMON if name in RISING else RARE for name in ends}


def test_label_shift_leaves_the_films_of_equal_findings_as_they_are() -> None:
    style, seed = STYLES["chexpert"], 3
    shifted = shift_labels(style, 0.5)
    pairs = list(zip(_studies(style, 30, seed), _studies(shifted, 30, seed), strict=True))
    is_alike = [before.findings == after.findings for before, after in pairs]
    assert 5 < sum(is_alike) < len(pairs) - 5
    for (before, after), alike in zip(pairs, is_alike, strict=True):
        films = [expose(before, 0, style, seed, 0), expose(after, 0, shifted, seed, 0)]
        # No Finding and Lung Opacity follow from other findings; nothing is drawn for the former.
        assert (films[0] == films[1]) == alike


@pytest.mark.parametrize("layout", STYLES)
def test_acquisition_shift_changes_films_alone_and_grows_with_the_degree(tmp_path: Path, layout: str) -> None:
    for degree in DEGREES:
        write_phantom(tmp_path / str(degree), layout, 4, 3, Shift(acquisition=degree))
    films, others = (
        [
            {
                path: digest
                for path, digest in file_digests(tmp_path / str(degree)).items()
                if (".jpg" in path) == is_film
            }
            for degree in DEGREES
        ]
        for is_film in (True, False)
    )
    assert all(site == others[0] for site in others) and all(site.keys() == films[0].keys() for site in films)
    assert all(len({site[path] for site in films}) == len(DEGREES) for path in films[0])
    shades = [
        [cv2.imread(str(tmp_path / str(degree) / path), cv2.IMREAD_GRAYSCALE).astype(float) for path in films[0]]
        for degree in DEGREES
    ]
    apart = [np.mean([np.abs(a - b).mean() for a, b in zip(shades[0], site, strict=True)]) for site in shades]
    assert (np.diff(apart) > 1).all()


def test_acquisition_shift_keeps_what_a_film_shows() -> None:
    """Every shifted film resembles the same study's unshifted one more than any other's."""
    style, seed = STYLES["chexpert"], 5
    studies, shifted = _studies(style, 24, seed), shift_acquisition(style, 1)
    here, there = (
        np.stack([_small(expose(study, 0, one, seed, 0), 64, share) for study in studies])
        for one, share in ((style, 1.0), (shifted, shifted.zoom[0]))
    )
    alike = np.corrcoef(there - there.mean(axis=0), here - here.mean(axis=0))[: len(studies), len(studies) :]
    assert (alike.argmax(axis=1) == np.arange(len(studies))).all()


@pytest.mark.parametrize(("layout", "table"), [("chexpert", "t*.csv"), ("mimic-cxr", "*-chexpert.csv.gz")])
def test_concept_shift_changes_labels_alone(tmp_path: Path, layout: str, table: str) -> None:
    for name, shift in (("a", Shift()), ("b", Shift(concept=1))):
        write_phantom(tmp_path / name, layout, 12, 3, shift)
    here, there = file_digests(tmp_path / "a"), file_digests(tmp_path / "b")
    changed = {path for path in here if here[path] != there[path]}
    assert here.keys() == there.keys()
    assert changed and changed <= {
        path for path in here if Path(path).match(table) or Path(path).match("valid.csv")
    }
    one, other = (
        {study.study_id: study.labels for study in SOURCES[layout](tmp_path / name, SourceOptions()).studies}
        for name in ("a", "b")
    )
    swapped = list(LABELS)
    for first, second in CONFUSED:
        at, to = LABELS.index(first), LABELS.index(second)
        swapped[at], swapped[to] = swapped[to], swapped[at]
    order = [LABELS.index(name) for name in swapped]
    for study, labels in one.items():
        np.testing.assert_array_equal(np.array(labels)[order], other[study])


@given(CELLS, SHARES, SHARES)
def test_concept_shift_swaps_names_and_invents_nothing(
    cells: tuple[str, ...], degree: float, chance: float
) -> None:
    shifted = shift_concept(cells, degree, chance)
    assert sorted(shifted) == sorted(cells)
    assert shift_concept(shifted, degree, chance) == cells
    others = set(LABELS) - {name for pair in CONFUSED for name in pair}
    assert all(shifted[LABELS.index(name)] == cells[LABELS.index(name)] for name in others)


@given(CELLS, SHARES, SHARES, st.sampled_from(DEGREES))
def test_at_a_quarter_all_readers_agree(
    cells: tuple[str, ...], chance: float, other_chance: float, degree: float
) -> None:
    assert shift_concept(cells, degree, chance) == shift_concept(cells, degree, other_chance)


@given(SHARES, SHARES, SHARES)
def test_concept_shift_grows_with_the_degree(chance: float, one: float, other: float) -> None:
    names = tuple(LABELS)
    lower, higher = (
        {name for name, cell in zip(names, shift_concept(names, degree, chance), strict=True) if name != cell}
        for degree in sorted((one, other))
    )
    assert lower <= higher


def test_between_two_quarters_some_readers_swap_the_next_pair(tmp_path: Path) -> None:
    sites = []
    for degree in (0.0, 0.1):
        write_phantom(tmp_path / str(degree), "chexpert", 40, 3, Shift(concept=degree))
        studies = SOURCES["chexpert"](tmp_path / str(degree), SourceOptions()).studies
        sites.append(np.nan_to_num(np.array([study.labels for study in studies]), nan=2))
    one, other = (LABELS.index(name) for name in CONFUSED[0])
    could = sites[0][:, one] != sites[0][:, other]
    did = (sites[0] != sites[1]).any(axis=1)
    assert (did <= could).all() and 0.1 < did.sum() / could.sum() < 0.7


def test_shifts_do_not_meddle_with_each_other(tmp_path: Path) -> None:
    for name, shift in (
        ("all", Shift(0.5, 0.5, 1)),
        ("no_label", Shift(0, 0.5, 1)),
        ("no_acquisition", Shift(0.5, 0, 1)),
        ("no_concept", Shift(0.5, 0.5, 0)),
        ("concept", Shift(0, 0, 1)),
    ):
        write_phantom(tmp_path / name, "chexpert", 8, 3, shift)
    films, tables = (
        {
            name: {path: digest for path, digest in file_digests(tmp_path / name).items() if path.endswith(end)}
            for name in ("all", "no_label", "no_acquisition", "no_concept", "concept")
        }
        for end in (".jpg", ".csv")
    )
    assert films["all"] == films["no_concept"] and tables["all"] != tables["no_concept"]
    assert tables["all"] == tables["no_acquisition"] and films["all"] != films["no_acquisition"]
    assert tables["no_label"] == tables["concept"]


def test_what_is_learnt_without_a_shift_is_worth_less_with_one() -> None:
    """A linear model on small films, the simplest that learns something here."""
    weights, center = _fitted(*_site(160, 1, Shift()))

    def macro_auroc(films: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
        scores = (films - center) @ weights
        return float(np.mean([roc_auc_score(*pair) for pair in zip(labels.T, scores.T, strict=True)]))

    films, labels = _site(100, 2, Shift())
    here = macro_auroc(films, labels)
    assert here > 0.8
    assert macro_auroc(*_site(100, 2, Shift(acquisition=1))) < here - 0.15
    renamed = [[shift_concept(tuple(row), degree, 0) for row in labels] for degree in (0.5, 1)]
    assert here - 0.04 > macro_auroc(films, np.array(renamed[0])) > macro_auroc(films, np.array(renamed[1]))


@pytest.mark.parametrize("kind", ["label", "acquisition", "concept"])
@pytest.mark.parametrize("degree", ["-0.1", "1.01", "nan", "inf"])
def test_a_degree_outside_of_0_to_1_is_refused(tmp_path: Path, kind: str, degree: str) -> None:
    job = preprocess_here("phantom", tmp_path / "new", "--studies", 1, f"--{kind}-shift={degree}")
    assert job.exit_code == 2 and job.output.count("\n") == 1
    assert f"--{kind}-shift: expected a number from 0 (none) to 1 (strong), found {degree}" in job.output
    assert not (tmp_path / "new").exists()


def test_the_command_says_which_shifts_it_made(tmp_path: Path) -> None:
    command = ("phantom", tmp_path / "b", "--studies", 2, "--seed", 3)
    job = preprocess_here(*command, "--acquisition-shift", 0.5, "--concept-shift", 1)
    assert job.exit_code == 0 and "layout of chexpert, acquisition shift 0.5, concept shift 1" in job.output
    write_phantom(tmp_path / "c", "chexpert", 2, 3, Shift(acquisition=0.5, concept=1))
    assert file_digests(tmp_path / "b") == file_digests(tmp_path / "c")


def _studies(style: SiteStyle, num_studies: int, seed: int) -> list[Study]:
    return draw_studies(np.random.default_rng([seed, 0]), style, num_studies)


def _small(film: bytes, size: int, share: float = 1.0) -> NDArray[np.float64]:
    """Return the middle of a film, `share` of its height and width, as (size * size,) shades of 0 to 1."""
    pixels = cv2.imdecode(np.frombuffer(film, np.uint8), cv2.IMREAD_GRAYSCALE)
    top, left = (int(length * (1 - share) / 2) for length in pixels.shape)
    middle = pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left]
    return np.asarray(cv2.resize(middle, (size, size), interpolation=cv2.INTER_AREA).ravel() / 255, np.float64)


def _site(num_studies: int, seed: int, shift: Shift) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first films (N, 1024) of a site's studies and their labels (N, 14), 1 present and 0 else."""
    style = shift_acquisition(STYLES["chexpert"], shift.acquisition)
    studies = _studies(style, num_studies, seed)
    films = np.stack([_small(expose(study, 0, style, seed, 0), 32) for study in studies])
    return films, np.array([[cell == "1.0" for cell in study.cells] for study in studies], np.float64)


def _fitted(films: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return weights and center of a ridge regression."""
    center = films.mean(axis=0)
    gram = (films - center) @ (films - center).T
    return (films - center).T @ np.linalg.solve(
        gram + 10 * np.eye(len(films)), labels - labels.mean(axis=0)
    ), center
