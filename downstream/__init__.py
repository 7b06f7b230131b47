"""Evaluations of a finished run (§5, App. E, G, J). Each one is a module with `evaluate` and `report`; the other modules
are shared."""
