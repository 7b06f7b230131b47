"""The paper's numbers, tables and figures, from finished runs; the cost of each method; the tour."""
