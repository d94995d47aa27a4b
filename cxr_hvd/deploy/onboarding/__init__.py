"""A hospital that joins later: it trains private blocks of its own, and is told what that is worth there."""
