"""A key is random, long enough, its owner's alone, and never replaced; a proof holds for one job alone."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cxr_hvd.cli.app import app
from cxr_hvd.comm.communicator import Wait
from cxr_hvd.comm.contract import gather_digests
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.key import _proof, prove_key
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.errors import ContractError, UsageError
from cxr_hvd.secret import create_key, load_key


def test_a_new_key_is_read_back_and_is_its_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        done = CliRunner().invoke(app, ["key", "new", str(tmp_path / "keys" / "job.key")])
    finally:
        os.umask(before)
    assert done.exit_code == 0 and "32 random bytes" in done.output
    path = tmp_path / "keys" / "job.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(load_key(path)) == 32
    create_key(tmp_path / "other.key")
    assert load_key(path) != load_key(tmp_path / "other.key")


def test_a_key_is_never_replaced_nor_written_through_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "job.key", tmp_path / "link.key"
    create_key(path)
    before = path.read_bytes()
    link.symlink_to(tmp_path / "elsewhere")
    for place in (path, link, tmp_path):
        assert isinstance(CliRunner().invoke(app, ["key", "new", str(place)]).exception, UsageError)
    assert path.read_bytes() == before
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("num_bytes", [0, 16, 31, (1 << 16) + 1])
def test_a_key_that_is_too_short_or_too_long_is_refused(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "job.key"
    path.write_bytes(os.urandom(num_bytes))
    path.chmod(0o600)
    with pytest.raises(UsageError, match=f"at least 32 random bytes, found {num_bytes}.*cxr-hvd key new"):
        load_key(path)


@pytest.mark.timeout(10)
def test_what_is_no_key_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="expected a key file"):
            load_key(path)
    create_key(tmp_path / "job.key")
    (tmp_path / "job.key").chmod(0o640)
    with pytest.raises(UsageError, match="only its owner can read, found mode 640"):
        load_key(tmp_path / "job.key")


@given(st.binary(min_size=64, max_size=64), st.binary(min_size=64, max_size=64))
def test_a_proof_is_of_one_place_one_draw_and_one_job(first: bytes, second: bytes) -> None:
    one, other = (torch.frombuffer(bytearray(each), dtype=torch.uint8).view(2, 32) for each in (first, second))
    proof = _proof(b"k" * 32, one, one, 0)
    assert proof != _proof(b"k" * 32, one, one, 1)
    assert proof != _proof(b"l" * 32, one, one, 0)
    assert (proof == _proof(b"k" * 32, one, other, 0)) == (first == second)
    assert (proof == _proof(b"k" * 32, other, one, 0)) == (first == second)


class Relayed(LocalComm):
    """Rank 0 of two, between which somebody answers for the other: with the key, for a job that he changed."""

    num_ranks = 2
    job = ""
    digests: torch.Tensor
    nonces: torch.Tensor

    def begin_allgather(self, tensor: torch.Tensor, purpose: str) -> Wait[torch.Tensor]:
        rows = torch.stack([tensor, tensor])
        if purpose == "key.nonce":
            self.nonces = rows
        if purpose == "key.proof":
            own = {"": self.digests, "changed": self.digests + 1}[self.job]
            rows[1] = torch.frombuffer(bytearray(_proof(b"k" * 32, self.nonces, own, 1)), dtype=torch.uint8)
        return lambda: rows


def test_a_proof_for_a_changed_job_is_refused() -> None:
    comm = Relayed()
    job = Job(comm, Topology(0, ("north", "south"), (0, 1)))
    comm.digests = gather_digests(job, {"a": "1"})
    prove_key(job, b"k" * 32, comm.digests)
    comm.job = "changed"
    with pytest.raises(ContractError, match="does not hold the key"):
        prove_key(job, b"k" * 32, comm.digests)
