"""Columns of rows on disk: writer, ledger, reader, sums."""
