"""The ledger finds every change, the audit everything that was not planned, and the summary says the numbers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cxr_hvd.cli.app import app
from cxr_hvd.console import Console
from cxr_hvd.errors import CheckpointError, ContractError
from cxr_hvd.ledger.allowed import TRAFFIC, check_traffic, traffic_of
from cxr_hvd.ledger.audit import audit, averages_between
from cxr_hvd.ledger.chain import canonical, hash_of
from cxr_hvd.ledger.events import sent_bytes_of
from cxr_hvd.ledger.reader import load_folders, read_ledger
from cxr_hvd.ledger.summary import accounts_of, render
from cxr_hvd.ledger.writer import Ledger, head_name, opening

SHARED, PRIVATE = 1000, 640
STEPS = 20


def plan(**changes: Any) -> dict[str, Any]:
    def tensor(block: str, scope: str, elements: int) -> dict[str, Any]:
        shape = [elements // 10, 10]
        return {"name": f"{block}.conv", "block": block, "kind": "parameter", "shape": shape, "scope": scope}

    def buffer(purpose: str, block: str, scope: str, elements: int) -> dict[str, Any]:
        size = {"num_elements": elements, "bytes_per_exchange": 4 * elements}
        return {"purpose": purpose, "block": block, "dtype": "float32", "scope": scope} | size

    return {
        "exchange": "weights",
        "wire": "float32",
        "every": 1,
        "moments": [],
        "tensors": [tensor("denseblock2", "shared", SHARED), tensor("stem", "private", PRIVATE)],
        "buffers": [
            buffer("weights", "denseblock2", "shared", SHARED),
            buffer("private", "stem", "private", PRIVATE),
        ],
    } | changes


def begin(run: Path, site: str = "north", step: int = 0, content: dict[str, Any] | None = None) -> Ledger:
    """Open the ledger of a site's first of two ranks, among four ranks in all."""
    folder = run / site
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "plan.json").exists():
        (folder / "plan.json").write_text(json.dumps(content or plan()))
    ledger = Ledger()
    rank = 0 if site == "north" else 1
    ledger.note("verdict.opening its study file", "", (1,), "int64", 8, "all", 2, "allgather")
    ledger.open(folder / "ledger.jsonl", opening(site, rank, 2, 0, 1, folder / "plan.json", step))
    return ledger


def send(ledger: Ledger, block: str = "denseblock2", elements: int = SHARED, **changes: Any) -> None:
    """Hand one buffer over, as planned but for `changes`."""
    planned: dict[str, Any] = {"purpose": "weights", "name": block, "shape": (elements,), "dtype": "float32"}
    planned |= {"num_bytes": 4 * elements, "group": "all", "group_size": 2, "how": "allreduce"}
    ledger.note(**(planned | changes))


def train(ledger: Ledger, first: int = 0, last: int = STEPS) -> None:
    for step in range(first, last):
        ledger.begin_step(step)
        ledger.note("status", "", (1, 5), "float64", 40, "all", 2, "allgather")
        send(ledger)


def whole_run(run: Path, sites: tuple[str, ...] = ("north",)) -> Path:
    ledgers = {site: begin(run, site) for site in sites}
    for ledger in ledgers.values():
        train(ledger)
    heads = {head_name(site, 0): ledger.head() for site, ledger in ledgers.items()}
    for ledger in ledgers.values():
        ledger.note("head", "", (32,), "uint8", 32, "all", 2, "allgather")
        ledger.record_heads(heads)
        ledger.close()
    return run / sites[0] / "ledger.jsonl"


def faults_of(run: Path) -> list[str]:
    return [str(fault) for fault in audit(load_folders(run)).faults]


def only_fault_of(run: Path) -> str:
    [fault] = faults_of(run)
    return fault


def account_text(run: Path) -> str:
    console = Console(width=120, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    for account in accounts_of(audit(load_folders(run))):
        console.print(render(account))
    return console.export_text()


# ---- the chain


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = whole_run(tmp_path_factory.mktemp("chain"), ("north", "south"))
    assert faults_of(path.parent.parent) == []
    return path.read_bytes().splitlines(keepends=True)


def is_found(content: bytes) -> bool:
    record = read_ledger(content, "north/ledger.jsonl")
    return bool(record.faults) or not record.starts[-1].closing


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_found(rows: list[bytes], data: st.DataObject) -> None:
    content = bytearray(b"".join(rows))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
    assert is_found(bytes(content))


@given(st.data())
def test_any_dropped_doubled_or_swapped_line_is_found(rows: list[bytes], data: st.DataObject) -> None:
    first, second = sorted(
        data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=2, max_size=2, unique=True))
    )
    assert is_found(b"".join(rows[:first] + rows[first + 1 :]))
    assert is_found(b"".join([*rows[: first + 1], *rows[first:]]))
    swapped = [*rows]
    swapped[first], swapped[second] = rows[second], rows[first]
    assert is_found(b"".join(swapped))


@given(st.binary(max_size=200))
def test_no_bytes_are_a_traceback(content: bytes) -> None:
    assert read_ledger(content, "x").faults
    line = {"seq": 0, "previous": "0" * 64, "event": "opened", "junk": content.hex()}
    assert read_ledger(canonical(line | {"hash": hash_of(line)}) + b"\n", "x").faults


def test_a_chain_written_anew_does_not_fit_what_another_site_witnessed(tmp_path: Path) -> None:
    path = whole_run(tmp_path, ("north", "south"))
    previous, forged = "0" * 64, []
    for raw in path.read_bytes().splitlines():
        line = json.loads(raw) | {"previous": previous}
        for entry in line.get("entries", []):
            entry["last_step"] += 1
        previous = line["hash"] = hash_of(line)
        forged.append(canonical(line) + b"\n")
    path.write_bytes(b"".join(forged))
    assert read_ledger(path.read_bytes(), "north/ledger.jsonl").faults == []
    faults = [fault for fault in faults_of(tmp_path) if fault.startswith("south/ledger.jsonl")]
    assert len(faults) == 1 and "north/ledger.jsonl had a line with hash" in faults[0]


# ---- the file


def test_a_resumed_ledger_is_one_chain(tmp_path: Path) -> None:
    path = whole_run(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    ledger = begin(tmp_path, step=STEPS)
    train(ledger, STEPS, 2 * STEPS)
    ledger.close()
    assert faults_of(tmp_path) == []
    events = [json.loads(row)["event"] for row in path.read_text().splitlines()]
    assert events.count("opened") == 1 and events.count("resumed") == 1 and events.count("closed") == 2


def test_a_killed_ledger_names_every_kind(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    train(ledger)  # and no close
    entries = [
        e
        for r in (tmp_path / "north/ledger.jsonl").read_text().splitlines()
        for e in json.loads(r).get("entries", [])
    ]
    assert {entry["purpose"] for entry in entries} == {"verdict.opening its study file", "status", "weights"}
    assert faults_of(tmp_path) == []
    assert "may lack the last 5 minutes" in " ".join(account_text(tmp_path).split())


@pytest.mark.parametrize("tail", [b'{"entries":[{"by', b"\0\0\0\0\n"])
def test_a_torn_line_is_cut_and_the_cut_is_written_down(tmp_path: Path, tail: bytes) -> None:
    path = whole_run(tmp_path)
    with path.open("ab") as file:
        file.write(tail)
    assert len(faults_of(tmp_path)) == 1
    begin(tmp_path, step=STEPS).close()
    assert faults_of(tmp_path) == []
    assert f"{len(tail)} bytes of a line that a crash tore" in " ".join(account_text(tmp_path).split())


def test_more_than_a_torn_line_is_not_cut(tmp_path: Path) -> None:
    path = whole_run(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"x\nrest")
    with pytest.raises(CheckpointError, match="more than its last line is damaged"):
        begin(tmp_path)


def test_a_ledger_that_cannot_be_written_stops_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot write or read the ledger"):
        Ledger().open(
            tmp_path / "absent" / "ledger.jsonl", opening("north", 0, 2, 0, 1, tmp_path / "plan.json", 0)
        )


def test_counts_are_written_when_due(tmp_path: Path) -> None:
    ledger = Ledger(flush_every_s=0)
    (tmp_path / "plan.json").write_text("{}")
    ledger.open(tmp_path / "ledger.jsonl", opening("north", 0, 2, 0, 1, tmp_path / "plan.json", 0))
    for step in range(3):
        ledger.begin_step(step)
        send(ledger)
    entries = [
        e for r in (tmp_path / "ledger.jsonl").read_text().splitlines() for e in json.loads(r).get("entries", [])
    ]
    assert [entry["last_step"] for entry in entries] == [0, 1, 2]


def test_a_ledger_of_schema_1_is_read_and_audited(tmp_path: Path) -> None:
    """It calls collectives sum, gather and swap, the status pulse, and says no schema."""
    path = whole_run(tmp_path)
    earlier = {"allreduce": "sum", "allgather": "gather", "alltoall": "swap", "status": "pulse"}

    def reword() -> None:
        previous, rows = "0" * 64, list[bytes]()
        renamed: dict[str, str] = {}
        for raw in path.read_bytes().splitlines():
            line = json.loads(raw) | {"previous": previous}
            line.pop("ledger_schema", None)
            former = line["hash"]
            for entry in line.get("entries", []):
                entry |= {key: earlier.get(entry[key], entry[key]) for key in ("how", "purpose")}
            if "totals" in line:
                line["totals"] = {earlier.get(root, root): total for root, total in line["totals"].items()}
            line["heads"] = {name: renamed[head] for name, head in line.get("heads", {}).items()}
            previous = renamed[former] = line["hash"] = hash_of(line)
            rows.append(canonical(line) + b"\n")
        path.write_bytes(b"".join(rows))

    reword()
    assert b'"pulse"' in path.read_bytes() and b'"status"' not in path.read_bytes()
    assert faults_of(tmp_path) == []
    assert f"{STEPS * SHARED * 4:,}" in account_text(tmp_path)
    ledger = begin(tmp_path, step=STEPS)  # a run that goes on with today's program
    train(ledger, STEPS, 2 * STEPS)
    ledger.close()
    assert faults_of(tmp_path) == []


def test_a_rank_alone_sends_nothing() -> None:
    ledger = Ledger()
    ledger.note("status", "", (1, 5), "float64", 40, "all", 1, "allgather")
    assert ledger.sent_bytes() == 0


def test_bytes_are_those_of_a_ring() -> None:
    assert sent_bytes_of("allreduce", 100, 4) == 150
    assert sent_bytes_of("allgather", 100, 4) == 300
    assert sent_bytes_of("alltoall", 100, 4) == 75


# ---- what may leave


def test_what_the_table_does_not_foresee_cannot_leave() -> None:
    with pytest.raises(ValueError, match="'images' may not leave"):
        traffic_of("images")
    with pytest.raises(ContractError, match="41 bytes were to leave this rank, at most 40"):
        check_traffic("status", 41)
    with pytest.raises(ContractError, match="must stay at its own"):
        Ledger().note("private", "stem", (4,), "float32", 16, "all", 2, "allreduce")
    assert traffic_of("verdict.saving a checkpoint") is TRAFFIC["verdict"]


def forge_line(path: Path, **changes: Any) -> None:
    """Add a line with its right hash to a ledger, as its owner can."""
    *_, last = path.read_bytes().splitlines()
    line = json.loads(last) | {"seq": json.loads(last)["seq"] + 1, "previous": json.loads(last)["hash"]} | changes
    with path.open("ab") as file:
        file.write(canonical(line | {"hash": hash_of(line)}) + b"\n")


def forge(ledger: Ledger, path: Path, **changes: Any) -> None:
    """Write down what `note` would refuse."""
    entry = {
        "purpose": "weights",
        "name": "denseblock2",
        "shape": [SHARED],
        "dtype": "float32",
        "bytes": 4 * SHARED,
    }
    entry |= {"group": "all", "group_size": 2, "how": "allreduce", "count": 1, "first_step": 0, "last_step": 0}
    ledger.flush()
    forge_line(path, event="sent", entries=[entry | changes])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"purpose": "images"}, "images denseblock2: is not declared"),
        (
            {"name": "stem", "shape": [PRIVATE], "bytes": 4 * PRIVATE},
            "weights stem: the plan keeps this block private",
        ),
        ({"name": "block9"}, "is no buffer of the plan"),
        ({"shape": [SHARED + 1], "bytes": 4 * SHARED + 4}, "1001 elements, the plan says [1000]"),
        ({"purpose": "private", "name": "stem", "shape": [640], "bytes": 2560}, "went to all sites"),
        (
            {"purpose": "status", "name": "", "shape": [100], "bytes": 400},
            "400 bytes left this rank, at most 40",
        ),
        ({"bytes": 4}, "4 bytes are not [1000] of float32"),
        ({"group_size": 3}, "went to a group of 3 ranks, expected 2"),
        ({"how": "allgather"}, "an allgather of float32, the plan's wire is float32"),
        ({"count": 2}, "sent 2 times in steps 0 to 0, at most 1"),
        ({"purpose": "studies", "name": "", "shape": [1], "bytes": 4, "count": 2}, "studies: sent 2 times"),
        ({"count": 0}, "has not its form: entries.0.count"),
        ({"extra": "patient"}, "has not its form: entries.0.extra"),
    ],
)
def test_what_the_plan_does_not_foresee_is_a_fault(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    ledger = begin(tmp_path)
    forge(ledger, tmp_path / "north" / "ledger.jsonl", **changes)
    assert said in only_fault_of(tmp_path)


def test_private_tensors_may_be_shared_within_a_site(tmp_path: Path) -> None:
    folder = tmp_path / "north"
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(plan()))
    for rank, name in enumerate(("ledger.jsonl", "ledger-rank1.jsonl")):
        ledger = Ledger()
        ledger.open(folder / name, opening("north", rank, 2, rank, 2, folder / "plan.json", 0))
        ledger.begin_step(0)
        send(ledger, "stem", PRIVATE, purpose="private", group="site")
        ledger.close()
    assert faults_of(tmp_path) == []
    assert "None left the site; its own ranks shared 5,120 bytes" in account_text(tmp_path)
    (folder / "ledger-rank1.jsonl").unlink()
    assert only_fault_of(tmp_path) == "north/ledger-rank1.jsonl: is missing"


def test_a_short_wire_sends_padded_parts_both_ways(tmp_path: Path) -> None:
    ledger = begin(tmp_path, content=plan(wire="bfloat16"))
    ledger.begin_step(0)
    send(ledger, shape=(SHARED,), dtype="bfloat16", num_bytes=2 * SHARED, how="alltoall")
    send(ledger, shape=(SHARED,), dtype="bfloat16", num_bytes=2 * SHARED, how="allgather")
    send(ledger, name="padding of shared", shape=(1,), dtype="bfloat16", num_bytes=2, how="alltoall")
    ledger.close()
    assert faults_of(tmp_path) == []
    assert f"{4 * SHARED + 2:,}" in account_text(tmp_path)


@pytest.mark.parametrize(
    ("wire", "name", "size", "why"),
    [
        ("int8", "scales of shared", 4 * 100, "400 elements, at most "),
        ("bfloat16", "padding of shared", 5, "5 elements, at most 2"),
        ("float32", "scales of shared", 4, "an allgather of int8, the plan's wire is float32"),
    ],
)
def test_what_rounding_adds_is_no_way_round_the_plan(
    tmp_path: Path, wire: str, name: str, size: int, why: str
) -> None:
    ledger = begin(tmp_path, content=plan(wire=wire))
    ledger.begin_step(0)
    dtype, width = ("bfloat16", 2) if wire == "bfloat16" else ("int8", 1)
    send(ledger, name=name, shape=(size,), dtype=dtype, num_bytes=width * size, how="allgather")
    ledger.close()
    assert why in only_fault_of(tmp_path)


def test_an_overlapped_average_comes_once_a_round_before_validations_and_at_the_end(tmp_path: Path) -> None:
    ledger = begin(tmp_path / "right", content=plan(every=4, overlap=True))
    for step in (0, 4, 8):
        ledger.begin_step(step)
        send(ledger)
    ledger.begin_step(9)
    send(ledger)
    ledger.close()
    assert faults_of(tmp_path / "right") == []
    ledger = begin(tmp_path / "wrong", content=plan(every=4, overlap=True))
    train(ledger)
    ledger.close()
    assert "sent 20 times in steps 0 to 19, at most 6" in only_fault_of(tmp_path / "wrong")


def test_averages_are_every_so_many_steps_and_the_last() -> None:
    for every in (1, 2, 3, 7):
        for first in range(10):
            for last in range(first, 20):
                regular = [step for step in range(first, last + 1) if (step + 1) % every == 0]
                most = len({*regular, last})
                assert averages_between(first, last, every) == most


def test_too_many_averages_are_a_fault(tmp_path: Path) -> None:
    ledger = begin(tmp_path, content=plan(every=2))
    train(ledger)
    ledger.close()
    assert "sent 20 times in steps 0 to 19, at most 10" in only_fault_of(tmp_path)


def test_a_plan_that_hides_private_tensors_in_a_shared_buffer_is_a_fault(tmp_path: Path) -> None:
    hiding = plan()
    hiding["buffers"][0]["num_elements"] += PRIVATE
    begin(tmp_path, content=hiding).close()
    assert "buffer weights denseblock2: 1640 elements, the block has 1000 shared ones" in only_fault_of(tmp_path)


def test_another_plan_than_the_opened_one_is_a_fault(tmp_path: Path) -> None:
    path = whole_run(tmp_path)
    (path.parent / "plan.json").write_text(json.dumps(plan(every=2)))
    assert only_fault_of(tmp_path) == "north/plan.json: is not the plan that the ledger was opened with"


def test_sites_with_different_plans_are_a_fault(tmp_path: Path) -> None:
    begin(tmp_path, "north").close()
    begin(tmp_path, "south", content=plan(every=2)).close()
    assert "another plan than north" in only_fault_of(tmp_path)


# ---- the command


def test_the_summary_says_the_numbers(tmp_path: Path) -> None:
    whole_run(tmp_path, ("north", "south"))
    said = CliRunner().invoke(app, ["ledger", "verify", str(tmp_path)])
    assert said.exit_code == 0, said.output
    for number in (
        "20 steps",
        f"{STEPS * SHARED * 4:,}",
        "stem (640 numbers)",
        "None entered any exchange",
        "All holds",
    ):
        assert number in said.output
    result = json.loads(CliRunner().invoke(app, ["ledger", "verify", str(tmp_path), "--json"]).output)
    assert result["holds"] and {site["site"] for site in result["sites"]} == {"north", "south"}


def test_one_site_may_be_verified_alone_and_names_its_witnesses(tmp_path: Path) -> None:
    path = whole_run(tmp_path, ("north", "south"))
    said = CliRunner().invoke(app, ["ledger", "verify", str(path.parent)])
    assert said.exit_code == 0
    assert "its ledger is witness to south/ledger.jsonl, not here" in " ".join(said.output.split())


def test_a_fault_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    forge(begin(tmp_path), tmp_path / "north" / "ledger.jsonl", purpose="images")
    said = CliRunner().invoke(app, ["ledger", "verify", str(tmp_path)])
    assert said.exit_code == 1
    assert "FAULT north/ledger.jsonl, line 3: images denseblock2: is not declared" in said.output


# ---- ledgers of a stranger


def verify(run: Path) -> Any:
    return CliRunner().invoke(app, ["ledger", "verify", str(run)], terminal_width=100)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["ledger.jsonl", "plan.json"])
def test_a_pipe_a_device_or_a_link_is_refused_at_once(tmp_path: Path, name: str) -> None:
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("elsewhere")):
        whole_run(tmp_path / "run")
        file = tmp_path / "run" / "north" / name
        file.unlink()
        make(file)
        done = verify(tmp_path / "run")
        assert isinstance(done.exception, CheckpointError)
        assert name in str(done.exception)
        file.unlink()
        (tmp_path / "run" / "north" / "ledger.jsonl").unlink(missing_ok=True)


def test_a_ledger_of_endless_nonsense_is_read_no_further(tmp_path: Path) -> None:
    path = whole_run(tmp_path)
    path.write_bytes(b"\n" * 3_000_000)
    assert len(faults_of(tmp_path)) < 200


def test_without_a_ledger_nothing_is_said_of_what_left(tmp_path: Path) -> None:
    whole_run(tmp_path / "run", ("north", "south"))
    (tmp_path / "run" / "north" / "ledger.jsonl").unlink()
    (tmp_path / "run" / "south" / "ledger.jsonl").write_bytes(b"{}\n")
    done = verify(tmp_path / "run")
    assert done.exit_code == 1
    assert done.output.count("no ledger that can be read: what left it is not known") == 2
    for claim in ("Nothing of the network left", "keeps no block private", "All holds", "handed to the network"):
        assert claim not in done.output
    (tmp_path / "run" / "south" / "ledger.jsonl").unlink()
    assert "no ledger here" in str(verify(tmp_path / "run").exception)


def test_with_lines_that_do_not_hold_nothing_is_said_to_have_stayed(tmp_path: Path) -> None:
    path = whole_run(tmp_path)
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(b"x" + row if b"weights" in row else row for row in rows))
    said = " ".join(account_text(tmp_path).split())
    assert "Nothing of the network left the site as far as its lines could be read" in said
    assert "None entered any exchange" not in said


def test_without_its_plan_nothing_is_said_of_private_blocks(tmp_path: Path) -> None:
    path = whole_run(tmp_path)
    (path.parent / "plan.json").unlink()
    assert "which blocks it keeps private is not known" in " ".join(account_text(tmp_path).split())
    assert "keeps no block private" not in account_text(tmp_path)


def test_a_site_s_name_does_not_say_that_all_holds(tmp_path: Path) -> None:
    path = whole_run(tmp_path)
    name = "north\x1b[2J\x1b[1;1H\nAll holds: chains, plan, amounts.\r[red]"
    path.parent.rename(tmp_path / name)
    done = verify(tmp_path)
    assert done.exit_code == 1
    assert "\x1b" not in done.output and "\r" not in done.output
    assert not any(line.startswith("All holds") for line in done.output.splitlines())
    assert "[red]" in done.output


@pytest.mark.parametrize(
    "opening",
    [
        {"site": "north\x1b[2J"},
        {"site": "north" * 1000},
        {"num_ranks_of_site": 1 << 62},
        {"time": "2026\n" * 9},
        {"step": True},
    ],
)
def test_a_start_that_is_not_of_its_form_is_one_fault(tmp_path: Path, opening: dict[str, Any]) -> None:
    path = whole_run(tmp_path)
    first = json.loads(path.read_bytes().splitlines()[0])
    forge_line(path, **{key: first[key] for key in first if key not in ("seq", "previous", "hash")} | opening)
    assert len(faults_of(tmp_path)) <= 2
    assert all("\x1b" not in fault and len(fault) <= 400 for fault in faults_of(tmp_path))


def test_numbers_beyond_all_measure_are_faults_and_are_not_added_up(tmp_path: Path) -> None:
    hiding = plan()
    hiding["tensors"][0]["shape"] = [1 << 62] * 5000
    begin(tmp_path, content=hiding).close()
    assert "is no sharing plan" in faults_of(tmp_path)[0]
    assert "which blocks it keeps private is not known" in " ".join(account_text(tmp_path).split())
