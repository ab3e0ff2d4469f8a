"""Latents of cells: recovery of known variables, enrichment of gene sets."""

from saejax import lazy as _lazy

__getattr__, __dir__ = _lazy.attach(__name__, _lazy.modules(__path__), {})
