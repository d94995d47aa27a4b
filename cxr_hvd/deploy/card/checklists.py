"""Reporting checklists in a model card: for each item, where the card states it, or that it is missing.

CLAIM, 2024 update (Tejani et al., Radiology: Artificial Intelligence 2024), and TRIPOD+AI (Collins et al., BMJ
2024). Items are in own words. What no run can know (ethics, funding, demographics) is missing until somebody
writes it.
"""

from collections.abc import Set
from dataclasses import dataclass

MISSING = "missing"
BY_AUTHORS = "missing: for the authors to write"
OF_PAPER = "of a paper, not of a model card"


@dataclass(frozen=True)
class Item:
    """An item of a checklist.

    Attributes:
        number: as the checklist numbers it.
        text: what it asks for, in a few words.
        fact: the fact that answers it; empty where the program has none.
        place: where the card states the fact, or why there is none.
    """

    number: str
    text: str
    fact: str
    place: str


CLAIM = (
    Item("1", "title names the AI method", "", OF_PAPER),
    Item("2", "structured summary", "", OF_PAPER),
    Item("3", "background, intended use and role", "always", "What it is for"),
    Item("4", "aims and hypotheses", "", BY_AUTHORS),
    Item("5", "prospective or retrospective", "", BY_AUTHORS),
    Item("6", "study goal", "always", "What it is for"),
    Item("7", "data sources", "sites", "Data"),
    Item("8", "inclusion and exclusion criteria", "", BY_AUTHORS),
    Item("9", "data preprocessing", "always", "Data; preprocess.py"),
    Item("10", "selection of data subsets", "", BY_AUTHORS),
    Item("11", "de-identification", "always", "Data: ids are keyed hashes; images are as the sites had them"),
    Item("12", "handling of missing data", "labels", "Data: labels that are uncertain or not mentioned"),
    Item("13", "image acquisition", "", BY_AUTHORS),
    Item("14", "definition of the reference standard", "", BY_AUTHORS),
    Item("15", "why this reference standard", "", BY_AUTHORS),
    Item("16", "who annotated", "", BY_AUTHORS),
    Item("17", "annotation of the test set", "", BY_AUTHORS),
    Item("18", "agreement of annotators", "", BY_AUTHORS),
    Item("19", "how data were assigned to partitions", "counts", "Data"),
    Item("20", "level at which partitions are disjoint", "always", "Data: by patient"),
    Item("21", "intended sample size", "", BY_AUTHORS),
    Item("22", "the model in detail", "always", "Training; What was shared; the files"),
    Item("23", "software and versions", "training", "Training"),
    Item("24", "first values of parameters", "training", "Training"),
    Item("25", "training approach", "training", "Training"),
    Item("26", "how the final model was chosen", "training", "Training"),
    Item("27", "ensembling", "always", "What was shared, and what stayed private"),
    Item("28", "metrics", "results", "Results"),
    Item("29", "uncertainty", "results", "Results: intervals over patients"),
    Item("30", "robustness or sensitivity analysis", "", MISSING),
    Item("31", "explainability", "", "missing here: cxr-hvd explain"),
    Item("32", "evaluation on internal data", "results", "Results"),
    Item("33", "testing on external data", "", MISSING),
    Item("34", "registration of a trial", "", BY_AUTHORS),
    Item("35", "numbers of patients included and excluded", "", "numbers included: Data; excluded: missing"),
    Item("36", "demographics of each partition", "", MISSING),
    Item("37", "performance with uncertainty", "results", "Results"),
    Item("38", "diagnostic performance with precision", "results", "Results"),
    Item("39", "analysis of failures", "", MISSING),
    Item("40", "limitations", "always", "Limits"),
    Item("41", "implications for practice", "always", "What it is for: research alone"),
    Item("42", "full protocol", "", BY_AUTHORS),
    Item("43", "availability of software, model and data", "always", "Files; Licence"),
    Item("44", "funding", "", BY_AUTHORS),
)

TRIPOD_AI = (
    Item("1", "title", "", OF_PAPER),
    Item("2", "abstract", "", OF_PAPER),
    Item("3a", "context and rationale", "always", "What it is for"),
    Item("3b", "target population and users", "", BY_AUTHORS),
    Item("3c", "known health inequalities", "", BY_AUTHORS),
    Item("4", "objectives", "", BY_AUTHORS),
    Item("5a", "sources of data", "sites", "Data"),
    Item("5b", "dates of the data", "", BY_AUTHORS),
    Item("6a", "setting and centres", "", "centres: Data; setting: missing"),
    Item("6b", "eligibility", "", BY_AUTHORS),
    Item("6c", "treatments received", "", BY_AUTHORS),
    Item("7", "preparation of the data", "always", "Data; preprocess.py"),
    Item("8a", "outcome and how it is assessed", "", "names: Thresholds; assessment: missing"),
    Item("8b", "who assessed the outcome", "", BY_AUTHORS),
    Item("8c", "blinding of that", "", BY_AUTHORS),
    Item("9a", "choice of predictors", "always", "Data: the images alone"),
    Item("9b", "definition of predictors", "always", "Data; preprocess.py"),
    Item("9c", "who assessed predictors", "always", "nobody: pixels go in as they are"),
    Item("10", "sample size", "", "numbers: Data; reason: missing"),
    Item("11", "missing data", "labels", "Data: labels that are uncertain or not mentioned"),
    Item("12a", "how data were used, partitions", "counts", "Data"),
    Item("12b", "handling of predictors", "always", "preprocess.py"),
    Item("12c", "type of model and how it was built", "training", "Training"),
    Item("12d", "heterogeneity between clusters", "always", "What was shared; Results of each site"),
    Item("12e", "measures of performance", "results", "Results"),
    Item("12f", "model updating", "", "none was done"),
    Item("12g", "how predictions were computed in evaluation", "always", "Files"),
    Item("13", "class imbalance", "training", "Training: loss"),
    Item("14", "fairness", "", MISSING),
    Item("15", "output and thresholds", "always", "Thresholds"),
    Item("16", "differences of training and evaluation data", "counts", "Data"),
    Item("17", "ethical approval", "", BY_AUTHORS),
    Item("18a", "funding", "", BY_AUTHORS),
    Item("18b", "conflicts of interest", "", BY_AUTHORS),
    Item("18c", "protocol", "", BY_AUTHORS),
    Item("18d", "registration", "", BY_AUTHORS),
    Item("18e", "sharing of data", "always", "What was shared: no image left a site"),
    Item("18f", "sharing of code", "always", "Files"),
    Item("19", "patient and public involvement", "", BY_AUTHORS),
    Item("20a", "flow of participants", "", MISSING),
    Item("20b", "characteristics of participants", "", MISSING),
    Item("20c", "comparison of development and evaluation data", "counts", "Data"),
    Item("21", "participants and outcomes in each analysis", "counts", "Data"),
    Item("22", "the full model", "always", "Files"),
    Item("23a", "performance with intervals", "results", "Results; subgroups: missing"),
    Item("23b", "heterogeneity of performance", "setup", "Results of each site"),
    Item("24", "results of updating", "", "none was done"),
    Item("25", "interpretation", "", BY_AUTHORS),
    Item("26", "limitations", "always", "Limits"),
    Item("27a", "input of poor quality", "", MISSING),
    Item("27b", "interaction and expertise of users", "", BY_AUTHORS),
    Item("27c", "next steps", "", BY_AUTHORS),
)

CHECKLISTS = {"CLAIM, 2024 update": CLAIM, "TRIPOD+AI": TRIPOD_AI}


def fill(items: tuple[Item, ...], facts: Set[str]) -> list[tuple[str, str, str]]:
    """Return number, text and place of each item; `missing` where its fact is none of `facts`."""
    return [
        (item.number, item.text, item.place if item.fact in ("", "always") or item.fact in facts else MISSING)
        for item in items
    ]
