"""The laws of tests/laws/laws.py, in real jobs of 2 and 3 ranks under MPI and under Gloo."""

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from lab.launch import launch, need_horovod, run_laws

need_horovod()

LIMIT_S = 540
BY_ALL = (
    "shared_tensors_become_the_mean_and_are_bit_equal_on_all_ranks",
    "private_tensors_and_counters_stay_bit_equal",
    "averaging_equal_models_changes_nothing",
    "the_order_of_ranks_changes_nothing",
    "sites_weigh_by_their_studies_where_asked",
    "every_third_step_averages_and_the_others_do_not",
    "the_last_step_averages_whatever_the_pace",
    "a_failure_on_one_rank_is_a_verdict_on_all",
    "a_difference_is_named_with_sites_and_values_on_every_rank",
    "ranks_find_their_sites_by_order_or_by_their_own_word",
    "texts_of_any_length_arrive_whole",
    "no_private_tensor_enters_a_collective",
    "private_tensors_train_as_alone_given_the_same_shared_weights",
    "a_loss_that_is_not_finite_stops_all_ranks_and_names_the_site",
)
BY_TWO = (
    "resuming_equals_never_stopping_bit_for_bit",
    "merged_training_deals_every_study_out_once_a_pass",
    "a_frozen_peer_does_not_stop_python",
)
BY_THREE = (
    "a_site_weighs_one_share_however_many_ranks_it_has",
    "many_ranks_of_a_site_stand_in_ledgers_of_their_own",
)
EXCHANGES_BY_ALL = (
    "weights_become_the_mean_over_sites_whatever_their_ranks",
    "gradients_are_those_of_each_sites_whole_batch",
    "the_order_of_sites_changes_no_gradient",
    "what_rounding_takes_is_sent_later",
    "a_short_wire_rounds_the_last_step_and_not_the_whole_way",
    "what_16_bits_cannot_hold_goes_in_portions",
    "ranks_prove_the_same_key_or_all_stop",
)
EXCHANGES_BY_TWO = (
    "sharing_nothing_is_training_alone_bit_for_bit",
    "sharing_everything_is_horovods_own_optimizer",
    "exchanged_gradients_keep_shared_tensors_equal_and_private_ones_apart",
    "shared_optimizer_state_is_equal_everywhere_and_local_is_not",
    "short_wires_keep_shared_tensors_equal_and_near_the_exact_mean",
    "resuming_equals_never_stopping_for_every_exchange",
    "all_take_the_steps_that_were_agreed_on",
    "a_difference_in_any_item_is_named_on_every_rank_within_seconds",
    "the_ledger_holds_all_that_horovod_was_given",
)
STOPPING_BY_ALL = (
    "every_rank_hears_every_pulse",
    "a_sites_ranks_judge_together_as_one_would",
    "a_gradient_that_is_not_finite_stops_all_and_is_named",
    "stopping_and_going_on_equals_never_stopping_for_every_exchange",
)
STOPPING_BY_TWO = (
    "every_rank_hears_every_pulse",
    "a_sites_ranks_judge_together_as_one_would",
    "a_gradient_that_is_not_finite_stops_all_and_is_named",
    "stopping_and_going_on_equals_never_stopping",
    "a_batch_in_parts_gives_the_gradient_of_the_whole",
    "patience_without_anything_to_judge_by_is_refused_by_all",
    "clipping_keeps_exchanged_weights_equal_and_bounds_the_step",
    "too_many_skipped_steps_end_the_run",
    "a_step_that_is_not_finite_is_skipped_by_all_where_asked",
    "a_run_without_any_checkpoint_starts_anew",
    "all_go_on_from_the_newest_step_that_all_hold_whole",
)
COMMAND_BY_TWO = (
    "experiments_b_and_c_end_with_one_network",
    "the_private_tensors_of_d_are_those_of_a_after_the_first_step",
    "a_study_file_without_complete_is_refused_by_all",
    "a_study_file_that_is_missing_is_named",
    "two_sites_with_another_label_order_are_refused",
    "two_sites_with_other_pixels_train_only_where_asked",
    "an_empty_training_split_is_refused_by_all",
    "a_pattern_that_matches_no_block_is_refused_by_all",
)
TELLING = (
    "shared_tensors_become_the_mean_and_are_bit_equal_on_all_ranks",
    "no_private_tensor_enters_a_collective",
    "gradients_are_those_of_each_sites_whole_batch",
    "a_failure_on_one_rank_is_a_verdict_on_all",
    "resuming_equals_never_stopping_bit_for_bit",
    "a_frozen_peer_does_not_stop_python",
)
AVERAGING_BY_TWO = BY_ALL + BY_TWO + EXCHANGES_BY_ALL + EXCHANGES_BY_TWO
ALL_BY_TWO = AVERAGING_BY_TWO + STOPPING_BY_TWO + COMMAND_BY_TWO
NIGHT = (pytest.mark.slow, pytest.mark.night)


@dataclass(frozen=True, eq=False)
class LawJob:
    """One launch that tries laws one after the other.

    Attributes:
        name: of the job, in the tests' ids.
        marks: when it runs; none is by day.
        network: of the laws' models.
    """

    name: str
    launcher: str
    num_ranks: int
    laws: tuple[str, ...]
    marks: tuple[pytest.MarkDecorator, ...] = ()
    network: str = "tiny"


JOBS = (
    LawJob("mpirun-2", "mpirun", 2, ALL_BY_TWO),
    LawJob("mpirun-3", "mpirun", 3, BY_ALL + BY_THREE + EXCHANGES_BY_ALL),
    LawJob("gloo-2", "gloo", 2, TELLING),
    LawJob("stopping-gloo-2", "gloo", 2, STOPPING_BY_ALL, (pytest.mark.slow,)),
    LawJob("stopping-mpirun-2", "mpirun", 2, STOPPING_BY_ALL, NIGHT),
    LawJob("all-gloo-2", "gloo", 2, ALL_BY_TWO, NIGHT),
    LawJob("gloo-3", "gloo", 3, BY_THREE, NIGHT),
    LawJob("stopping-mpirun-3", "mpirun", 3, STOPPING_BY_ALL, NIGHT),
    LawJob("mpirun-4", "mpirun", 4, EXCHANGES_BY_ALL[:2], NIGHT),
    LawJob("gloo-4", "gloo", 4, EXCHANGES_BY_ALL[:2], NIGHT),
    LawJob(
        "densenet121", "mpirun", 2, BY_ALL + BY_TWO + EXCHANGES_BY_ALL + EXCHANGES_BY_TWO, NIGHT, "densenet121"
    ),
)

Verdicts = Callable[[LawJob], dict[str, str]]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """Start each job once, when the first of its laws is asked for."""

    @cache
    def verdicts_of(job: LawJob) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("laws")
        return run_laws(job.num_ranks, job.launcher, job.laws, folder, LIMIT_S, CXR_LAWS_NETWORK=job.network)

    return verdicts_of


def test_every_law_is_tried_by_some_job() -> None:
    names = {
        name
        for path in Path(__file__).parent.glob("*laws.py")
        for name in re.findall(
            r"^def (\w+)\(comm: HorovodComm, folder: Path\) -> None:", path.read_text(), re.MULTILINE
        )
    }
    tried = {law for job in JOBS for law in job.laws}
    assert names - tried == {"rank_1_hangs"}


@pytest.mark.parametrize(
    ("job", "law"),
    [pytest.param(job, law, marks=job.marks, id=f"{job.name}-{law}") for job in JOBS for law in job.laws],
)
def test_law(job: LawJob, law: str, verdicts: Verdicts) -> None:
    verdict = verdicts(job)[law]
    assert verdict == "kept", verdict


@pytest.mark.parametrize("launcher", ["mpirun", pytest.param("gloo", marks=NIGHT)])
def test_a_hanging_rank_fails_its_test_by_name_in_time(launcher: str, tmp_path: Path) -> None:
    said = run_laws(2, launcher, ["rank_1_hangs"], tmp_path, limit_s=240, CXR_LAW_LIMIT_S="2")["rank_1_hangs"]
    assert "rank 1 did not finish rank_1_hangs" in said
    assert "in rank_1_hangs" in said


@pytest.mark.parametrize("launcher", [pytest.param("mpirun", marks=NIGHT), "gloo"])
def test_a_wait_for_a_silent_rank_ends_the_job_in_time(launcher: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.laws.rank", str(tmp_path), str(time.time() + 600), "rank_1_hangs"]
    job = launch(2, command, launcher, limit_s=240, CXR_STALL_LIMIT_S="3")
    assert job.exit_code != 0
    assert job.lines("waiting for the other ranks in verdict.waits for rank 1 for more than 3 s")
