"""Gives a language model a computer, measures it there and trains it there."""

__version__ = "0.2.0"
