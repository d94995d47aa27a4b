"""The form of `onboarding.json`: what networks are worth on the TEST studies of a hospital that joins later."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from cxr_hvd.config.sections import SiteName
from cxr_hvd.errors import CheckpointError
from cxr_hvd.record import Count, Finite, Name, Record, Share, Step, Text, first_problem, read_record

ONBOARDING = "onboarding.json"
MAX_BYTES = 1 << 24

Names = Annotated[list[Name], Field(max_length=4096)]


class AurocEstimate(Record):
    """An AUROC, or a mean of several, with its 95% interval over patients; None with a note where undefined."""

    value: Share | None
    low: Share | None
    high: Share | None
    note: Text | None = None


class AurocDifference(Record):
    """How far the onboarded network's AUROC is above another's on the same patients, with its 95% interval."""

    value: Finite | None
    low: Finite | None
    high: Finite | None
    p_value: Share | None
    note: Text | None = None


class JudgedNetwork(Record):
    """One network on the site's studies.

    Attributes:
        network: `onboarded`, `from nothing`, `averaged`, `ensemble`, or a site's name.
        kind: what it is to the new hospital.
        step: steps that it was trained for; those of the others count before.
        untrained: labels of `labels` of the whole record that it was never trained on: each counts as 0.5.
        validation: macro AUROC on VALIDATE studies over the labels that the others know; of one of theirs alone.
        of_others: the same on TEST studies.
        of_site: macro AUROC on TEST studies over all labels.
        labels: AUROC of each label on TEST studies, of the labels that it was trained on.
        gain_of_others, gain_of_site: for each mean, how far the onboarded network is above; None for itself.
    """

    network: Name
    kind: Literal["other", "ensemble", "averaged", "onboarded", "from nothing"]
    step: Step
    untrained: Names
    validation: Share | None
    of_others: AurocEstimate
    of_site: AurocEstimate
    labels: dict[Name, AurocEstimate]
    gain_of_others: AurocDifference | None = None
    gain_of_site: AurocDifference | None = None


class OnboardingRecord(Record):
    """What came of an onboarding.

    Attributes:
        onboarding_schema: of this record.
        source: where the others' networks were read from; `others`: whose they are.
        site: the new hospital.
        trained, frozen: its blocks, or tensors where a block is divided.
        num_steps, batch_size, learning_rate, seed: of both trainings.
        num_train, num_validate, num_test: its studies.
        num_patients: of its TEST studies.
        labels: those with at least `MIN_OF_CLASS` present and absent TEST studies.
        labels_of_others: those of them that one of the others' networks was trained on; all of them where no
            network came.
        best_other: the best of the others' networks by VALIDATE studies; None where no network came.
        networks: judged, in the order of tables.
        advice: sentences that follow from two differences by the rule of `onboarding_advice`.
    """

    onboarding_schema: Literal[1] = 1
    source: Text
    others: Annotated[list[SiteName], Field(max_length=1024)]
    site: SiteName
    trained: Names
    frozen: Names
    num_steps: Step
    batch_size: Count
    learning_rate: Finite
    seed: Count
    num_train: Count
    num_validate: Count
    num_test: Count
    num_patients: Count
    labels: Names
    labels_of_others: Names
    best_other: Name | None
    networks: Annotated[list[JudgedNetwork], Field(max_length=1028)]
    advice: Annotated[tuple[Text, ...], Field(max_length=16)] = ()

    def network(self, name: str) -> JudgedNetwork | None:
        """Return a network by its name; None where there is none."""
        return next((judged for judged in self.networks if judged.network == name), None)


def read_onboarding(path: Path) -> OnboardingRecord:
    """Read `onboarding.json`.

    Raises:
        CheckpointError: it cannot be read, or is of another form.
    """
    try:
        return read_record(path, OnboardingRecord, MAX_BYTES)
    except OSError as error:
        why = str(error.strerror)
    except ValidationError as error:
        why = first_problem(error)
    raise CheckpointError(f"{path}: expected the record of an onboarding, found none to read ({why})")
