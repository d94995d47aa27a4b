"""What a person is told before training: what leaves a rank, to whom, and whom it trusts."""

from io import StringIO
from typing import Any

import pytest

from cxr_hvd.config.file import parse_config
from cxr_hvd.config.schema import Config
from cxr_hvd.console import Console
from cxr_hvd.partial.plan import build_plan
from cxr_hvd.partial.plan_table import complete_plan, reach_of
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec
from cxr_hvd.training.budget import budget_of
from cxr_hvd.training.display import print_agreed

PLAN = build_plan([TensorSpec("stem.weight", "stem", Kind.PARAMETER, (1000, 250), "float32")], [])


def config_of(**ranks: int) -> Config:
    sites = {name: {"data": f"{name}.h5", "ranks": num} for name, num in ranks.items()}
    return parse_config({"experiment": "C", "sites": sites, "training": {"max_steps": 4}}, "test")


def said_of(config: Config, has_key: bool = False) -> str:
    console = Console(file=StringIO(), width=200)
    print_agreed(console, config, PLAN, budget_of(config, [90] * len(config.sites), [0]), has_key)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


ALONE = [config_of(north=1), config_of(north=2, south=1).alone("north")]


@pytest.mark.parametrize("config", ALONE)
def test_of_a_rank_alone_nothing_is_said_to_travel(config: Config) -> None:
    said = said_of(config)
    assert "one rank alone; nothing travels" in said
    for claim in ("hands over", "is trusted", "not encrypted", "1,000,000", "MB"):
        assert claim not in said
    plan: dict[str, Any] = complete_plan(PLAN, 4, reach_of([site.ranks for site in config.sites.values()]))
    assert plan["reach"] == "nobody"
    assert {plan[f"bytes_per_{what}"] for what in ("exchange", "step", "run")} == {0}
    assert plan["other"] == {}


def test_of_one_site_with_several_ranks_nothing_is_said_to_leave_it() -> None:
    said = said_of(config_of(north=2))
    assert "each rank hands over 1.0 MB of weights every step" in said
    assert "nothing leaves it" in said
    assert "whoever the launcher started is trusted" in said
    assert complete_plan(PLAN, 4, reach_of([2]))["bytes_per_run"] == 4_000_000


def test_of_several_sites_all_is_said() -> None:
    said = said_of(config_of(north=1, south=1))
    assert "each rank hands over 1.0 MB of weights every step" in said
    assert "nothing" not in said.replace("nothing is validated", "")
    assert "all ranks hold the same key" in said_of(config_of(north=1, south=1), has_key=True)
