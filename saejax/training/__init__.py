"""Training of SAEs: the recipe, the step, members, the loop, checkpoints."""

from saejax import lazy as _lazy

__getattr__, __dir__ = _lazy.attach(__name__, _lazy.modules(__path__), {})
