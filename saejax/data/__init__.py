"""Corpora, harvested activations on disk, and batches of them."""
