"""The sections of a config: every key with its type, its range, and a default where one makes sense."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cxr_hvd.errors import nearest
from cxr_hvd.study.labels import LABELS, BlankPolicy, LabelPolicy, UncertainPolicy

SITE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"
SiteName = Annotated[str, Field(pattern=SITE_PATTERN)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NETWORK_PATTERN = r"densenet121|tiny|(torchvision|timm)/[A-Za-z0-9_.-]+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
NETWORK_FORMS = "densenet121, tiny, torchvision/NAME, timm/NAME or package.module:function"
LARGEST = 2**31 - 1
Positive = Annotated[int, Field(ge=1, le=LARGEST)]


def _suggest_network(name: str) -> str:
    """Return the nearest form of a network's name, as `nearest` does."""
    library, slash, rest = name.partition("/")
    if slash:
        close = get_close_matches(library, ["torchvision", "timm"], n=1)
        return f"; did you mean '{close[0]}/{rest}'?" if close else ""
    near = nearest(name, ["densenet121", "tiny"])
    return near or (f"; did you mean 'torchvision/{name}' or 'timm/{name}'?" if name.isidentifier() else "")


class Section(BaseModel):
    """A part of the config: frozen, and nothing in it that is not named here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Site(Section):
    """One institution. `data` is its study file, relative to the folder that the command is started in."""

    ranks: Positive = 1
    data: Path


class Labels(Section):
    """What uncertain and blank labels become: one policy, or one for each label that is named.

    With a mapping, labels that it does not name follow `default`, or `zeros` where there is none.
    """

    uncertain: UncertainPolicy | dict[str, UncertainPolicy] = "zeros"
    blank: BlankPolicy | dict[str, BlankPolicy] = "zeros"

    @model_validator(mode="after")
    def _check_names(self) -> "Labels":
        for policy in (self.uncertain, self.blank):
            for name in policy if isinstance(policy, dict) else ():
                if name not in (*LABELS, "default"):
                    raise ValueError(f"no label is called '{name}'{nearest(name, [*LABELS, 'default'])}")
        return self

    def policy(self, label_names: Sequence[str]) -> LabelPolicy:
        """Spell the policy out for every label."""
        uncertain = self.uncertain if isinstance(self.uncertain, dict) else {"default": self.uncertain}
        blank = self.blank if isinstance(self.blank, dict) else {"default": self.blank}
        return LabelPolicy(
            uncertain={name: uncertain.get(name, uncertain.get("default", "zeros")) for name in label_names},
            blank={name: blank.get(name, blank.get("default", "zeros")) for name in label_names},
        )


class Model(Section):
    """The network, and the side in pixels to which stored images are scaled before it sees them.

    `name` is `densenet121`; or `tiny`, a network of about 20,000 parameters with the same block names, for dry
    runs: it learns little; or `torchvision/NAME` or `timm/NAME`; or `my_pkg.nets:build`, a function of the user's
    (decision 0024). `norm` keeps the norms that the network has, or puts a GroupNorm in the place of each
    BatchNorm. `weights` is a file or a run's folder that the network starts from. `freeze` names blocks that are
    not trained.
    """

    name: str = "densenet121"
    image_size: Annotated[int, Field(ge=32, le=1024)] = 256
    norm: Literal["batch", "group"] = "batch"
    weights: Path | None = None
    freeze: list[str] = []

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(NETWORK_PATTERN, name):
            raise ValueError(f"expected {NETWORK_FORMS}, found '{name}'{_suggest_network(name)}")
        return name


class Sharing(Section):
    """What is averaged between sites and how (docs/architecture.md, "Averaging").

    `private` is a preset (`none`, `ends`, `stem+head`, `norms`, `head`, `all`), or a list of block names and globs
    over blocks and tensors. `every` counts steps. `weighting` is over sites: equal, or by their number of training
    studies. `wire` is the type that shared tensors travel in; `overlap: true` averages weights in fragments while
    steps go on (decision 0035); `optimizer_state: shared` averages the optimizer's running means, too (decision
    0013). `evaluate_private` lets private tensors travel when a finished network is
    judged across sites, so that each site's network is tried on the others' studies (decision 0031).
    """

    exchange: Literal["weights", "gradients"] = "weights"
    every: Positive = 1
    private: str | list[str] | None = None
    batchnorm: Literal["with-block", "private", "shared"] = "with-block"
    weighting: Literal["uniform", "studies"] = "uniform"
    wire: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    overlap: bool = False
    optimizer_state: Literal["local", "shared"] = "local"
    evaluate_private: bool = False

    @model_validator(mode="after")
    def _check_exchange(self) -> "Sharing":
        if self.exchange == "gradients" and self.every > 1:
            raise ValueError(
                f"exchange: gradients averages in every step, found every: {self.every}; "
                "leave `every` out, or exchange: weights"
            )
        if self.exchange == "gradients" and self.optimizer_state == "shared":
            raise ValueError(
                "optimizer_state: shared is for exchange: weights; equal gradients keep the optimizers equal "
                "by themselves: leave it out"
            )
        if self.overlap and self.exchange == "gradients":
            raise ValueError("overlap: is for exchange: weights; gradients overlap with backward by themselves")
        if self.overlap and self.optimizer_state == "shared":
            raise ValueError("overlap: needs optimizer_state: local, found shared; leave one of the two out")
        return self


class Training(Section):
    """How each rank trains. `batch_size` counts studies of one rank.

    `steps_per_epoch`: as many as one pass over its studies takes the `largest` or `smallest` site, or a number.
    A site that has seen all its studies starts a fresh shuffled pass. `accumulate` is the number of parts in which
    a batch goes through the network, one after the other, to save memory. `clip_norm` bounds the norm of the
    shared gradient and that of the private one, each for itself. `ema_decay` keeps a running mean of the weights,
    which is what evaluation then uses. `on_nonfinite` says what becomes of a step in which a loss or a gradient is
    not finite
    on any rank: `stop` all ranks, or `skip` the update on all.
    """

    epochs: Positive = 10
    steps_per_epoch: Literal["largest", "smallest"] | Positive = "largest"
    max_steps: Positive | None = None
    batch_size: Positive = 16
    accumulate: Positive = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    schedule: Literal["constant", "cosine", "step", "one-cycle"] = "one-cycle"
    warmup_steps: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    on_nonfinite: Literal["stop", "skip"] = "stop"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _check_steps(self) -> "Training":
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate: expected a divisor of batch_size ({self.batch_size}), found {self.accumulate}"
            )
        if self.schedule == "one-cycle" and self.warmup_steps:
            raise ValueError(
                "warmup_steps: one-cycle warms up by itself: leave it out, or choose another schedule"
            )
        return self


class Loss(Section):
    """What is minimised over the known labels.

    `bce` is binary cross-entropy; `focal` weighs each label's by (1 - p)^gamma, p being the probability given to
    the truth (Lin et al., ICCV 2017). `positive_weight` multiplies the loss of present labels: `none`, `balanced`
    (absent / present among the site's own training studies, at most 100), or a number for each label that is
    named.
    """

    name: Literal["bce", "focal"] = "bce"
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    positive_weight: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0, le=1000)]] = "none"

    @model_validator(mode="after")
    def _check_names(self) -> "Loss":
        for name in self.positive_weight if isinstance(self.positive_weight, dict) else ():
            if name not in LABELS:
                raise ValueError(f"no label is called '{name}'{nearest(name, [*LABELS])}")
        return self


class Validation(Section):
    """How often all sites judge their networks on their VALIDATE studies, and when that ends the run.

    What is agreed on is the mean over sites of the mean AUROC over labels. `patience` is the number of validations
    without a gain of more than `min_delta` after which all stop; null never stops early. 0 epochs: no validation.
    """

    every_epochs: Annotated[int, Field(ge=0, le=LARGEST)] = 1
    patience: Positive | None = None
    min_delta: Fraction = 0.0

    @model_validator(mode="after")
    def _check_patience(self) -> "Validation":
        if self.patience and not self.every_epochs:
            raise ValueError("patience: needs validations, found every_epochs: 0; set it to 1 or more")
        return self


class Checkpoints(Section):
    """When a checkpoint is written besides the end of the run, and how many of the newest are kept.

    `every_steps: null` is after each epoch. What `best` names is kept in any case.
    """

    every_steps: Positive | None = None
    keep: Annotated[int, Field(ge=2, le=8)] = 2


class Loader(Section):
    """How batches are made ready. Neither value changes what is in them.

    `threads: auto` takes the cores that a rank has to itself, less one, at least 1 and at most 8.
    """

    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = "auto"
    prefetch: Annotated[int, Field(ge=1, le=16)] = 2


class Augmentation(Section):
    """How far an image may change, each drawn anew for each image: probabilities, degrees, shares of the side.

    `noise` is the most that a pixel's gray (0 to 1) may be off by chance, as a standard deviation; `cutout` the
    longest side of the one square that is blackened, as a share of the image's.
    """

    flip: Fraction = 0.5
    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 10.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    shift: Fraction = 0.05
    brightness: Fraction = 0.1
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.1
    noise: Fraction = 0.0
    cutout: Fraction = 0.0
