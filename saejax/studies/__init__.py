"""What the experiments compute and say beyond a single grid of SAEs."""

from saejax import lazy as _lazy

__getattr__, __dir__ = _lazy.attach(__name__, _lazy.modules(__path__), {})
