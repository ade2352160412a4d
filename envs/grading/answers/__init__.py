"""Answers that are letters, numbers, formulas, texts or lists: how each is read and compared."""
