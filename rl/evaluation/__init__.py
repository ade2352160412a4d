"""Scoring a model on benchmarks: trials, their results in a folder, the models they are asked of."""
