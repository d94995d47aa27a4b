"""What a run's folder says of how its network was made and how good it is: the facts of a model card.

What cannot be read is left out, and the card says that it is missing. No path of this machine enters a fact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxr_hvd.config.schema import Config
from cxr_hvd.errors import CxrHvdError
from cxr_hvd.experiment.comparison import JudgedSetUp, SetUp, SiteDescription
from cxr_hvd.experiment.comparison_file import parse_comparison
from cxr_hvd.experiment.site_record import describe_file
from cxr_hvd.files import read_plain
from cxr_hvd.ledger.plan_record import PlanRecord
from cxr_hvd.monitor.results_file import SiteResults
from cxr_hvd.record import R, read_record
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.network_record import NetworkRecord
from cxr_hvd.training.records import RunEnvironment
from cxr_hvd.training.run_folder import RunFolder

MAX_RECORD_BYTES = 1 << 24
MAX_COMPARISON_BYTES = 1 << 28
COMPARISON = "comparison.json"


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run; empty where a network came without its run.

    Attributes:
        config: of the run.
        environment: versions, and how long all trained.
        plan: what was shared.
        sites: what data each site trained on.
        data: the study file of the network's own site, where it can be read here.
        results: of `cxr-hvd evaluate`, for the network's own site.
        setup, judged: the set-up that the run is one seed of, and how good it is on each site, where the run is
            part of an experiment with a comparison.
    """

    config: Config | None = None
    environment: RunEnvironment | None = None
    plan: PlanRecord | None = None
    sites: tuple[SiteDescription, ...] = ()
    data: Path | None = None
    results: SiteResults | None = None
    setup: SetUp | None = None
    judged: tuple[JudgedSetUp, ...] = field(default=())

    @property
    def stored_size(self) -> int | None:
        """The side of the images in the sites' study files, where it is known."""
        return next((site.image_size for site in self.sites if site.image_size), None)


def read_run_facts(path: Path, record: NetworkRecord) -> RunFacts:
    """Read what the run of a network says.

    Args:
        path: what the network was loaded from: a run's folder or a site's in it; anything else says nothing.
        record: the network's; of one site, or of several together.
    """
    run = path.resolve().parent if (path / "config.yaml").is_file() else path
    folders = [RunFolder(run, site) for site in (record.site, *record.sites)]
    folder = next((folder for folder in folders if (folder.path / "config.yaml").is_file()), None)
    if folder is None:
        return RunFacts()
    config, is_own = folder.config(), folder.path.name == record.site
    environment = _read(folder.path / "environment.json", RunEnvironment)
    sites = tuple(_describe(run, config, environment, site) for site in record.sites)
    data = config.sites[folder.path.name].data
    setup, judged = read_comparison(run, record.config_sha256)
    return RunFacts(
        config=config,
        environment=environment,
        plan=_read(folder.path / "plan.json", PlanRecord),
        sites=sites,
        data=data if data.is_file() else None,
        results=_read(folder.path / "results.json", SiteResults) if is_own else None,
        setup=setup,
        judged=judged,
    )


def _describe(run: Path, config: Config, environment: RunEnvironment | None, site: str) -> SiteDescription:
    """Describe a site's data by its study file, or by the number of studies that the run notes."""
    of_site = _read(run / site / "environment.json", RunEnvironment)
    digest = of_site.data.get(site, "") if of_site else ""
    note = "its study file is not here"
    if digest and site in config.sites:
        try:
            with StudyFile(config.sites[site].data) as file:
                if file.digest == digest:
                    return describe_file(file, site)
                note = "the study file here is another by now"
        except CxrHvdError:
            pass
    return SiteDescription(
        name=site, data_sha256=digest, note=note, num_studies=_budget_of(environment, list(config.sites), site)
    )


def _budget_of(environment: RunEnvironment | None, sites: Sequence[str], site: str) -> dict[str, int]:
    if environment is None or site not in sites:
        return {}
    budget, index = environment.budget, sites.index(site)
    counts = {"train": budget.studies_per_site, "validate": budget.validation_studies_per_site}
    return {split: numbers[index] for split, numbers in counts.items() if index < len(numbers)}


def _read(path: Path, form: type[R]) -> R | None:
    """Read a record of the run; None where there is none of this form."""
    try:
        return read_record(path, form, MAX_RECORD_BYTES)
    except (OSError, ValueError):
        return None


def read_comparison(run: Path, config_sha256: str) -> tuple[SetUp | None, tuple[JudgedSetUp, ...]]:
    """Read of the comparison in a run's folder, or in that of its experiment, what is of the run's config."""
    for folder in (run, run.resolve().parent, run.resolve().parent.parent):
        try:
            comparison = parse_comparison(read_plain(folder / COMPARISON, MAX_COMPARISON_BYTES))
        except (OSError, CxrHvdError):
            continue
        setup = next((setup for setup in comparison.experiments if config_sha256 in setup.config_sha256), None)
        if setup is not None:
            return setup, tuple(result for result in comparison.results if result.experiment == setup.name)
    return None, ()
