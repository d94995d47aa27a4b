"""Which rank belongs to which institution. All arithmetic with ranks is here, and every role is asked here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cxr_hvd.comm.answers import check_number, read_answers
from cxr_hvd.comm.communicator import Communicator, allgather, together
from cxr_hvd.errors import ConfigError, nearest
from cxr_hvd.launch.site_hosts import check_num_ranks, named_site

NOT_SET = -1


@dataclass(frozen=True)
class Topology:
    """The sites of a job as one rank sees them.

    Attributes:
        rank: this process.
        site_names: all sites, in the config's order.
        site_of_rank: for each rank the index of its site.
    """

    rank: int
    site_names: tuple[str, ...]
    site_of_rank: tuple[int, ...]

    @property
    def num_ranks(self) -> int:
        return len(self.site_of_rank)

    @property
    def num_sites(self) -> int:
        return len(self.site_names)

    @property
    def site_index(self) -> int:
        return self.site_of_rank[self.rank]

    @property
    def site(self) -> str:
        return self.site_names[self.site_index]

    def ranks_at(self, site_index: int) -> tuple[int, ...]:
        """Return the ranks of a site, ascending."""
        return tuple(rank for rank, site in enumerate(self.site_of_rank) if site == site_index)

    @property
    def ranks_of_site(self) -> tuple[int, ...]:
        """The ranks of this rank's own site, ascending."""
        return self.ranks_at(self.site_index)

    @property
    def rank_in_site(self) -> int:
        return self.ranks_of_site.index(self.rank)

    @property
    def is_leader(self) -> bool:
        """Whether this rank speaks for the whole job."""
        return self.rank == 0

    @property
    def is_site_leader(self) -> bool:
        """Whether this rank writes its site's files."""
        return self.rank == self.ranks_of_site[0]

    def name_of(self, rank: int) -> str:
        """Return how messages call a rank."""
        return f"site {self.site_names[self.site_of_rank[rank]]}, rank {rank}"


def bind(
    comm: Communicator, ranks_per_site: Mapping[str, int], environment: Mapping[str, str] = os.environ
) -> Topology:
    """Give every rank its site: in the config's order, or as each rank's own environment says.

    Collective: all ranks, with the same `ranks_per_site`. Forms the groups that average private tensors.

    Args:
        comm: the job.
        ranks_per_site: how many ranks the config wants at each site, in its order.
        environment: of this rank: CXR_SITE, or CXR_SITE_HOSTS, which names hosts for each site.

    Raises:
        ConfigError: on all ranks alike, where number or names do not fit.
    """
    names = tuple(ranks_per_site)
    with together(comm, "reading CXR_SITE and CXR_SITE_HOSTS"):
        site = named_site(environment)
        index = NOT_SET if not site else _index_of(site, names)
    answers = allgather(comm, torch.tensor([index]), "site.index").flatten().tolist()
    site_by_rank = read_answers(
        answers, lambda index: int(check_number(index, NOT_SET, len(names) - 1)), "site.index"
    )
    try:
        site_of_rank = assign(ranks_per_site, site_by_rank)
    except ConfigError as error:
        raise error.agreed() from None
    comm.form_site_groups(site_of_rank)
    return Topology(comm.rank, names, tuple(site_of_rank))


def _index_of(site: str, names: tuple[str, ...]) -> int:
    if site not in names:
        raise ConfigError(f"CXR_SITE={site}: expected one of {', '.join(names)}{nearest(site, list(names))}")
    return names.index(site)


def assign(ranks_per_site: Mapping[str, int], site_by_rank: list[int]) -> list[int]:
    """Return each rank's site index from what the ranks said (an index, or `NOT_SET`)."""
    wanted = [site for site, count in enumerate(ranks_per_site.values()) for _ in range(count)]
    check_num_ranks(ranks_per_site, len(site_by_rank))
    if all(index == NOT_SET for index in site_by_rank):
        return wanted
    if NOT_SET in site_by_rank:
        rank = site_by_rank.index(NOT_SET)
        raise ConfigError(f"CXR_SITE is not set on rank {rank}, but on others: set it on every rank, or on none")
    if sorted(site_by_rank) != wanted:
        wanted_ranks = ", ".join(f"{name} {count}" for name, count in ranks_per_site.items())
        raise ConfigError(f"the sites want {wanted_ranks} ranks, but CXR_SITE deals them out as {site_by_rank}")
    return site_by_rank
