"""Latents of attention outputs: heads, sources, paths, induction."""

from saejax import lazy as _lazy

__getattr__, __dir__ = _lazy.attach(__name__, _lazy.modules(__path__), {})
