"""Self-contained pages: of a run, an evaluation, several runs side by side, a sweep, and the tables of `analyze`."""
