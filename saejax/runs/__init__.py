"""Run folders, the grid of SAEs trained in one, and what they need."""

from saejax import lazy as _lazy

__getattr__, __dir__ = _lazy.attach(__name__, _lazy.modules(__path__), {})
