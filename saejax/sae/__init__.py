"""Sparse autoencoders as frozen pytrees."""
