"""The command `cxr-hvd plan`: show what will leave a site, before anything starts."""

import json
from typing import Annotated

import typer

from cxr_hvd.cli.options import ConfigPath, JsonOption, Settings

EXAMPLE = (
    r"Examples: cxr-hvd plan jobs/configs/D.yaml --set 'sharing.private=\[head, stem]' · "
    "cxr-hvd plan jobs/configs/D.yaml --scale 8x4 --link-ms 20 --link-mbit 100"
)


def plan(
    config: ConfigPath,
    settings: Settings = None,
    scale: Annotated[
        str | None,
        typer.Option("--scale", metavar="SITESxRANKS", help="Estimate how long a step takes at this size, too."),
    ] = None,
    link_ms: Annotated[
        float, typer.Option("--link-ms", help="With --scale: delay between sites, one way.")
    ] = 20.0,
    link_mbit: Annotated[float, typer.Option("--link-mbit", help="With --scale: rate of a site's link.")] = 100.0,
    compute_s: Annotated[
        float | None, typer.Option("--compute-s", help="With --scale: seconds of a step without exchange.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show before any launch what will leave a site: block by block, bytes a step and a run, and all else."""
    from cxr_hvd.config.file import load_config
    from cxr_hvd.console import open_console
    from cxr_hvd.models.layout import tensor_specs
    from cxr_hvd.partial.plan_table import complete_plan, plan_table, reach_of, traffic_table
    from cxr_hvd.study.labels import LABELS
    from cxr_hvd.training.budget import num_steps_before_launch
    from cxr_hvd.training.sharing import plan_sharing

    chosen = load_config(config, settings or [])
    sharing_plan = plan_sharing(chosen, tensor_specs(chosen.model, len(LABELS)))
    num_steps = num_steps_before_launch(chosen)
    reach = reach_of([site.ranks for site in chosen.sites.values()])
    as_values = complete_plan(sharing_plan, num_steps, reach)
    if scale:
        from cxr_hvd.partial import cost

        layouts = list(dict.fromkeys([*cost.USUAL_LAYOUTS, cost.read_layout(scale)]))
        link = cost.read_link(link_ms, link_mbit)
        seconds = cost.COMPUTE_S if compute_s is None else cost.check_compute_s(compute_s)
        as_values["scale"] = cost.scale_rows(sharing_plan, layouts, link, seconds)
    if as_json:
        print(json.dumps(as_values))
        return
    console = open_console()
    if scale:
        console.print(cost.scale_table(sharing_plan, layouts, link, seconds))
        return
    console.print(plan_table(sharing_plan, num_steps, reach))
    if reach == "nobody":
        return
    console.print(traffic_table())
    if num_steps is None:
        hint = "Bytes of a whole run: set training.max_steps, or have the study files here that the config names."
        console.print(hint, highlight=False)
