"""The data statement of a model card: which studies of which sites, by counts that recognise nobody."""

from collections.abc import Mapping

from cxr_hvd.deploy.card.run_facts import RunFacts
from cxr_hvd.deploy.card.section import CardTable, Section
from cxr_hvd.experiment.comparison import SiteDescription
from cxr_hvd.training.network_record import NetworkRecord

UNKNOWN = "not known"
FEWEST = 10
"""Smaller numbers of studies are not written down."""

SPLITS = ("train", "validate", "test")


def data_section(record: NetworkRecord, run: RunFacts) -> Section:
    """Return the section "Data"."""
    sites = run.sites or tuple(SiteDescription(name=site, data_sha256="", note=None) for site in record.sites)
    paragraphs = [
        "Patients are in one of training, validation and test alone. Identifiers are keyed hashes.",
        f"Images were made by the pixel pipeline {record.pixels} and scaled to {record.image_size} x "
        f"{record.image_size} pixels; the ratio of width to height and the size of a pixel are not kept.",
    ]
    if run.config is not None:
        labels = run.config.labels
        paragraphs.append(
            f"In training a label that is uncertain counts as: {describe_policy(labels.uncertain)}; one that the "
            f"source does not mention as: {describe_policy(labels.blank)}."
        )
    rows = tuple(
        (
            site.name,
            site.source or (f"{UNKNOWN}: {site.note}" if site.note else UNKNOWN),
            *(_studies_and_patients(site, split) for split in SPLITS),
            ", ".join(record.known_labels.get(site.name, [])) or "none",
        )
        for site in sites
    )
    columns = ("site", "layout", *(f"{split}: studies / patients" for split in SPLITS), "labels that it knows")
    label_tables = tuple(_label_table(site) for site in sites if site.labels)
    return Section("Data", tuple(paragraphs), tables=(CardTable("Sites", columns, rows), *label_tables))


def describe_policy(policy: object) -> str:
    """Return a value of the config, or several by their names, as words."""
    if isinstance(policy, Mapping):
        return ", ".join(f"{key}: {value}" for key, value in policy.items())
    return str(policy)


def write_counts(*counts: int) -> str:
    """Return numbers of studies that make up a whole, as text.

    Where one is so small that its patients could be recognised, it is not written, and neither is the largest,
    from which it could be worked out.
    """
    if not any(0 < count < FEWEST for count in counts):
        return " / ".join(f"{count:,}" for count in counts)
    largest = counts.index(max(counts))
    words = [f"under {FEWEST}" if 0 < count < FEWEST else f"{count:,}" for count in counts]
    words[largest] = "the rest"
    return " / ".join(words)


def _label_table(site: SiteDescription) -> CardTable:
    splits = [split for split in SPLITS if site.num_studies.get(split)]
    rows = tuple(
        (
            label.label,
            *(
                write_counts(
                    label.present[split], label.absent[split], label.uncertain[split] + label.blank[split]
                )
                for split in splits
            ),
        )
        for label in site.labels
    )
    columns = ("label", *(f"{split}: present / absent / not known" for split in splits))
    return CardTable(f"Labels of {site.name}, in studies", columns, rows)


def _studies_and_patients(site: SiteDescription, split: str) -> str:
    studies, patients = site.num_studies.get(split), site.num_patients.get(split)
    if studies is None:
        return UNKNOWN
    return f"{studies:,} / {UNKNOWN if patients is None else format(patients, ',')}"
