"""Methods for rows with a condition: a timestep or a layer."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Unpack

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from saejax.errors import InputError
from saejax.recipes import common, limits, row_sparse
from saejax.sae import activations, condition_preps, initial
from saejax.sae.context import Batch, as_batch
from saejax.sae.prep import Prep
from saejax.sae.sae import SAE
from saejax.training.parts.condition_variance import ConditionVariance
from saejax.training.recipe import Recipe, Term


def tide(
  d: int,
  n: int,
  k: int,
  *,
  timesteps: int | None = None,
  modulation: Literal["learned", "table", "standardise"] = "learned",
  window_rows: float = 10_000.0,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """TIDE: one TopK SAE for all timesteps, after a time-dependent affine map.

      u = x exp(gamma(t)) + beta(t),   u_hat = TopK SAE of u
      x_hat = (u_hat - beta(t)) exp(-gamma(t))
      loss = mean |x - x_hat|^2 / var(x | t) + 1/8 AuxK

  gamma and beta start at 0, as the plain SAE. The error is taken in x, since in
  u it would fall with gamma. AuxK compares shares of the error and stays in u.

  The paper gives no equations: the modulation by exp, its network, and the
  running statistics are a definition of ours.

  Args:
    d: width of the activations.
    n: latents; the paper takes 16 d.
    k: active latents per row; about 5 % of d.
    timesteps: number of whole timesteps; None for times in [0, 1], whose
      statistics are kept in 50 bins.
    modulation: "learned" by a sinusoidal embedding and an MLP, "table" of
      learned gamma and beta, or "standardise": fixed, each timestep's
      coordinates at mean 0 and deviation 1 over the sample that weights are
      drawn with.
    window_rows: time constant of a timestep's running statistics, in rows.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    TIDE: Temporal-Aware Sparse Autoencoders for Interpretable Diffusion
    Transformers, 2025, arXiv:2503.07050.
  """
  limits.check_k(k, n)
  if timesteps is not None and not timesteps >= 1:
    raise InputError("timesteps", timesteps, "must be at least 1", "use 1000")
  if not window_rows > 0:
    raise InputError("window_rows", window_rows, "must be above 0", "use 1e5")
  count = timesteps or condition_preps.CONTINUOUS_BINS
  conditions = ConditionVariance(count, timesteps is None, window_rows)
  limits.check_choice("modulation", modulation, MODULATIONS)
  return common.compose(
    "tide",
    d,
    n,
    options,
    init=partial(_modulated, k=k, kind=modulation, of=conditions),
    terms={"nmse": Term(fn=conditions.loss)},
    rules=(conditions,),
    aux=common.aux_k(k_aux, aux_weight, k),
    transcodes=False,
    needs=("cond",),
  )


def _modulated(
  key: PRNGKeyArray,
  *,
  d: int,
  k: int,
  kind: str,
  of: ConditionVariance,
  prep: Prep,
  sample: Batch | None = None,
  **given,
) -> SAE:
  """Draws a TopK SAE after a modulation, which does not affect its weights."""
  of_kind = MODULATIONS[kind]
  modulation = of_kind(jax.random.fold_in(key, 1), d, of, prep, sample)
  return initial.init(
    key,
    d=d,
    activation=activations.TopK(k),
    prep=condition_preps.Modulated(
      modulation, prep, frozen=kind == "standardise"
    ),
    sample=sample,
    **given,
  )


def _learned(key, d, of, prep, sample) -> condition_preps.Modulation:
  del prep, sample
  return condition_preps.sinusoidal(key, d, continuous=of.continuous)


def _table(key, d, of, prep, sample) -> condition_preps.Modulation:
  del key, prep, sample
  return condition_preps.table(d, of.count, continuous=of.continuous)


def _standardised(key, d, of, prep, sample) -> condition_preps.Modulation:
  """Standardises each condition's coordinates over the sample."""
  if sample is None:  # an abstract init: only the shapes matter
    return _table(key, d, of, prep, sample)
  sample = as_batch(sample)
  cond = condition_preps.required(sample.cond)
  x, _ = prep.apply(sample.x, cond)
  return condition_preps.standardised(
    x, cond, of.count, continuous=of.continuous
  )


MODULATIONS: dict[str, Callable[..., condition_preps.Modulation]] = {
  "learned": _learned,
  "table": _table,
  "standardise": _standardised,
}


def layergroup(
  d: int,
  n: int,
  k: int = 128,
  *,
  layers: int | None = None,
  scale: tuple[float, ...] | None = None,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """A TopK SAE for a group of layers, each divided by its own mean norm.

      loss = |x' - x_hat'|^2 / var(x') + 1/8 AuxK,   x' = x / scale_layer

  A batch holds rows of all layers of the group, `Batch.cond` the number of the
  layer within it, as `data.streams` draws them. Gradients are clipped at norm
  1; b_dec starts at the geometric median, in the paper's code at 0. That code
  also multiplies AuxK by min(dead / k_aux, 1), and has the sign of its residual
  the wrong way round; neither is followed.

  Args:
    d: width of the activations.
    n: latents; the paper takes 16 d.
    k: active latents per row.
    layers: number of layers in the group; needed if no scale is given.
    scale: mean norm of the rows of each layer; by default that of the sample
      that weights are drawn with.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Ghilardi et al., Efficient Training of Sparse Autoencoders for Large
    Language Models via Layer Groups, 2024, arXiv:2410.21508.
  """
  common.check_no_prep("layergroup", options)
  recipe = row_sparse.topk(
    d, n, k, k_aux=k_aux, aux_weight=aux_weight, **options
  )
  count = _layers(layers, scale)
  start = condition_preps.scaled(np.ones(count) if scale is None else scale, d)
  fit = None
  if scale is None:
    fit = partial(condition_preps.per_condition, count=count)
  return dataclasses.replace(
    recipe,
    name="layergroup",
    init=partial(_scaled, draw=recipe.init, prep=start, fit=fit),
    needs=(*recipe.needs, "cond"),
  )


def _layers(layers: int | None, scale: Sequence[float] | None) -> int:
  """Number of layers of a group, from either argument."""
  if (layers is None) == (scale is None):
    raise InputError(
      "layers", layers, "layers or scale must be given", "pass layers"
    )
  if scale is not None and not (len(scale) and min(scale) > 0):
    raise InputError(
      "scale", scale, "must be positive numbers", "pass the mean norms"
    )
  if layers is not None:
    limits.check_least("layers", layers, 1)
  return len(scale) if scale is not None else layers or 1


def _scaled(
  key: PRNGKeyArray,
  *,
  draw: Callable[..., SAE],
  prep: Prep,
  fit: Callable[..., Prep] | None,
  sample: Batch | None = None,
) -> SAE:
  """Draws the SAE after scales per layer: given, or fitted to the sample."""
  if fit and sample is not None:
    sample = as_batch(sample)
    prep = fit(sample.x, condition_preps.required(sample.cond))
  return draw(key, sample=sample, prep=prep)
