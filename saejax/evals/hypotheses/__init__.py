"""Findings about labelled texts: selection, description, tests on others."""

from saejax import lazy as _lazy

__getattr__, __dir__ = _lazy.attach(__name__, _lazy.modules(__path__), {})
