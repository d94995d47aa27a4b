"""The config: what is valid loads and never changes; what is not is one line that names place and remedy."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from cxr_hvd.config.file import load_config, parse_config
from cxr_hvd.config.schema import Config
from cxr_hvd.errors import ConfigError
from cxr_hvd.study.labels import LABELS
from lab.launch import PROJECT

CONFIGS = PROJECT / "jobs" / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_that_we_ship_loads(path: Path) -> None:
    config = load_config(path)
    assert config.experiment == (path.stem if path.stem in "ABCD" else "D")
    assert parse_config(config.model_dump(mode="json"), "again") == config


def test_an_experiment_says_what_is_private() -> None:
    private = {name: load_config(CONFIGS / f"{name}.yaml").private for name in "ABCD"}
    assert private == {"A": "all", "B": "none", "C": "none", "D": "ends"}
    assert [load_config(CONFIGS / f"{name}.yaml").is_merged for name in "ABCD"] == [False, True, False, False]


def test_a_config_cannot_be_changed() -> None:
    config = load_config(CONFIGS / "D.yaml")
    with pytest.raises(ValidationError):
        config.training.batch_size = 1  # type: ignore[misc]


def test_only_the_data_may_differ_between_sites() -> None:
    here = load_config(CONFIGS / "D.yaml", ["sites.mimic.data=/here.h5"])
    there = load_config(CONFIGS / "D.yaml", ["sites.mimic.data=/there.h5"])
    assert here != there
    assert here.shared_part() == there.shared_part()
    assert "h5" not in str(here.shared_part())


def test_weights_may_lie_elsewhere_at_each_site_but_all_or_none_have_some() -> None:
    base = {"experiment": "A", "sites": {"north": {"data": "n.h5"}}}
    here, there, none = (
        parse_config(base | {"model": {"weights": weights}}, "test") for weights in ("a.pt", "b/c.pth", None)
    )
    assert here.shared_part() == there.shared_part() != none.shared_part()
    assert none.shared_part() == parse_config(base, "test").shared_part()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training.bach_size=3", "unknown key 'training.bach_size'; did you mean 'batch_size'?"),
        ("trainng.epochs=1", "unknown key 'trainng'; did you mean 'training'?"),
        ("sites.mimic.dat=x", "unknown key 'sites.mimic.dat'; did you mean 'data'?"),
        ("training.batch_size=many", 'training.batch_size: expected a valid integer, found "many"'),
        ("training.batch_size=0", "training.batch_size: expected greater than or equal to 1, found 0"),
        ("training.learning_rate=.nan", "training.learning_rate: expected"),
        ("training.learning_rate=true", "training.learning_rate: expected a valid number, found true"),
        ("training.precision=fp61", "training.precision: expected 'fp32', 'bf16' or 'fp16', found \"fp61\""),
        ("model.name=resnet50", "found 'resnet50'; did you mean 'torchvision/resnet50' or 'timm/resnet50'?"),
        ("model.name=tinny", "or package.module:function, found 'tinny'; did you mean 'tiny'?"),
        ("model.name=torchvison/resnet50", "did you mean 'torchvision/resnet50'?"),
        ("model.name='timm/hf-hub:someone/network'", "model.name: expected densenet121, tiny, torchvision/NAME"),
        ("model.name=my_pkg:nets:build", "found 'my_pkg:nets:build'"),
        ("model.name=densenet", "did you mean 'densenet121'?"),
        ("labels.uncertain={Atelectasi: ones}", "no label is called 'Atelectasi'; did you mean 'Atelectasis'?"),
        ("experiment=C", "experiment C is defined by sharing.private: none, found ends"),
        ("sites={'a b': {data: x}}", "sites"),
        ("sites={'../a': {data: x}}", "sites"),
        ("sites={}", "sites"),
        ("seed=2020-01-01", 'seed: expected a valid integer, found "2020-01-01"'),
        ("training=3", "training: expected an object, found 3"),
        ("training.epochs.more=3", "'epochs' is a value, not a section"),
        ("training.epochs", "expected section.key=value"),
        ("training.epochs=[", "not valid YAML"),
        ("a b=3", "unknown key 'a b'; valid: experiment"),
        ("training.a b=3", "unknown key 'training.a b'"),
        ("sites.mimic.da ta=3", "unknown key 'sites.mimic.da ta'; did you mean 'data'?"),
        ("training..epochs=3", "expected section.key=value"),
        (".".join("a" * 5000) + "=3", "expected section.key=value"),
        ("training.clip_norm=.inf", "training.clip_norm: expected a finite number"),
        ("training.epochs=99999999999999999999", "training.epochs: expected less than or equal to"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIGS / "D.yaml", [setting])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", "key 'seed' is given twice"),
        ("- a\n- b\n", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "found a tag"),
        ("seed: 1\n", "'experiment' is missing"),
        ("\xff", "expected a mapping"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot read it"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("setting", ["training.epochs = 3", " training . epochs=3 ", "training={epochs: 3}"])
def test_blanks_beside_the_names_of_a_setting_mean_nothing(setting: str) -> None:
    assert load_config(CONFIGS / "D.yaml", [setting]).training.epochs == 3


def test_numbers_may_be_written_as_physicists_do() -> None:
    assert load_config(CONFIGS / "D.yaml", ["training.learning_rate=3e-4"]).training.learning_rate == 3e-4


def test_label_policies_are_spelled_out_for_every_label() -> None:
    config = load_config(CONFIGS / "D.yaml", ["labels.uncertain={Edema: ones, default: ignore}"])
    policy = config.labels.policy(LABELS)
    assert policy.uncertain["Edema"] == "ones"
    assert {policy.uncertain[name] for name in LABELS if name != "Edema"} == {"ignore"}
    assert set(policy.blank.values()) == {"zeros"}


def test_one_site_can_be_taken_alone() -> None:
    config = load_config(CONFIGS / "A.yaml", ["sites.mimic.ranks=4"])
    assert list(config.alone("mimic").sites) == ["mimic"]
    assert config.alone("mimic").sites["mimic"].ranks == 1
    with pytest.raises(ConfigError, match="did you mean 'mimic'"):
        config.alone("mimik")


def test_the_config_is_the_same_type_however_it_is_read() -> None:
    assert isinstance(load_config(CONFIGS / "D.yaml"), Config)
