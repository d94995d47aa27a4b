"""Whatever another rank hands over, every rank says one line that names it; nothing of it is a traceback."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cxr_hvd.comm.communicator import Wait, allgather_text, together
from cxr_hvd.comm.contract import check_contract
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.key import prove_key
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.comm.step_status import StepStatus, begin_statuses
from cxr_hvd.errors import ContractError, CxrHvdError, PeerError
from cxr_hvd.monitor.results_file import RESULTS
from cxr_hvd.training.agreement import _read_counts
from cxr_hvd.training.checkpoint.resume import _read_steps
from cxr_hvd.training.validation import _read_auroc

TOPOLOGY = Topology(0, ("north", "south"), (0, 1))
KEY = b"k" * 32


class Scripted(LocalComm):
    """Rank 0 of two; the other hands over what a script says, or the same as this one."""

    num_ranks = 2

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__()
        self._answers = answers

    def begin_allgather(self, tensor: torch.Tensor, purpose: str) -> Wait[torch.Tensor]:
        answer = self._answers.get(purpose)
        other = (
            tensor.clone() if answer is None else torch.as_tensor(answer, dtype=tensor.dtype).reshape(tensor.shape)
        )
        return lambda: torch.stack([tensor, other])


class Texts(Scripted):
    """The same, where the other hands over a text: its length is right."""

    def __init__(self, purpose: str, text: bytes, more: Mapping[str, Any]) -> None:
        super().__init__({f"{purpose}.length": [len(text)], **more})
        self._text = text

    def begin_allgather(self, tensor: torch.Tensor, purpose: str) -> Wait[torch.Tensor]:
        if not purpose.endswith(".text"):
            return super().begin_allgather(tensor, purpose)
        padded = self._text.ljust(len(tensor), b"\0")
        return lambda: torch.stack([tensor, torch.frombuffer(bytearray(padded), dtype=torch.uint8)])


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(ContractError) as caught:
        action()
    assert caught.value.is_agreed
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_text_or_one_line_that_names_the_site(content: bytes) -> None:
    comm = Texts("fault", content, {})
    try:
        assert allgather_text(comm, "own", "fault", TOPOLOGY.name_of)[1] == content.decode()
    except CxrHvdError as error:
        assert str(error).startswith("site south, rank 1: its answer in fault has not its form")


@pytest.mark.parametrize("length", [-1, 1 << 40, -(1 << 60)])
def test_a_length_that_cannot_be_is_refused_before_it_is_believed(length: int) -> None:
    said = refusal(lambda: allgather_text(Scripted({"fault.length": [length]}), "own", "fault", TOPOLOGY.name_of))
    assert said.startswith("site south, rank 1: its answer in fault has not its form (expected at least 0 and at")


@pytest.mark.parametrize(
    "statement",
    [
        b"\xff\xfe",
        b"no json",
        b"[1, 2]",
        b'"text"',
        b'{"a": 1}',
        b'{"a": {"b": "c"}}',
        b"[" * 100_000,
        b"1e999",
        b"",
    ],
)
def test_a_statement_that_is_none_is_refused(statement: bytes) -> None:
    comm = Texts("contract.statement", statement, {"contract.digest": [7] * 32})
    assert "site south, rank 1: its answer in contract.statement" in refusal(
        lambda: check_contract(Job(comm, TOPOLOGY), {"a": "1"})
    )


def test_equal_statements_of_different_checksums_are_told() -> None:
    said = refusal(lambda: check_contract(Job(Scripted({"contract.digest": [7] * 32}), TOPOLOGY), {"a": "1"}))
    assert "one runs another version" in said


def test_another_site_s_words_in_the_contract_are_short_and_harmless() -> None:
    statement = json.dumps({"a": "1", "\x1b[2J\nAll is well" * 9999: "2"}).encode()
    comm = Texts("contract.statement", statement, {"contract.digest": [7] * 32})
    said = refusal(lambda: check_contract(Job(comm, TOPOLOGY), {"a": "1"}))
    assert "\x1b" not in said
    assert len(said) < 600


@given(st.lists(st.floats(), min_size=5, max_size=5))
def test_any_five_numbers_are_a_status_or_one_line(row: list[float]) -> None:
    own = StepStatus(0.5, 1.0, True)
    try:
        begin_statuses(Job(Scripted({"status": row}), TOPOLOGY), own)()
    except ContractError as error:
        assert str(error).startswith("site south, rank 1: its answer in status has not its form")


@pytest.mark.parametrize(
    "row", [[1, 1, 1, 99, 0], [1, 1, 1, 0, -1], [1, 1, float("nan"), 0, 0], [1, 1, 1, 1.5, 0]]
)
def test_a_status_without_its_form_names_the_site(row: list[float]) -> None:
    refusal(begin_statuses(Job(Scripted({"status": row}), TOPOLOGY), StepStatus(0.5, 1.0, True)))


@pytest.mark.parametrize("answer", [[0, 3], [-4, 0], [5, -1], [1 << 62, 0]])
def test_numbers_of_studies_that_cannot_be_are_refused(answer: list[int]) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        _read_counts(answer)
    assert _read_counts([1, 0]) == (1, 0)


def test_an_auroc_is_a_share_or_undefined() -> None:
    assert _read_auroc([0.5]) == 0.5
    assert math.isnan(_read_auroc([float("nan")]))
    for answer in (-0.1, 1.5, float("inf")):
        with pytest.raises(ValueError, match="at most 1"):
            _read_auroc([answer])


def test_steps_are_no_negative_numbers() -> None:
    assert _read_steps([4, 2, 0, 0]) == {4, 2}
    with pytest.raises(ValueError, match="expected at least 0"):
        _read_steps([-3, 0])


@pytest.mark.parametrize("index", [2, -2, 1 << 40])
def test_a_site_that_is_none_names_the_rank(index: int) -> None:
    comm = Scripted({"site.index": [index]})
    assert refusal(lambda: bind(comm, {"north": 1, "south": 1}, {})).startswith("rank 1: its answer in site.index")


def test_a_rank_that_claims_more_proofs_than_ranks_blames_itself_alone() -> None:
    comm = Scripted({"key.believed": [1 << 40]})
    assert refusal(lambda: prove_key(Job(comm, TOPOLOGY), KEY, torch.zeros(2, 32, dtype=torch.uint8))).startswith(
        "site south, rank 1: its answer in key.believed"
    )


@pytest.mark.parametrize(("code", "wanted"), [(1, 1), (2, 2), (75, 75), (-1, 1), (1 << 40, 1), (256, 1)])
def test_a_failure_of_another_rank_never_ends_this_one_with_success(code: int, wanted: int) -> None:
    with pytest.raises(PeerError) as caught, together(Scripted({"verdict.testing": [code]}), "testing"):
        pass
    assert caught.value.exit_code == wanted


MEANS: dict[str, float | str | None] = {
    "macro_auroc": 0.5,
    "mean_accuracy": None,
    "mean_all_negative_accuracy": None,
    "macro_average_precision": None,
    "mean_brier": 0.25,
    "mean_sensitivity": None,
    "mean_accuracy_at_threshold": None,
    "note": "a mean without labels",
}
RESULT: dict[str, Any] = {
    "site": "south",
    "experiment": "D",
    "split": "test",
    "checkpoint": "latest",
    "step": 4,
    "num_studies": 9,
    "labels": [
        {
            "label": "Edema",
            "num_studies": 9,
            "num_present": 2,
            "auroc": 0.5,
            "accuracy": 1.0,
            "all_negative_accuracy": None,
            "average_precision": 0.25,
            "brier": 0.5,
            "sensitivity_at_specificity": None,
            "expected_calibration_error": 0.1,
            "threshold": -0.5,
            "accuracy_at_threshold": None,
            "note": None,
        }
    ],
    "mean_over": ["Edema"],
    **MEANS,
    "frequent": {"mean_over": [], **MEANS},
    "intervals": {
        "macro_auroc": None,
        "mean_accuracy": None,
        "Edema": [0.1, 0.9],
        "frequent": {"macro_auroc": None, "mean_accuracy": None},
    },
}


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "../south"},
        {"step": float("inf")},
        {"labels": None},
        {"labels": [{"label": "Edema"}]},
        {"macro_auroc": "0.9"},
        {"macro_auroc": float("nan")},
        {"intervals": {}},
        {"intervals": {"macro_auroc": [1], "Edema": None}},
        {"experiment": "\x1b[2J"},
        {"frequent": {**MEANS, "mean_over": [7]}},
        {"intervals": {**RESULT["intervals"], "frequent": None}},
    ],
)
def test_results_of_another_rank_are_shown_only_in_their_form(changes: dict[str, Any]) -> None:
    assert [site.model_dump(mode="json") for site in RESULTS.validate_json(json.dumps([RESULT]))] == [RESULT]
    with pytest.raises(ValueError):
        RESULTS.validate_json(json.dumps([RESULT | changes]))
    for other in ("7", "{}x", '{"a": 1}', "[7]"):
        with pytest.raises(ValueError):
            RESULTS.validate_json(other)
