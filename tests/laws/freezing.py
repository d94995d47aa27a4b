"""Laws of frozen blocks in whole runs: they stay as they were, nothing of them leaves, and resuming is exact."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.ledger.audit import audit
from cxr_hvd.ledger.reader import load_folders
from cxr_hvd.training.train import train
from tests.laws.law import law
from tests.laws.parts import (
    GO_ON,
    common_folder,
    config_for,
    digest,
    fresh_model,
    is_equal_everywhere,
)
from tests.laws.resuming import stop_after_the_first_checkpoint

FREEZE = ["stem", "denseblock2", "*.norm5.*"]  # private, shared, and a part of a block
VARIANTS: dict[str, dict[str, Any]] = {
    "weights-moments": {
        "sharing": {"optimizer_state": "shared", "every": 2, "batchnorm": "shared"},
        "training": {"clip_norm": 0.5, "ema_decay": 0.9},
    },
    "gradients-fp16": {
        "sharing": {"exchange": "gradients"},
        "training": {"precision": "fp16", "clip_norm": 0.5, "accumulate": 2},
    },
    "weights-bf16-skip": {
        "sharing": {"wire": "bfloat16", "private": "none"},
        "training": {"optimizer": "sgd", "on_nonfinite": "skip"},
    },
}


def is_frozen(name: str) -> bool:
    return any(part in name for part in ("conv0", "norm0", "denseblock2", "norm5"))


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def frozen_blocks_stay_as_they_were_in_every_run(comm: HorovodComm, folder: Path) -> None:
    first = fresh_model(seed=1).state_dict()
    for variant, sections in VARIANTS.items():
        own = common_folder(comm, folder / variant)
        config = config_for(own, comm, seed=1, **sections)
        config = config.model_copy(update={"model": config.model.model_copy(update={"freeze": FREEZE})})
        comm.ledger.__init__()  # type: ignore[misc]  # as in a process of its own
        train(config, own / "whole", comm)
        checkpoint = own / "whole" / f"site{comm.rank}" / "checkpoints" / "latest"
        shared = load_file(checkpoint / "shared.safetensors")
        last = shared | load_file(checkpoint / "private.safetensors")
        for name, tensor in first.items():
            if tensor.is_floating_point():
                assert torch.equal(last[name], tensor) is is_frozen(name), f"{variant}: {name}"
        assert is_equal_everywhere(comm, digest(shared, tuple(sorted(shared)))), variant
        assert not any(is_frozen(name) for name in shared)
        moments = load_file(checkpoint / "optimizer-0.safetensors")
        assert moments and not any(map(is_frozen, moments))
        assert is_equal_everywhere(comm, "all ledgers are closed")
        lines = (own / "whole" / f"site{comm.rank}" / "ledger.jsonl").read_text().splitlines()
        names = {entry["name"] for line in lines for entry in json.loads(line).get("entries", [])}
        assert any("transition1" in name for name in names), f"{variant}: {names}"
        assert not [name for name in names if "stem" in name or "denseblock2" in name], f"{variant}: {names}"
        judged = audit(load_folders(own / "whole"))
        assert not judged.faults, f"{variant}: {judged.faults[:3]}"

        stop_after_the_first_checkpoint(comm, config, own)
        train(config, own / "stopped", comm, GO_ON)
        for file in sorted(checkpoint.glob("*.safetensors")):
            other = own / "stopped" / f"site{comm.rank}" / "checkpoints" / "latest" / file.name
            assert file.read_bytes() == other.read_bytes(), f"{variant}: {file.name}"
