"""The report of a comparison: its page, tables and figures."""
