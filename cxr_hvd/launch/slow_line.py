"""The launch setting for a slow line between hosts: Open MPI sends, and does not write into the other's memory.

Over TCP, Open MPI's default protocol for large messages leaves one direction of the line idle while the other
is in use. With `btl_tcp_flags` 1 (send only) both are used at once. That takes two thirds of the time over a slow
line, and 1.2 to 1.5 times as long on a fast network (decision 0037). Launchers hand the variable to all ranks;
Gloo does not read it. Pure.
"""

from collections.abc import Mapping, Sequence

SEND_ONLY = ("OMPI_MCA_btl_tcp_flags", "1")
"""The variable of the environment, and its value."""

WHY_SEND_ONLY = "sends both ways at once over a slow line; costs time on a fast network (line=fast)"

# The options by which mpirun and horovodrun are told hosts, or a file of hosts.
HOST_OPTIONS = ("-host", "--host", "-H", "--hosts")
HOST_FILE_OPTIONS = ("-hostfile", "--hostfile", "-machinefile", "--machinefile", "--host-file")
HERE = ("localhost", "127.0.0.1")
# Set inside a job: its nodes share a fast network.
SCHEDULERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_URI")


def crosses_hosts(words: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether a launcher's words name other hosts, and no scheduler chose them.

    Args:
        words: the launcher and its options.
        environment: of this process.
    """
    if any(environment.get(name) for name in SCHEDULERS):
        return False
    for number, word in enumerate(words):
        option, _, value = word.partition("=")
        value = value or (words[number + 1] if number + 1 < len(words) else "")
        if option in HOST_FILE_OPTIONS:
            return True
        hosts = [host.partition(":")[0] for host in value.split(",") if host]
        if option in HOST_OPTIONS and not set(hosts) <= set(HERE):
            return True
    return False
