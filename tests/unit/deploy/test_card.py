"""A model card says what is known, names what is missing, and the Hugging Face Hub can read it."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cxr_hvd.deploy.card.card import CardFacts, build_card, known_facts
from cxr_hvd.deploy.card.checklists import CLAIM, TRIPOD_AI, fill
from cxr_hvd.deploy.card.data import write_counts
from cxr_hvd.deploy.card.pages import as_markdown, as_page, front_matter
from cxr_hvd.deploy.card.run_facts import RunFacts, read_comparison
from cxr_hvd.ledger.plan_record import BufferRecord, PlanRecord
from cxr_hvd.monitor.results_file import LabelResult, SiteResults
from cxr_hvd.study.labels import LABELS
from cxr_hvd.yaml_text import parse_yaml
from tests.helpers.comparisons import make_comparison
from tests.helpers.networks import record_of


def results_of(site: str = "north") -> SiteResults:
    """Return results of all labels; Fracture is in three studies."""
    means = {
        "mean_over": ("Edema",),
        "macro_auroc": 0.8125,
        "mean_accuracy": 0.9,
        "mean_all_negative_accuracy": 0.8,
        "macro_average_precision": 0.5,
        "mean_brier": 0.1,
        "mean_sensitivity": 0.6,
        "mean_accuracy_at_threshold": None,
        "note": None,
    }
    label = dict.fromkeys(LabelResult.model_fields) | {"num_studies": 40}
    bounds = {"macro_auroc": (0.7, 0.9), "mean_accuracy": None}
    values = {
        **means,
        "site": site,
        "experiment": "D",
        "split": "test",
        "checkpoint": "best",
        "step": 4,
        "num_studies": 40,
        "frequent": means,
        "labels": tuple(
            label | {"label": name, "auroc": 0.75, "num_present": 3 if name == "Fracture" else 12}
            for name in LABELS
        ),
        "intervals": {**dict.fromkeys(LABELS), "Edema": (0.6, 0.85), **bounds, "frequent": bounds},
    }
    return SiteResults.model_validate(values)


def card_facts(**changes: object) -> CardFacts:
    values: dict[str, object] = {"record": record_of(), "private_of": ("north",), **changes}
    return CardFacts(**values)  # type: ignore[arg-type]


def markdown(facts: CardFacts) -> str:
    return as_markdown(facts, build_card(facts))


def test_results_stand_with_their_intervals_in_the_card_and_for_the_hub() -> None:
    facts = card_facts(run=RunFacts(results=results_of()), licence="cc-by-4.0")
    card = markdown(facts)
    assert "| Edema | 12 / 28 | 0.750 \\[0.600, 0.850\\] |" in card
    assert "| Fracture | under 10 / the rest | too few studies |  |" in card
    assert "| mean over 1 labels |  | 0.812 \\[0.700, 0.900\\] |" in card
    matter = parse_yaml(card.split("---\n")[1], "README.md")
    assert matter == front_matter(facts) and matter["license"] == "cc-by-4.0"
    [entry] = matter["model-index"][0]["results"]
    assert entry["metrics"] == [{"type": "roc_auc", "name": "mean AUROC over 1 labels", "value": 0.8125}]


def test_the_comparison_of_its_set_up_stands_in_the_card_site_by_site(tmp_path: Path) -> None:
    """Where its run belongs to it by the config's digest, and nowhere else."""
    comparison = make_comparison(("nih", "guangzhou"))
    setup = comparison.experiments[0]
    (tmp_path / "comparison.json").write_text(comparison.as_json())
    found, judged = read_comparison(tmp_path / setup.name / "seed-1", setup.config_sha256[0])
    assert found == setup and {result.site for result in judged} == set(comparison.site_names)
    assert read_comparison(tmp_path / setup.name / "seed-1", "of another config") == (None, ())
    facts = card_facts(run=RunFacts(setup=found, judged=judged))
    card = markdown(facts)
    assert f"Set-up {setup.name}, of which this network is one" in card
    assert {"results", "setup"} <= known_facts(facts)
    for result in judged:
        auroc = result.macro_auroc
        assert f"| {result.site} | {result.network} |" in card and f"{auroc.value:.3f}" in card


@pytest.mark.parametrize("results", [None, results_of()])
def test_the_hubs_own_reader_takes_it(results: SiteResults | None) -> None:
    cards = pytest.importorskip("huggingface_hub").ModelCard
    data = cards(markdown(card_facts(run=RunFacts(results=results)))).data
    assert data.license == "other" and "chest-x-ray" in data.tags
    assert [result.metric_value for result in data.eval_results or []] == ([0.8125] if results else [])


def test_what_is_not_known_is_said_to_be_missing() -> None:
    card = markdown(card_facts())
    assert "Missing: to be chosen by the sites" in card
    assert "Missing: neither cxr-hvd evaluate nor cxr-hvd report left numbers" in card
    assert "The run's folder was not at hand" in card
    assert known_facts(card_facts()) == set()


def test_every_item_of_both_checklists_has_a_place_or_is_missing() -> None:
    assert [item.number for item in CLAIM] == [str(number) for number in range(1, 45)]
    numbers = [item.number for item in TRIPOD_AI]
    assert len(numbers) == len(set(numbers))
    assert list(dict.fromkeys(int(re.sub(r"\D", "", number)) for number in numbers)) == list(range(1, 28))
    titles = {section.title for section in build_card(card_facts())}
    for items in (CLAIM, TRIPOD_AI):
        for (number, _, place), item in zip(fill(items, frozenset()), items, strict=True):
            assert place == "missing" if item.fact not in ("", "always") else place, number
        for item in items:
            first = re.split(r"[;:]", item.place)[0].strip()
            if item.fact and first in ("Data", "Training", "Results", "Limits", "Files", "What it is for"):
                assert first in titles


def test_small_numbers_of_studies_are_not_written_and_cannot_be_worked_out() -> None:
    assert write_counts(20, 580, 0) == "20 / 580 / 0"
    assert write_counts(7, 593, 0) == "under 10 / the rest / 0"
    assert write_counts(0, 3, 5) == "0 / under 10 / the rest"


def test_names_of_others_are_no_markup() -> None:
    label = "a|b<script>alert(1)</script>"
    record = record_of(label_names=[label], known_labels={}, trained_labels=[label], thresholds={})
    facts = card_facts(record=record)
    card, page = markdown(facts), as_page(facts, build_card(facts))
    assert "<script>" not in page and "a\\|b\\<script\\>" in card
    rows = [row.replace("\\|", "") for row in card.splitlines() if row.startswith("| a\\|b")]
    assert [row.count("|") for row in rows] == [3]
    assert "http" not in page and "<link" not in page
    ElementTree.fromstring(page[page.index("<main>") : page.index("</body>")])


def test_only_shared_bytes_count_as_exchanged_between_hospitals() -> None:
    buffers = [
        BufferRecord(
            purpose="weights",
            block="stem",
            num_elements=10,
            dtype="float32",
            scope=scope,
            bytes_per_exchange=2_000_000,
        )
        for scope in ("shared", "private", "shared")
    ]
    plan = PlanRecord(exchange="weights", wire="float32", every=3, moments=[], tensors=[], buffers=buffers)
    card = markdown(card_facts(run=RunFacts(plan=plan)))
    assert "Exchanged between hospitals: weights, every 3 steps, as float32, 4.00 MB from each rank" in card


def test_merged_studies_are_not_said_to_have_stayed_apart() -> None:
    assert "studies of all hospitals were merged" in markdown(card_facts(record=record_of(experiment="B")))
