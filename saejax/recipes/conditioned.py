"""Methods whose rows come with a condition: a timestep, a layer."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Unpack

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from saejax.errors import InputError
from saejax.recipes import common, row_sparse
from saejax.sae import activations, condition_preps, initial
from saejax.sae.context import Batch
from saejax.sae.prep import Identity, Prep
from saejax.sae.sae import SAE
from saejax.training.parts.condition_variance import ConditionVariance
from saejax.training.recipe import Recipe, Term


def tide(
  d: int,
  n: int,
  k: int,
  *,
  timesteps: int | None = None,
  modulation: str = "learned",
  rows: Batch | None = None,
  window_rows: float = 10_000.0,
  **options: Unpack[common.Options],
) -> Recipe:
  """TIDE: one TopK SAE for all timesteps, behind a trained affine of the time.

      u = x exp(gamma(t)) + beta(t),   u_hat = TopK SAE of u
      x_hat = (u_hat - beta(t)) exp(-gamma(t))
      loss = mean |x - x_hat|^2 / var(x | t) + 1/32 AuxK

  gamma and beta start at 0, as the plain SAE. The error is taken in x, since in
  u it would fall with gamma. AuxK compares shares of the error and stays in u.

  The paper gives no equations: the modulation by exp, its network, and the
  running statistics are a definition of ours.

  Args:
    d: width of the activations.
    n: latents; the paper takes 16 d.
    k: latents kept in a row; about 5 % of d.
    timesteps: number of whole timesteps; None for times in [0, 1], whose
      statistics are kept in 50 bins.
    modulation: "learned" by a sinusoidal embedding and an MLP, "table" of
      learned gamma and beta, or "standardise": fixed, each timestep's
      coordinates at mean 0 and deviation 1.
    rows: with their conditions; for "standardise", and only for it.
    window_rows: of the running statistics of a timestep.
    **options: see `common.Options`.

  References:
    TIDE: Temporal-Aware Sparse Autoencoders for Interpretable Diffusion
    Transformers, 2025, arXiv:2503.07050.
  """
  common.check_k(k, n)
  if timesteps is not None and timesteps < 1:
    raise InputError("timesteps", timesteps, "must be at least 1", "raise it")
  if not window_rows > 0:
    raise InputError("window_rows", window_rows, "must be above 0", "raise it")
  count = timesteps or condition_preps.CONTINUOUS_BINS
  conditions = ConditionVariance(count, timesteps is None, window_rows)
  draw, fixed = _modulation(modulation, rows, conditions, options)
  return common.compose(
    "tide",
    d,
    n,
    options,
    init=partial(_modulated, k=k, draw=draw, fixed=fixed),
    terms={"nmse": Term(fn=conditions.loss)},
    rules=(conditions,),
    aux={},
    needs=("cond",),
  )


def _modulated(
  key: PRNGKeyArray,
  *,
  d: int,
  k: int,
  draw: Callable[..., condition_preps.Modulation],
  fixed: condition_preps.Table | None,
  prep: Prep,
  **given,
) -> SAE:
  """A TopK SAE behind a modulation; the weights do not depend on which."""
  modulation = draw(jax.random.fold_in(key, 1), d) if fixed is None else fixed
  return initial.init(
    key,
    d=d,
    activation=activations.TopK(k),
    prep=condition_preps.Modulated(modulation, prep, frozen=fixed is not None),
    **given,
  )


def layergroup(
  d: int,
  n: int,
  k: int = 128,
  *,
  scale: Float[Array, "layers"],
  **options: Unpack[common.Options],
) -> Recipe:
  """One TopK SAE for a group of layers, each divided by its own mean norm.

      loss = |x' - x_hat'|^2 / var(x') + 1/32 AuxK,   x' = x / scale_layer

  A batch holds rows of all layers of the group, `Batch.cond` the number of the
  layer within it, as `data.streams` draws them. Gradients are clipped at norm
  1; b_dec starts at the geometric median, in the paper's code at 0. That code
  also multiplies AuxK by min(dead / k_aux, 1), and has the sign of its residual
  the wrong way round; neither is followed.

  Args:
    d: width of the activations.
    n: latents; the paper takes 16 d.
    k: latents kept in a row.
    scale: mean norm of each layer's rows, see `conditioned.per_condition`.
    **options: see `common.Options`.

  References:
    Ghilardi et al., Efficient Training of Sparse Autoencoders for Large
    Language Models via Layer Groups, 2024, arXiv:2410.21508.
  """
  common.check_no_prep("layergroup", options)
  given: common.Options = {"clip_norm": 1.0, **options}
  given["prep"] = condition_preps.scaled(scale, d)
  recipe = row_sparse.topk(d, n, k, **given)
  return dataclasses.replace(recipe, name="layergroup", needs=("cond",))


def _modulation(
  kind: str,
  rows: Batch | None,
  of: ConditionVariance,
  options: common.Options,
) -> tuple[
  Callable[..., condition_preps.Modulation], condition_preps.Table | None
]:
  """How a modulation of that kind is drawn, or the one that is fixed.

  Raises:
    InputError: an unknown kind, or rows with the wrong one.
  """
  draws = {
    "learned": partial(condition_preps.sinusoidal, continuous=of.continuous),
    "table": lambda key, d: condition_preps.table(
      d, of.count, continuous=of.continuous
    ),
  }
  if kind not in (*draws, "standardise"):
    raise InputError(
      "modulation",
      kind,
      "must be one of learned, table, standardise",
      "use learned",
    )
  if kind in draws and rows is None:
    return draws[kind], None
  if kind in draws or rows is None or rows.cond is None:
    raise InputError(
      "rows",
      None if rows is None else rows.x.shape,
      "modulation=standardise takes rows with their conditions, others none",
      "give Batch(x=..., cond=...) with standardise alone",
    )
  inside, _ = options.get("prep", Identity()).apply(rows.x, rows.cond)
  return draws["table"], condition_preps.standardised(
    inside, rows.cond, of.count, continuous=of.continuous
  )
