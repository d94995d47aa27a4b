"""The line to another host: what `cxr-hvd doctor --peer HOST` measures and advises."""
