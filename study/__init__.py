"""The controlled study on the built-in benchmark: its runs, variants, statistics and report (ours)."""
