"""Frozen subject models in JAX: names resolved, weights read, sites tapped."""

from saejax.models.model import Model as Model
from saejax.models.model import load as load
