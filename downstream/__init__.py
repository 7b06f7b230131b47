"""What is asked of a finished run (§5, App. E, G, J): each task is a module with `measure` and `show`."""
