"""Laws of the ledger: it holds every byte that was handed to Horovod."""

import json
from pathlib import Path
from typing import Any

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.ledger.audit import audit
from cxr_hvd.ledger.reader import load_folders
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.training.sharing import plan_sharing
from cxr_hvd.training.train import train
from tests.laws.law import law
from tests.laws.parts import common_folder, config_for, fresh_model, is_equal_everywhere, recorded_collectives


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def the_ledger_holds_all_that_horovod_was_given(comm: HorovodComm, folder: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"exchange": "gradients", "wire": "bfloat16"},
        {"wire": "float16", "every": 3},
        {"optimizer_state": "shared", "batchnorm": "private"},
        {"wire": "int8", "every": 2, "overlap": True},
        {"exchange": "gradients", "wire": "int8"},
        {"every": 4, "overlap": True},
    ]
    for number, sharing in enumerate(variants):
        own = common_folder(comm, folder / str(number))
        config = config_for(own, comm, sharing=sharing)
        comm.ledger.__init__()  # type: ignore[misc]  # as in a process of its own
        with recorded_collectives() as records:
            train(config, own / "run", comm)
        path = own / "run" / f"site{comm.rank}" / "ledger.jsonl"
        entries = [e for line in path.read_text().splitlines() for e in json.loads(line).get("entries", [])]
        noted = sum(entry["bytes"] * entry["count"] for entry in entries)
        assert noted == sum(tensor.nbytes for _, tensor, _ in records), sharing
        is_equal_everywhere(comm, "all ledgers are closed")
        judged = audit(load_folders(own / "run"))
        assert not judged.faults, judged.faults[:5]
        kept = {each.spec.block for each in plan_sharing(config, tensor_specs(fresh_model())).tensors}
        assert kept - {entry["name"] for entry in entries} >= {"stem", "head"}


@law(day="mpirun-3", night="gloo-3")
def many_ranks_of_a_site_stand_in_ledgers_of_their_own(comm: HorovodComm, folder: Path) -> None:
    """With 3 ranks: sites of 1 and 2, whose private tensors stay between the two."""
    variants: list[dict[str, Any]] = [{}, {"exchange": "gradients"}, {"wire": "int8"}]
    variants.append({"overlap": True, "every": 2})
    for number, sharing in enumerate(variants):
        comm.ledger.__init__()  # type: ignore[misc]  # as in a process of its own
        own = common_folder(comm, folder / str(number))
        config = config_for(own, comm, sharing=sharing)
        sites = {"site0": config.sites["site0"], "site1": config.sites["site1"].model_copy(update={"ranks": 2})}
        train(config.model_copy(update={"sites": sites}), own / "run", comm)
        is_equal_everywhere(comm, "all ledgers are closed")
        judged = audit(load_folders(own / "run"))
        assert not judged.faults, judged.faults[:5]
        assert (own / "run" / "site1" / "ledger-rank1.jsonl").exists()
