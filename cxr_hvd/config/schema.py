"""The config: one YAML file, the same word for word at all sites but for their paths.

These are `sites.NAME.data` and `model.weights`: what is in the file of weights must be alike, not where it lies.

A loaded config never changes. Here is the whole, and what its sections must be together; each section is in
`sections`, and how a file becomes a config in `file`. docs/decisions/0009-libraries.md says why pydantic.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cxr_hvd.config.sections import (
    Augmentation,
    Checkpoints,
    Labels,
    Loader,
    Loss,
    Model,
    Section,
    Sharing,
    Site,
    SiteName,
    Training,
    Validation,
)
from cxr_hvd.errors import ConfigError, nearest

ExperimentName = Literal["A", "B", "C", "D"]

PRIVATE_OF: dict[ExperimentName, str] = {"A": "all", "B": "none", "C": "none", "D": "ends"}
"""The private set that makes an experiment what it is."""

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
"""What an optimizer remembers of each parameter, by its name in torch."""


ADDED_LATER: dict[str, dict[str, Any]] = {
    "model": {"norm": "batch", "weights": None, "freeze": []},
    "sharing": {"evaluate_private": False, "overlap": False},
}
"""Keys that configs of version 0.1.0 do not have, by section, with the default that such a config means."""


class Config(Section):
    """The whole of an experiment.

    `pixel_pipelines` says whether study files that were made by different ways from file to pixels may be used
    together, to train or to judge on: DICOM through its VOI LUT and MIMIC-CXR's equalised JPEGs, for example, look
    quite different.
    """

    experiment: ExperimentName
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    sites: Annotated[dict[SiteName, Site], Field(min_length=1)]
    pixel_pipelines: Literal["same", "any"] = "same"
    labels: Labels = Labels()
    model: Model = Model()
    sharing: Sharing = Sharing()
    training: Training = Training()
    loss: Loss = Loss()
    validation: Validation = Validation()
    checkpoints: Checkpoints = Checkpoints()
    loader: Loader = Loader()
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _check_experiment(self) -> "Config":
        private, preset = self.sharing.private, PRIVATE_OF[self.experiment]
        if self.experiment != "D" and private not in (None, preset):
            raise ValueError(
                f"experiment {self.experiment} is defined by sharing.private: {preset}, found {private}; "
                "leave it out, or choose experiment: D, whose private set is free"
            )
        return self

    @model_validator(mode="after")
    def _check_parts(self) -> "Config":
        studies = self.training.batch_size // self.training.accumulate
        if studies == 1 and self.model.image_size < 64 and self.model.norm == "batch":
            raise ValueError(
                f"BatchNorm needs more than one value a channel: one study of {self.model.image_size} px goes "
                "through the network at a time; use a larger batch_size, a smaller accumulate, or 64 px and more"
            )
        return self

    @model_validator(mode="after")
    def _check_skipping(self) -> "Config":
        may_skip = self.training.on_nonfinite == "skip" or self.training.precision == "fp16"
        if may_skip and self.sharing.exchange == "gradients" and self.sharing.wire != "float32":
            raise ValueError(
                f"wire: {self.sharing.wire} with exchange: gradients keeps what rounding took, and that "
                "of a skipped step would be sent in a later one: use wire: float32, or neither fp16 nor "
                "on_nonfinite: skip"
            )
        return self

    @property
    def is_merged(self) -> bool:
        """Whether every rank draws from all sites' studies (experiment B)."""
        return self.experiment == "B"

    @property
    def private(self) -> str | list[str]:
        """Which tensors stay at their site: a preset, or block names and globs."""
        return PRIVATE_OF[self.experiment] if self.sharing.private is None else self.sharing.private

    @property
    def moments(self) -> tuple[str, ...]:
        """Names in torch of the optimizer's running means that are averaged beside the weights."""
        return MOMENTS[self.training.optimizer] if self.sharing.optimizer_state == "shared" else ()

    def shared_part(self) -> dict[str, Any]:
        """Return what all sites must have alike: everything but where each keeps its data and its weights.

        Of `model.weights` it says whether there are any: the ranks compare what is in the file, not its name.

        A key of `ADDED_LATER` with its default is left out: the config means what it meant before, and so is its
        digest, by which an experiment finds the runs that it has.
        """
        everything = self.model_dump(mode="json")
        for section, defaults in ADDED_LATER.items():
            values = everything[section]
            everything[section] = {k: v for k, v in values.items() if k not in defaults or v != defaults[k]}
        if self.model.weights:
            everything["model"]["weights"] = "given"
        everything["sites"] = {name: {"ranks": site.ranks} for name, site in self.sites.items()}
        return everything

    def alone(self, site: str) -> "Config":
        """Return the config of one site without the others, on one rank."""
        if site not in self.sites:
            known = list(self.sites)
            raise ConfigError(f"no site is called '{site}', only {', '.join(known)}{nearest(site, known)}")
        alone = self.sites[site].model_copy(update={"ranks": 1})
        return self.model_copy(update={"sites": {site: alone}})


def config_digest(config: Config) -> str:
    """Return the SHA-256, in hexadecimal, of what all sites have alike in a config."""
    return hashlib.sha256(json.dumps(config.shared_part(), sort_keys=True).encode()).hexdigest()
