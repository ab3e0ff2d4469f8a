"""Frozen subject models in JAX: names resolved, weights read, sites tapped."""

from typing import TYPE_CHECKING

from saejax import lazy as _lazy

_NAMES = {"Model": "saejax.models.model", "load": "saejax.models.model"}
__getattr__, __dir__ = _lazy.attach(__name__, _lazy.modules(__path__), _NAMES)

if TYPE_CHECKING:
  from saejax.models.model import Model as Model
  from saejax.models.model import load as load
