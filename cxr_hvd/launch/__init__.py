"""How ranks are started, started again and ended. Knows processes and signals, nothing of tensors or networks."""
