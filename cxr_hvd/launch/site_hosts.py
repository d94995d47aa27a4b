"""Which host belongs to which institution: `CXR_SITE_HOSTS`, and CXR_SITE, which goes first; and how many ranks.

    CXR_SITE_HOSTS='chexpert=node[1-4],gpu7 mimic=node[5-8]'

is the same on all ranks, and each finds its own site by the name of its host. A scheduler's name for a node
(SLURMD_NODENAME) goes before the system's. Pure, but for asking the host its name.
"""

import re
import socket
from collections import Counter
from collections.abc import Mapping
from itertools import chain

from cxr_hvd.errors import ConfigError, UsageError

VARIABLE = "CXR_SITE_HOSTS"
NODE_NAMES = ("SLURMD_NODENAME",)
HOST = re.compile(r"(?P<before>[A-Za-z0-9._-]*)(?:\[(?P<numbers>[0-9,-]+)\](?P<after>[A-Za-z0-9._-]*))?")
MAX_HOSTS = 100_000


def check_num_ranks(ranks_per_site: Mapping[str, int], num_ranks: int) -> None:
    """Check that there are as many ranks as the sites want.

    Raises:
        ConfigError: there are fewer or more.
    """
    wanted = sum(ranks_per_site.values())
    if num_ranks != wanted:
        listed = ", ".join(f"{name} {count}" for name, count in ranks_per_site.items())
        alone = "" if num_ranks > 1 else f", or train one alone with --site {next(iter(ranks_per_site))}"
        raise ConfigError(
            f"the sites want {wanted} ranks ({listed}), found {num_ranks}: "
            f"start with -np {wanted}{alone}, or change sites.NAME.ranks"
        )


def named_site(environment: Mapping[str, str], host: str | None = None) -> str | None:
    """Return the site that this rank's environment names, or None where it says nothing.

    Args:
        environment: of this process.
        host: this machine's name; asked of the system if left out.

    Raises:
        ConfigError: CXR_SITE_HOSTS cannot be read, or has no site for this host.
    """
    if site := environment.get("CXR_SITE"):
        return site
    text = environment.get(VARIABLE)
    if not text:
        return None
    try:
        hosts_of = read_site_hosts(text)
    except UsageError as error:
        raise ConfigError(f"{VARIABLE}: {error}") from error
    of_node = [environment[name] for name in NODE_NAMES if environment.get(name)]
    full_names = of_node or [host or socket.gethostname()]
    names = [*full_names, *(name.partition(".")[0] for name in full_names)]
    site_here = next((site for site, hosts in hosts_of.items() for name in names if name in hosts), None)
    if site_here is None:
        raise ConfigError(f"{VARIABLE} has no site for host {full_names[0]}: add it, or set CXR_SITE on this rank")
    return site_here


def read_site_hosts(text: str) -> dict[str, list[str]]:
    """Read `SITE=HOST,HOST[1-3] SITE=...`.

    Raises:
        UsageError: it says something else, names a host twice, or no host.
    """
    hosts_of: dict[str, list[str]] = {}
    for part in text.split():
        site, sign, hosts = part.partition("=")
        if not sign or not site or not hosts or site in hosts_of:
            raise UsageError(f"'{part}': expected SITE=HOST,HOST[1-3], each site once")
        hosts_of[site] = [name for word in _split(hosts) for name in _expand(word)]
    [(twice, times)] = Counter(chain.from_iterable(hosts_of.values())).most_common(1) or [("", 0)]
    if times > 1:
        raise UsageError(f"host {twice} is named twice: a host belongs to one site")
    return hosts_of


def _split(hosts: str) -> list[str]:
    """Part a list by commas, but for those within brackets."""
    return re.split(r",(?![^\[]*\])", hosts)


def _expand(word: str) -> list[str]:
    match = HOST.fullmatch(word)
    if not match or not word:
        raise UsageError(f"host '{word}': expected a name such as node7, or node[1-4,9]")
    if word[0] in "-.":
        raise UsageError(f"host '{word}': expected a name such as node7, which begins with a letter or digit")
    if match["numbers"] is None:
        return [word]
    names = []
    for part in match["numbers"].split(","):
        first, _, last = part.partition("-")
        are_numbers = all(re.fullmatch("[0-9]{1,9}", number) for number in (first, last or first))
        if not are_numbers or int(last or first) - int(first) > MAX_HOSTS:
            raise UsageError(f"host '{word[:60]}': expected numbers such as [1-4,9]")
        names += [
            f"{match['before']}{number:0{len(first)}}{match['after']}"
            for number in range(int(first), int(last or first) + 1)
        ]
    if not names:
        raise UsageError(f"host '{word}': the numbers run backwards")
    return names
