"""Edits of attributes: supervised codes, masks of latents, the task of indirect objects."""

from saejax import lazy as _lazy

__getattr__, __dir__ = _lazy.attach(__name__, _lazy.modules(__path__), {})
