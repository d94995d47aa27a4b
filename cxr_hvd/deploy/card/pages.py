"""A model card as Markdown that the Hugging Face Hub reads, and as a page that needs no network and no script."""

from collections.abc import Sequence
from typing import Any

from cxr_hvd.deploy.card.card import NO_LICENCE, CardFacts
from cxr_hvd.deploy.card.section import Section
from cxr_hvd.deploy.rendering import TEMPLATES, render, render_page
from cxr_hvd.terminal import shown
from cxr_hvd.yaml_text import dump_yaml


def front_matter(facts: CardFacts) -> dict[str, Any]:
    """Return what the Hugging Face Hub reads at the head of a card: licence, tags, library, metrics.

    The model index stands only where results do. Its mean is over labels with ten studies of each class.
    """
    record, results = facts.record, facts.run.results
    matter: dict[str, Any] = {"license": facts.licence or "other"}
    if facts.licence is None:
        matter |= {"license_name": NO_LICENCE.replace(" ", "-"), "license_link": "LICENSE"}
    matter |= {
        "library_name": "monai" if facts.checks else "safetensors",
        "pipeline_tag": "image-classification",
        "tags": ["chest-x-ray", "medical", "multi-label", "federated-learning", "cxr_hvd", record.name],
    }
    if facts.checks:
        matter["tags"] += ["monai", "onnx"]
    if results is None or results.frequent.macro_auroc is None:
        return matter
    metric = {
        "type": "roc_auc",
        "name": f"mean AUROC over {len(results.frequent.mean_over)} labels",
        "value": round(results.frequent.macro_auroc, 4),
    }
    entry = {
        "task": {"type": "image-classification", "name": "Findings of a chest X-ray study"},
        "dataset": {
            "type": results.site,
            "name": f"{results.split} studies of {results.site}",
            "split": results.split,
        },
        "metrics": [metric],
    }
    return matter | {
        "metrics": ["roc_auc"],
        "model-index": [{"name": f"{record.name}-{record.site}", "results": [entry]}],
    }


def as_markdown(facts: CardFacts, sections: Sequence[Section]) -> str:
    """Return README.md: front matter, then the sections."""
    return render(
        "README.md",
        matter=dump_yaml(front_matter(facts)),
        title=_plain(facts.title),
        sections=sections,
        plain=_plain,
    )


def as_page(facts: CardFacts, sections: Sequence[Section]) -> str:
    """Return card.html; all that comes from a run is escaped."""
    return render_page("card.html", TEMPLATES / "card.css", title=facts.title, sections=sections)


def _plain(text: str) -> str:
    """Return a text as one line of Markdown in which nothing of others is markup."""
    line = shown(text, 4000)
    for mark in "\\|<>[]*`#":
        line = line.replace(mark, f"\\{mark}")
    return line
