"""Proof, before any text or tensor is sent, that all ranks hold the same secret key and mean the same job.

Every rank draws a fresh number and shows its HMAC, under the key, of all ranks' numbers, of the checksums of what
all ranks have stated (`contract`), and of its own place. An answer cannot be used again, nor by another rank, nor
for a job that somebody changed on the way. It proves who takes part at the start; it does not encrypt or sign what
travels afterwards (docs/privacy.md).
"""

import hashlib
import hmac
import secrets

import torch
from torch import Tensor

from cxr_hvd.comm.answers import check_number
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology
from cxr_hvd.errors import ContractError

NUM_BYTES = 32
CONTEXT = b"cxr_hvd key proof 2"


def prove_key(job: Job, key: bytes | None, digests: Tensor) -> None:
    """Make sure that all ranks hold the same key, or all none.

    Collective: every rank. Blocking.

    Args:
        digests: (num_ranks, 32) uint8: what `contract.gather_digests` returned.

    Raises:
        ContractError: on every rank alike, naming the ranks that have no key or another one.
    """
    has_key = job.allgather(torch.tensor([key is not None], dtype=torch.uint8), "key.held").flatten()
    if not bool(has_key.any()):
        return
    if not bool(has_key.all()):
        _refuse(job.topology, (has_key == 0).nonzero().flatten(), "started without --key, others with it")
    nonces = job.allgather(_tensor(secrets.token_bytes(NUM_BYTES)), "key.nonce")
    tags = [_tensor(_proof(key or b"", nonces, digests, rank)) for rank in range(job.num_ranks)]
    shown = job.allgather(tags[job.rank], "key.proof")
    alike = sum(hmac.compare_digest(_bytes(tag), _bytes(row)) for tag, row in zip(tags, shown, strict=True))
    # A rank can judge the others by its own key only: all say how many they believe, and all stop alike.
    counts = job.allgather_numbers(
        torch.tensor([alike]), "key.believed", lambda numbers: check_number(numbers[0], 0, job.num_ranks)
    )
    believed = torch.tensor(counts)
    if bool((believed < job.num_ranks).any()):
        few = believed < believed.max() if bool((believed != believed[0]).any()) else believed > 0
        _refuse(job.topology, few.nonzero().flatten(), "does not hold the key of the others")


def _proof(key: bytes, nonces: Tensor, digests: Tensor, rank: int) -> bytes:
    place = rank.to_bytes(4, "big") + len(nonces).to_bytes(4, "big")
    return hmac.new(key, CONTEXT + place + _bytes(nonces) + _bytes(digests), hashlib.sha256).digest()


def _refuse(topology: Topology, ranks: Tensor, why: str) -> None:
    named = "; ".join(topology.name_of(int(rank)) for rank in ranks)
    raise ContractError(f"--key: {named} {why}; give all ranks the same key file, or none").agreed()


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
