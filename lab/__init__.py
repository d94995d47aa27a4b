"""The laboratory of tests and benches: real jobs, networks, schedulers and images on one machine. Imports no test.

`launch` starts commands and ranks with a time limit; `commands` runs commands of the system. `two_sites` joins two
network namespaces, by a `slow_link` where wanted; `two_hosts` adds a user and an sshd to each (`host`), `tunnel`
WireGuard, `packets` a capture. `slurm` is a private Slurm, `image` builds and starts the container image,
`study_files` writes small study files, `packages` installs Debian packages, `janitor` cleans up after a test run.
"""
