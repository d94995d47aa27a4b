"""Set-ups times seeds: train, evaluate, score across sites and compare."""
