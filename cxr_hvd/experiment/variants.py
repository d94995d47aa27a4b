"""What an experiment compares: the study's four set-ups and variants of them, each a config, all with one budget.

A variant is a name and settings over the common config, in a YAML file such as

    D-head:  {experiment: D, sharing.private: head}

A, B, C and D need no file. Pure, but for reading it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_hvd.config.file import load_config, read_tree
from cxr_hvd.config.schema import PRIVATE_OF, Config, ExperimentName
from cxr_hvd.errors import ConfigError, UsageError, nearest
from cxr_hvd.yaml_text import shortened

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.-]{0,31}")
EXPERIMENTS: tuple[ExperimentName, ...] = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Variant:
    """A set-up that is compared with others.

    Attributes:
        name: how tables call it.
        settings: `section.key=value`, laid over the common config.
    """

    name: str
    settings: tuple[str, ...]


def choose_variants(names: Sequence[str], path: Path | None) -> list[Variant]:
    """Return the variants of these names, in this order; without names A, B, C, D and all of the file.

    Raises:
        ConfigError: the file cannot be read, or does not say what it has to.
        UsageError: a name is neither one of the four experiments nor in the file.
    """
    known: dict[str, Variant] = {name: Variant(name, (f"experiment={name}",)) for name in EXPERIMENTS}
    known |= read_variants(path) if path else {}
    chosen = dict.fromkeys(names or known)
    for name in chosen:
        if name not in known:
            where = f"{path} has" if path else "without --variants there are"
            raise UsageError(f"no variant '{name}'; {where} {', '.join(known)}{nearest(name, list(known))}")
    return [known[name] for name in chosen]


def read_variants(path: Path) -> dict[str, Variant]:
    """Read a file of variants."""
    variants = {}
    for name, settings in read_tree(path).items():
        if not NAME.fullmatch(name) or name in EXPERIMENTS:
            raise ConfigError(
                f"{path}: variant '{shortened(name)}': expected a name of letters, digits and _+.- but not A to D"
            )
        if not isinstance(settings, dict) or "experiment" not in settings:
            raise ConfigError(
                f"{path}: variant {name}: expected {{experiment: D, ...}}, found {shortened(str(settings))}"
            )
        variants[name] = Variant(name, tuple(f"{key}={_value(value)}" for key, value in settings.items()))
    return variants


def configure(path: Path, settings: Sequence[str], variant: Variant, steps_per_epoch: int | None = None) -> Config:
    """Return the config of a variant: the common one, whose private set is D's alone, with its settings laid over.

    Args:
        path, settings: of the common config.
        steps_per_epoch: the same for all variants, so that merged and single sites train as long as others.

    Raises:
        ConfigError: they do not fit each other.
    """
    common = load_config(path, settings)
    experiment = dict(setting.split("=", 1) for setting in variant.settings)["experiment"]
    private = [] if experiment == common.experiment == "D" else ["sharing.private=null"]
    budget = [f"training.steps_per_epoch={steps_per_epoch}"] if steps_per_epoch else []
    return load_config(path, [*settings, *private, *budget, *variant.settings])


def resolved(config: Config) -> dict[str, Any]:
    """Return a config as plain values that mean the same in any working folder."""
    values = config.model_dump(mode="json")
    for name, site in config.sites.items():
        values["sites"][name]["data"] = str(site.data.resolve())
    return values


def describe_data(config: Config) -> str:
    """Say in some words what each network trains on."""
    return "all sites' studies, merged" if config.is_merged else "each site's own studies"


def private_of(config: Config) -> str:
    """Say in a word or two what a config keeps private."""
    private = config.sharing.private or PRIVATE_OF[config.experiment]
    return private if isinstance(private, str) else ", ".join(private)


def _value(value: Mapping[str, Any] | str | float | list[Any] | None) -> str:
    return json.dumps(value, ensure_ascii=False)  # YAML reads no pairs of surrogates
