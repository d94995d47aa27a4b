"""A model card: what a network is for, what made it, how good it is, and what is not known. Its words and numbers.

Owns the sections. How they become Markdown and a page is in `pages`; checklists are in `checklists`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cxr_hvd import __version__
from cxr_hvd.deploy.card.checklists import CHECKLISTS, fill
from cxr_hvd.deploy.card.data import data_section, describe_policy
from cxr_hvd.deploy.card.results import result_sections
from cxr_hvd.deploy.card.run_facts import RunFacts
from cxr_hvd.deploy.card.section import CardTable, Section
from cxr_hvd.deploy.combine import AVERAGED, ENSEMBLE
from cxr_hvd.deploy.program_check import MAX_DIFFERENCE, ProgramCheck
from cxr_hvd.study.layout import MAX_IMAGES
from cxr_hvd.training.network_record import NetworkRecord

NO_LICENCE = "to be chosen by the sites"
UNKNOWN = "not known"
APART = "No image, label, identifier or score of a study left a hospital in training."
HOW_DATA_MET = {
    "A": f"Each hospital trained by itself. {APART}",
    "B": "The studies of all hospitals were merged: each saw those of the others.",
}
"""By the experiment's name; in all others data stay apart."""


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        record: the network's.
        run: what its run says.
        licence: an identifier, as the Hugging Face Hub has them; None where none was chosen.
        private_of: the sites whose private blocks are in the folder.
        checks: how far its programs are from PyTorch; none where it has no program.
        files: what is in the folder, each file with what it is.
    """

    record: NetworkRecord
    run: RunFacts = field(default_factory=RunFacts)
    licence: str | None = None
    private_of: tuple[str, ...] = ()
    checks: tuple[ProgramCheck, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether all blocks of the network are in the folder."""
        return not self.record.private_blocks or bool(self.private_of)

    @property
    def title(self) -> str:
        """The card's title."""
        record = self.record
        if not self.is_whole:
            return f"Shared blocks of a chest X-ray network ({record.name}), trained by {_listed(record.sites)}"
        of_whom = {AVERAGED: "averaged over", ENSEMBLE: "ensemble of"}.get(record.site, "as used at")
        sites = _listed(record.sites) if record.site in (AVERAGED, ENSEMBLE) else record.site
        return f"Chest X-ray network ({record.name}), {of_whom} {sites}"


def build_card(facts: CardFacts) -> list[Section]:
    """Return the sections of a model card, in order."""
    return [
        _purpose(facts),
        data_section(facts.record, facts.run),
        _training(facts),
        _sharing(facts),
        *result_sections(facts.record, facts.run, facts.is_whole),
        _files(facts),
        _limits(facts),
        _licence(facts),
        _checklists(facts),
    ]


def known_facts(facts: CardFacts) -> set[str]:
    """Return the names of the facts that are known, as checklists name them."""
    run = facts.run
    is_known = {
        "sites": any(site.source for site in run.sites),
        "counts": bool(run.sites) and all(site.num_studies for site in run.sites),
        "labels": run.config is not None,
        "training": run.config is not None,
        "results": run.results is not None or bool(run.judged),
        "setup": len(run.judged) > 1,
    }
    return {name for name, is_it in is_known.items() if is_it}


def _purpose(facts: CardFacts) -> Section:
    record = facts.record
    names = ", ".join(record.label_names)
    return Section(
        "What it is for",
        (
            f"A network that gives a probability for each of {len(record.label_names)} findings in a chest X-ray "
            f"study of 1 to {MAX_IMAGES} images: {names}.",
            "It is for research: to compare ways of training across hospitals, and to start other networks from.",
            "It is not a medical device. No authority has looked at it. Do not use it for diagnosis, triage or "
            "treatment, and do not show its answers to patients.",
        ),
    )


def _training(facts: CardFacts) -> Section:
    record, config, environment = facts.record, facts.run.config, facts.run.environment
    rows = [
        ("network", f"{record.name}, norm: {record.norm}, {MAX_IMAGES} input channels"),
        ("experiment", record.experiment),
        ("steps", f"{record.step:,}"),
    ]
    if config is not None:
        training, loss = config.training, config.loss
        rows += [
            ("steps of the whole run", f"{environment.budget.num_steps:,}" if environment else UNKNOWN),
            ("first weights", "a file" if config.model.weights else f"random, seed {config.seed}"),
            ("studies of a batch", f"{training.batch_size} on each rank"),
            ("optimizer", f"{training.optimizer}, weight decay {training.weight_decay:g}"),
            ("learning rate", f"{training.learning_rate:g}, {training.schedule}"),
            ("loss", f"{loss.name}, weight of present labels: {describe_policy(loss.positive_weight)}"),
            ("precision", training.precision),
            ("which step is used", "the best mean AUROC of the sites' validation studies, or else the last"),
        ]
    if environment is not None:
        packages = ", ".join(f"{name} {number}" for name, number in environment.packages.items())
        rows.append(("software", f"cxr_hvd {environment.cxr_hvd}, Python {environment.python}, {packages}"))
    rows += [("SHA-256 of the config", record.config_sha256), ("SHA-256 of the sharing plan", record.plan_sha256)]
    paragraphs = () if config else ("The run's folder was not at hand: its settings are missing.",)
    return Section("Training", paragraphs, tables=(CardTable("Set-up", ("what", "value"), tuple(rows)),))


def _sharing(facts: CardFacts) -> Section:
    record, plan = facts.record, facts.run.plan
    shared = [block for block in record.blocks if block not in record.private_blocks]
    paragraphs = [HOW_DATA_MET.get(record.experiment, APART)]
    if record.private_blocks:
        if shared:
            paragraphs.append(f"Blocks {_listed(shared)} were averaged between the hospitals.")
        paragraphs.append(f"Blocks {_listed(record.private_blocks)} stayed at each hospital.")
        if facts.private_of:
            how = {
                AVERAGED: "as their mean",
                ENSEMBLE: "each in its own network, whose probabilities are averaged",
            }.get(record.site, "as they were trained there")
            paragraphs.append(f"This folder holds the private blocks of {_listed(facts.private_of)}, {how}.")
        else:
            paragraphs.append(
                "This folder holds no private block: no program can run from it. It is what a hospital starts "
                "from that joins later (cxr-hvd onboard)."
            )
    else:
        paragraphs.append("All blocks are shared: the network is the same at all hospitals.")
    buffers = plan.buffers if plan else []
    num_bytes = sum(buffer.bytes_per_exchange for buffer in buffers if buffer.scope == "shared")
    if plan and num_bytes:
        often = "step" if plan.every == 1 else f"{plan.every} steps"
        paragraphs.append(
            f"Exchanged between hospitals: {plan.exchange}, every {often}, as {plan.wire}, "
            f"{num_bytes / 1e6:.2f} MB from each rank{', while training went on' if plan.overlap else ''}."
        )
    paragraphs.append(
        "Weights can give away training data: whoever has them can ask whether a known image was trained on."
    )
    return Section("What was shared, and what stayed private", tuple(paragraphs))


def _files(facts: CardFacts) -> Section:
    paragraphs = []
    if facts.checks:
        paragraphs = [
            f"Programs take images (N, {MAX_IMAGES}, {facts.record.image_size}, {facts.record.image_size}) "
            "float32, 0 to 1, and return probabilities (N, "
            f"{len(facts.record.label_names)}). Each was run by its own runtime beside PyTorch; a difference "
            f"above {MAX_DIFFERENCE} is refused.",
        ]
    tables = [CardTable("Files", ("file", "what it is"), tuple(facts.files.items()))]
    if facts.checks:
        rows = [
            (
                check.file,
                f"{check.runtime} {check.version}",
                f"{check.num_studies} {check.studies}",
                f"{check.largest_difference:.1e}",
            )
            for check in facts.checks
        ]
        columns = ("program", "run by", "on", "largest difference of a probability")
        tables.append(CardTable("Check of the programs", columns, tuple(rows)))
    return Section("Files", (*paragraphs, f"Written by cxr_hvd {__version__}."), tables=tuple(tables))


def _limits(facts: CardFacts) -> Section:
    record, limits = facts.record, []
    never = [label for label in record.label_names if label not in record.trained_labels]
    if never:
        limits.append(f"Never trained, and so without an answer: {', '.join(never)}.")
    limits += [
        f"At {record.image_size} x {record.image_size} pixels small findings are lost.",
        "Images of another pixel pipeline, of another kind of hospital, or of children where adults were trained "
        "on (or the other way round) give answers that mean nothing, and nothing in the network says so.",
        "Labels come from reports or from one reader, with their errors.",
        "How well it does by sex, age or origin does not stand here; cxr-hvd report shows what is known.",
        "It does not notice that an image is no chest X-ray, is a negative, or lies on its side.",
    ]
    if facts.run.results is None and not facts.run.judged:
        limits.append("No results were at hand: run cxr-hvd evaluate before the export.")
    return Section("Limits", bullets=tuple(limits))


def _licence(facts: CardFacts) -> Section:
    text = facts.licence or f"Missing: {NO_LICENCE}. Until then nobody but them may use it."
    return Section("Licence", (text,))


def _checklists(facts: CardFacts) -> Section:
    known = known_facts(facts)
    tables = [
        CardTable(name, ("item", "what it asks for", "where it stands"), tuple(fill(items, known)))
        for name, items in CHECKLISTS.items()
    ]
    paragraph = (
        "Items in own words; the numbers are those of the checklists. Most items are for a paper to answer."
    )
    return Section("Reporting checklists", (paragraph,), tables=tuple(tables))


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
