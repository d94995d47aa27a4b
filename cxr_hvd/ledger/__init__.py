"""What leaves a rank: the table of what may, the hash-chained ledger of what did, and its audit."""
