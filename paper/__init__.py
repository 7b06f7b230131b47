"""What is held against the paper: its printed numbers, tables and figures of finished runs, the cost of a method."""
