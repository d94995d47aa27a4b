"""What all sites must agree on before the first step, and how a difference is told.

Each rank states its view of the job as short named lines: every key of the shared config, every tensor of the
plan, the label order, the pixel pipeline, the versions. A digest of them all is compared; only where it differs
are the lines exchanged, and every rank then says the same: which item, which sites, which values.
"""

import hashlib
import json
from collections.abc import Mapping
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor

from cxr_hvd.comm.answers import read_answers
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology
from cxr_hvd.errors import ContractError
from cxr_hvd.terminal import shown

MAX_SHOWN = 60


def gather_digests(job: Job, items: Mapping[str, str]) -> Tensor:
    """Return (num_ranks, 32) uint8: the SHA-256 of what every rank states. Collective: every rank. Blocking."""
    digest = hashlib.sha256(_statement(items).encode()).digest()
    return job.allgather(torch.frombuffer(bytearray(digest), dtype=torch.uint8), "contract.digest")


def _statement(items: Mapping[str, str]) -> str:
    return json.dumps(dict(items), sort_keys=True)


def check_contract(job: Job, items: Mapping[str, str], digests: Tensor | None = None) -> None:
    """Compare what every rank states.

    Collective: every rank, before any tensor of the model moves. Blocking.

    Args:
        digests: what `gather_digests` returned for these items; asked for where left out.

    Raises:
        ContractError: on every rank alike, naming the first item that differs, sites and values.
    """
    digests = gather_digests(job, items) if digests is None else digests
    if bool((digests == digests[0]).all()):
        return
    texts = job.allgather_text(_statement(items), "contract.statement")
    statements = read_answers(texts, read_statement, "contract.statement", job.name_of)
    raise ContractError(first_difference(job.topology, statements)).agreed()


def read_statement(text: str) -> dict[str, str]:
    """Read what a rank states: names and texts.

    Raises:
        ValueError: it states something else.
    """
    items = json.loads(text)
    if not isinstance(items, dict) or not all(isinstance(value, str) for value in items.values()):
        raise ValueError("expected an object of texts")
    return items


def first_difference(topology: Topology, statements: list[dict[str, str]]) -> str:
    """Describe the first item, in the first rank's order, on which two ranks differ."""
    names = list(dict.fromkeys(name for statement in statements for name in statement))
    if all(statement == statements[0] for statement in statements):
        return "the sites' checksums of what they state differ, their statements do not: one runs another version"
    differing = [name for name in names if len({statement.get(name) for statement in statements}) > 1]
    name = differing[0]
    ranks_by_value: dict[str, list[int]] = {}
    for rank, statement in enumerate(statements):
        ranks_by_value.setdefault(str(statement.get(name, "nothing")), []).append(rank)
    cut = {value: _around_difference(value, list(ranks_by_value)) for value in ranks_by_value}
    sides = "; ".join(
        f"'{cut[value]}' at {', '.join(topology.name_of(rank) for rank in ranks)}"
        for value, ranks in ranks_by_value.items()
    )
    more = f" ({len(differing) - 1} more items differ)" if len(differing) > 1 else ""
    return f"the sites differ on {shown(name)}: {sides}{more}; make them alike and start again"


def _around_difference(value: str, values: list[str]) -> str:
    """Cut a long value to the part where the values begin to differ."""
    if max(map(len, values)) <= MAX_SHOWN:
        return value
    common = commonprefix(values)  # noqa: RUF071  (text, not paths)
    start = max(0, len(common) - 10)
    return ("..." if start else "") + value[start : start + MAX_SHOWN] + "..."


def flat_items(tree: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Turn nested mappings into dotted names with plain text values."""
    items: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}"
        items |= flat_items(value, name) if isinstance(value, Mapping) else {name: json.dumps(value)}
    return items
