"""Variants: which there are, and what each lays over the common config."""

from pathlib import Path

import pytest

from cxr_hvd.config.schema import config_digest
from cxr_hvd.errors import ConfigError, CxrHvdError, UsageError
from cxr_hvd.experiment.variants import choose_variants, configure, private_of
from lab.launch import PROJECT


@pytest.fixture
def common(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        "experiment: D\nsites: {north: {data: n.h5}, south: {data: s.h5}}\nsharing: {private: stem+head}\n"
    )
    return path


def test_the_private_set_of_the_common_config_is_that_of_d_alone(common: Path, tmp_path: Path) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text("D-head: {experiment: D, sharing.private: head}\nfast: {experiment: C, sharing.every: 4}\n")
    chosen = choose_variants([], file)
    assert [each.name for each in chosen] == ["A", "B", "C", "D", "D-head", "fast"]
    configs = {each.name: configure(common, [], each, steps_per_epoch=7) for each in chosen}
    private = {name: private_of(config) for name, config in configs.items()}
    assert private == {
        "A": "all",
        "B": "none",
        "C": "none",
        "D": "stem+head",
        "D-head": "head",
        "fast": "none",
    }
    assert {config.training.steps_per_epoch for config in configs.values()} == {7}
    assert configs["fast"].sharing.every == 4
    assert len({config_digest(config) for config in configs.values()}) == 6


def test_every_variant_that_we_ship_fits_its_config() -> None:
    for path in sorted((PROJECT / "jobs" / "variants").glob("*.yaml")):
        chosen = choose_variants([], path)
        assert len(chosen) > 4
        for variant in chosen:
            configure(PROJECT / "jobs" / "configs" / path.name, [], variant, steps_per_epoch=5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A: {experiment: A}", "not A to D"),
        ("../x: {experiment: A}", "expected a name of letters"),
        ("x: [1]", "expected {experiment: D"),
        ("x: {sharing.private: head}", "expected {experiment: D"),
        ("- x", "expected a mapping"),
    ],
)
def test_what_is_no_variant_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "variants.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        choose_variants([], tmp_path / "variants.yaml")


def test_a_variant_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "variants.yaml").write_text("D-head: {experiment: D}")
    with pytest.raises(UsageError, match=r"no variant 'D-haed'.*did you mean 'D-head'"):
        choose_variants(["D-haed"], tmp_path / "variants.yaml")


def test_a_variant_that_does_not_fit_its_experiment_is_refused(common: Path, tmp_path: Path) -> None:
    (tmp_path / "variants.yaml").write_text("x: {experiment: C, sharing.private: head}\ny: {experiment: Z}")
    for variant in choose_variants(["x", "y"], tmp_path / "variants.yaml"):
        with pytest.raises(CxrHvdError):
            configure(common, [], variant)
