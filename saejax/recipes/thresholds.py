"""Methods whose latents are on above a threshold, learned or converted to."""

from collections.abc import Callable
from functools import partial
from typing import Unpack

import optax
from jaxtyping import Array

from saejax.errors import InputError
from saejax.recipes import common
from saejax.sae import activations, budgets, gated as gated_parts
from saejax.sae import initial, jumprelu as jumprelu_parts
from saejax.sae.prep import Identity, Prep
from saejax.training import constraints, finish, losses, optimizers, schedules
from saejax.training import sparsity
from saejax.training.recipe import Recipe, Term

# DeepMind's settings, without momentum.
adam = partial(optax.adam, b1=0.0, b2=0.999, eps=1e-8)
