"""The laws of tests/parallel/laws.py, in real jobs of 2 and 3 ranks under MPI and under Gloo."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch import launch, need_horovod, run_laws

need_horovod()

LIMIT_S = 540
BY_ALL = [
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
]
BY_TWO = [
    "resuming_equals_never_stopping_bit_for_bit",
    "merged_training_deals_every_study_out_once_a_pass",
    "a_frozen_peer_does_not_stop_python",
]
BY_THREE = [
    "a_site_weighs_one_share_however_many_ranks_it_has",
    "many_ranks_of_a_site_stand_in_ledgers_of_their_own",
]
EXCHANGES_BY_ALL = [
    "weights_become_the_mean_over_sites_whatever_their_ranks",
    "gradients_are_those_of_each_sites_whole_batch",
    "the_order_of_sites_changes_no_gradient",
    "what_rounding_takes_is_sent_later",
    "a_short_wire_rounds_the_last_step_and_not_the_whole_way",
    "what_16_bits_cannot_hold_goes_in_portions",
    "ranks_prove_the_same_key_or_all_stop",
]
EXCHANGES_BY_TWO = [
    "sharing_nothing_is_training_alone_bit_for_bit",
    "sharing_everything_is_horovods_own_optimizer",
    "exchanged_gradients_keep_shared_tensors_equal_and_private_ones_apart",
    "shared_optimizer_state_is_equal_everywhere_and_local_is_not",
    "short_wires_keep_shared_tensors_equal_and_near_the_exact_mean",
    "resuming_equals_never_stopping_for_every_exchange",
    "all_take_the_steps_that_were_agreed_on",
    "a_difference_in_any_item_is_named_on_every_rank_within_seconds",
    "the_ledger_holds_all_that_horovod_was_given",
]
STOPPING_BY_ALL = [
    "every_rank_hears_every_pulse",
    "a_sites_ranks_judge_together_as_one_would",
    "a_gradient_that_is_not_finite_stops_all_and_is_named",
    "stopping_and_going_on_equals_never_stopping",
]
STOPPING_BY_TWO = [
    "a_batch_in_parts_gives_the_gradient_of_the_whole",
    "patience_without_anything_to_judge_by_is_refused_by_all",
    "clipping_keeps_exchanged_weights_equal_and_bounds_the_step",
    "too_many_skipped_steps_end_the_run",
    "a_step_that_is_not_finite_is_skipped_by_all_where_asked",
    "a_run_without_any_checkpoint_starts_anew",
    "all_go_on_from_the_newest_step_that_all_hold_whole",
]
JOBS = {
    ("mpirun", 2): BY_ALL + BY_TWO + EXCHANGES_BY_ALL + EXCHANGES_BY_TWO,
    ("mpirun", 3): BY_ALL + BY_THREE + EXCHANGES_BY_ALL,
    ("mpirun", 4): EXCHANGES_BY_ALL[:2],
    ("gloo", 2): BY_ALL + BY_TWO,
    ("exchanges gloo", 2): EXCHANGES_BY_ALL + EXCHANGES_BY_TWO,
    ("gloo", 3): BY_THREE,
    ("stopping mpirun", 2): STOPPING_BY_ALL + STOPPING_BY_TWO,
    ("stopping mpirun", 3): STOPPING_BY_ALL,
    ("stopping gloo", 2): STOPPING_BY_ALL,
    ("gloo", 4): EXCHANGES_BY_ALL[:2],
}

SLOW = (("stopping gloo", 2),)
BY_NIGHT = (("stopping mpirun", 3), ("exchanges gloo", 2), ("mpirun", 4), ("gloo", 3), ("gloo", 4))


def marks_of(job: tuple[str, int]) -> list[pytest.MarkDecorator]:
    """Return when the laws of a job are tried."""
    by_night = [pytest.mark.night] if job in BY_NIGHT else []
    return by_night + ([pytest.mark.slow] if job in (*SLOW, *BY_NIGHT) else [])


Verdicts = Callable[[str, int], dict[str, str]]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """Start each job once, when the first of its laws is asked for."""
    told: dict[tuple[str, int], dict[str, str]] = {}

    def verdicts_of(launcher: str, num_ranks: int) -> dict[str, str]:
        job = (launcher, num_ranks)
        if job not in told:
            folder = tmp_path_factory.mktemp("laws")
            told[job] = run_laws(num_ranks, launcher.split()[-1], JOBS[job], folder, LIMIT_S)
        return told[job]

    return verdicts_of


@pytest.mark.parametrize(
    ("launcher", "num_ranks", "law"),
    [pytest.param(*job, law, marks=marks_of(job)) for job, names in JOBS.items() for law in names],
)
def test_law(launcher: str, num_ranks: int, law: str, verdicts: Verdicts) -> None:
    verdict = verdicts(launcher, num_ranks)[law]
    assert verdict == "kept", verdict


@pytest.mark.parametrize("launcher", ["mpirun", "gloo"])
def test_a_hanging_rank_fails_its_test_by_name_in_time(launcher: str, tmp_path: Path) -> None:
    said = run_laws(2, launcher, ["rank_1_hangs"], tmp_path, limit_s=25)["rank_1_hangs"]
    assert "rank 1 did not finish rank_1_hangs" in said
    assert "in rank_1_hangs" in said


@pytest.mark.parametrize("launcher", ["mpirun", "gloo"])
def test_a_wait_for_a_silent_rank_ends_the_job_in_time(launcher: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.parallel.rank", str(tmp_path), str(time.time() + 600), "rank_1_hangs"]
    job = launch(2, command, launcher, limit_s=90, CXR_STALL_LIMIT_S="3")
    assert job.exit_code != 0
    assert job.lines("waiting for the other ranks in verdict.waits for rank 1 for more than 3 s")
