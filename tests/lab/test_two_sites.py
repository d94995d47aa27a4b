"""The laboratory of two sites tells the truth: its counters count, its slow link is as slow as it says."""

import json
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest

from cxr_hvd.launch.slow_line import SEND_ONLY
from cxr_hvd.study.layout import Split
from lab.launch import BIN, PROJECT, need_horovod
from lab.study_files import write_study_file
from lab.two_sites import SlowLink, TwoSites, need_two_sites, two_sites

SUM_BYTES = 32 << 20
SUM = f"""
import numpy
from mpi4py import MPI
values = numpy.ones({SUM_BYTES // 4}, numpy.float32)
MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, values)
assert (values == 2).all()
"""


def test_a_sum_moves_its_bytes_once_each_way() -> None:
    need_two_sites()
    with two_sites() as pair:
        moved = [sum_once(pair) for _ in range(5)]
    # On a busy machine TCP sends some packets twice, and the counters count them: the least has the fewest.
    for each_way in zip(*moved, strict=True):
        assert min(each_way) == pytest.approx(SUM_BYTES, rel=0.02)


def sum_once(pair: TwoSites) -> tuple[int, ...]:
    """Return the bytes that each site sent, and that each received, for one sum."""
    before = [pair.traffic(site) for site in (0, 1)]
    job = pair.mpirun(1, [sys.executable, "-c", SUM], limit_s=25)
    assert job.exit_code == 0, job.output
    after = [pair.traffic(site).since(before[site]) for site in (0, 1)]
    return tuple(each.sent_bytes for each in after) + tuple(each.received_bytes for each in after)


def test_the_slow_link_has_the_delay_and_the_rate_it_says() -> None:
    link = SlowLink(delay_ms=20, rate_mbit=100)
    need_two_sites(link)
    with two_sites(link) as pair:
        probe = [sys.executable, "-m", "tests.lab.link_probe", pair.sites[1].address]
        listener = threading.Thread(target=pair.run, args=(1, [*probe, "listen"], 25))
        listener.start()
        called = pair.run(0, [*probe, "call"], 25)
        listener.join()
    assert called.exit_code == 0, called.output
    told = json.loads(called.output)
    assert told["round_trip_s"] == pytest.approx(2 * link.delay_ms / 1e3, rel=0.15)
    assert told["bytes_per_s"] == pytest.approx(link.rate_mbit * 1e6 / 8, rel=0.15)


def test_the_setting_for_a_slow_line_reaches_the_ranks_of_both_sites() -> None:
    need_two_sites()
    name, value = SEND_ONLY
    with two_sites() as pair:
        say = f"import os; os.write(1, os.environ['{name}'].encode() + b' set\\n')"
        job = pair.mpirun(1, [sys.executable, "-c", say], limit_s=25, **{name: value})
    assert job.lines("set") == [f"{value} set"] * 2, job.output


@pytest.mark.slow
@pytest.mark.parametrize("link", [None, SlowLink(delay_ms=20, rate_mbit=100)], ids=["cable", "20 ms, 100 Mbit/s"])
def test_the_doctor_measures_the_line_and_names_settings_that_fit(link: SlowLink | None) -> None:
    need_horovod()
    need_two_sites(link)
    with two_sites(link) as pair:
        settings = {
            "OMPI_MCA_plm": "rsh",
            "OMPI_MCA_plm_rsh_agent": str(pair.agent),
            "OMPI_MCA_btl_tcp_if_include": pair.device,
            "OMPI_MCA_oob_tcp_if_include": pair.device,
        }
        before = pair.traffic(0)
        words = [str(BIN / "cxr-hvd"), "doctor", "--peer", pair.sites[1].address, "--json"]
        job = pair.run(0, words, 180, **settings)
        moved = pair.traffic(0).since(before)
    assert job.exit_code == 0, job.output
    told = json.loads(job.output)
    assert {finding["status"] for finding in told["findings"]} == {"ok"}
    assert told["ranks"]["num_ranks"] == 2
    assert max(moved.sent_bytes, moved.received_bytes) < 20e6
    if link is None:
        assert told["line"]["delay_s"] < 2e-3 and told["line"]["to_bytes_per_s"] > 125e6
        return
    assert told["line"]["delay_s"] == pytest.approx(link.delay_ms / 1e3, rel=0.3)
    for way in ("to", "from"):
        assert told["line"][f"{way}_bytes_per_s"] == pytest.approx(link.rate_mbit * 1e6 / 8, rel=0.35)
    assert told["advice"]["line"] == "slow" and told["advice"]["overlap"] and told["advice"]["every"] <= 8


def test_nothing_is_left_behind_after_a_failure() -> None:
    need_two_sites()
    with pytest.raises(ZeroDivisionError), two_sites() as pair:
        raise ZeroDivisionError
    for site in pair.sites:
        assert not Path("/run/netns", site.name).exists()
        assert not Path("/etc/netns", site.name).exists()


@pytest.mark.slow
def test_the_ledger_agrees_with_the_interface() -> None:
    need_horovod()
    need_two_sites()
    with two_sites() as pair:
        job = pair.mpirun(1, [sys.executable, "-m", "tests.lab.count_bytes", pair.device], limit_s=200)
    assert job.exit_code == 0, job.output
    [told] = [json.loads(line) for line in job.output.splitlines() if line.startswith("{")]
    assert len(told) == 5
    for way, ledger_to_interface in told.items():
        assert ledger_to_interface == pytest.approx(1, rel=0.02), way


@pytest.mark.slow
def test_an_overlapped_run_has_the_same_bytes_whatever_the_line(tmp_path: Path) -> None:
    """Over a cable, over a slow line, and over one that cannot keep up with the steps."""
    need_horovod()
    need_two_sites(SlowLink())
    for number, site in enumerate("ab"):
        write_study_file(tmp_path / f"{site}.h5", 24, number, (Split.TRAIN, Split.VALIDATE), site=site)
    config = {
        "experiment": "D",
        "sites": {site: {"data": str(tmp_path / f"{site}.h5")} for site in "ab"},
        "model": {"name": "tiny", "image_size": 32},
        "sharing": {"every": 8, "overlap": True, "wire": "int8"},
        "training": {"epochs": 2, "steps_per_epoch": 11, "batch_size": 4, "precision": "fp32"},
    }
    (tmp_path / "D.yaml").write_text(json.dumps(config))
    digests = []
    for number, link in enumerate((None, SlowLink(20, 100), SlowLink(60, 1))):
        run = tmp_path / f"run{number}"
        with two_sites(link) as pair:
            words = [str(BIN / "cxr-hvd"), "train", str(tmp_path / "D.yaml"), "--run", str(run)]
            job = pair.mpirun(1, words, limit_s=180)
        assert job.exit_code == 0, job.output
        files = sorted(run.glob("?/checkpoints/step-*/*.safetensors"))
        digests.append([(str(f.relative_to(run)), sha256(f.read_bytes()).hexdigest()) for f in files])
    assert len(digests[0]) >= 12
    assert digests[0] == digests[1] == digests[2]


def test_nothing_is_left_behind_after_a_killed_test_run() -> None:
    need_two_sites()
    code = "import os; from lab.two_sites import two_sites\nwith two_sites() as both:\n"
    code += "    print(*(site.name for site in both.sites), flush=True); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    names = killed.stdout.split()
    assert len(names) == 2
    deadline = time.monotonic() + 10
    while any(Path("/run/netns", name).exists() or Path("/etc/netns", name).exists() for name in names):
        assert time.monotonic() < deadline, names
        time.sleep(0.05)
