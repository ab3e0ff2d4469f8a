"""Rows that come from text: corpora, windows, the tokens around a row."""
