"""The laboratory of tests and benches: launchers with a time limit, two sites, two hosts, a slow link, Slurm."""
