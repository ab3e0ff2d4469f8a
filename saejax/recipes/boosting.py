"""Boosting: any recipe as the next stage behind an SAE, see `sae.ensembles`."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from saejax.sae import ensembles, files
from saejax.sae.context import Batch
from saejax.sae.sae import SAE
from saejax.training.recipe import Recipe


def stage(recipe: Recipe, earlier: str | SAE, d: int) -> Recipe:
  """Converts a recipe to one that is trained on the residual of an SAE.

  Args:
    recipe: a recipe whose init takes a prep.
    earlier: the SAE, or the folder that it is saved in.
    d: width of the rows.

  Raises:
    InputError: the SAE cannot be read, or does not reconstruct rows of width d.
  """
  stages = ensembles.stages_of(files.loaded(earlier, "residual_of"))
  ensembles.check_stages(stages, d, "residual_of")
  draw = partial(_behind, draw=recipe.init, stages=stages, d=d)
  return dataclasses.replace(recipe, init=draw)


def _behind(
  key: PRNGKeyArray,
  *,
  draw: Callable[..., SAE],
  stages: tuple[SAE, ...],
  d: int,
  sample: Batch | None = None,
  **given: Any,
) -> SAE:
  """Draws an SAE behind earlier stages, its prep fitted to their residual."""
  rows = jnp.zeros((1, d)) if sample is None else sample
  prep = ensembles.residual(stages, rows)
  return draw(key, sample=sample, prep=prep, **given)
