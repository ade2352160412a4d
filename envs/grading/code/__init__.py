"""Answers that are code: programs with unit tests, and repositories with tests and their logs."""
