"""The order of studies: every pass shows every study once, however ranks share it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_hvd.data.studies import Shuffle


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(0, 5))
def test_every_pass_shows_every_study_once(num_studies: int, batch_size: int, num_ranks: int, seed: int) -> None:
    ranks = [Shuffle(num_studies, batch_size, num_ranks, rank, (seed, 1)) for rank in range(num_ranks)]
    num_steps = 3 * ranks[0].steps_per_epoch
    dealt = [pair for step in range(num_steps) for rank in ranks for pair in rank.batch_at(step)]
    for number in range(3):
        assert sorted(position for position, of in dealt if of == number) == list(range(num_studies))
    seen_in_an_epoch = {pair[0] for pair in dealt[: ranks[0].steps_per_epoch * batch_size * num_ranks]}
    assert seen_in_an_epoch == set(range(num_studies))


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 20))
def test_n_ranks_see_what_one_rank_with_an_n_fold_batch_sees(
    num_studies: int, batch_size: int, num_ranks: int, step: int
) -> None:
    one = Shuffle(num_studies, batch_size * num_ranks, 1, 0, (3,)).batch_at(step)
    many = [
        p
        for rank in range(num_ranks)
        for p in Shuffle(num_studies, batch_size, num_ranks, rank, (3,)).batch_at(step)
    ]
    assert one == many


def test_each_pass_site_and_seed_has_an_order_of_its_own() -> None:
    orders = {
        tuple(position for step in range(5 * number, 5 * number + 5) for position, _ in shuffle.batch_at(step))
        for key in ((1, 1), (1, 2), (2, 1))
        for shuffle in [Shuffle(20, 4, 1, 0, key)]
        for number in range(3)
    }
    assert len(orders) == 9
