"""Methods with a separate number of active latents for each row."""

from functools import partial
from typing import Unpack

import jax.numpy as jnp

from saejax.errors import InputError
from saejax.recipes import common, limits
from saejax.sae import activations, initial, row_budgets
from saejax.training.parts import losses, probe
from saejax.training.recipe import Recipe, Term, mean


def topafa(
  d: int,
  n: int,
  *,
  coefficient: float = 1 / 32,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """Top-AFA SAE: as many latents per row as bring |z| closest to its norm.

      loss = |x - x_hat|^2 + coefficient d (|z| - |x|)^2 + 1/32 |e - e_hat|^2

  summed over d, averaged over rows: d times the paper's, which averages over d.
  Latents are ranked by the norm of their contribution; their number is set by
  `row_budgets.NormMatch`, with x - b_dec instead of x. It keeps its own encode:
  no thresholds per latent are equivalent. The paper's code has no encoder bias,
  which here is learned, and divides each row by its deviation: with that prep,
  `prep.RowLayerNorm`, all rows have equal norms.

  Args:
    d: width of the activations.
    n: latents.
    coefficient: weight of the norm term; 1/128 to 1/16 in the paper.
    k_aux: dead latents revived per row; by default the power of two nearest
      d/2.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Lee et al., Evaluating and Designing Sparse Autoencoders by Approximating
    Quasi-Orthogonality, 2025.
  """
  activation = activations.Ranked(row_budgets.NormMatch(), score="norm")
  return common.compose(
    "topafa",
    d,
    n,
    options,
    init=partial(initial.init, activation=activation),
    terms={
      "mse": Term(fn=losses.mse),
      "afa": common.penalty(losses.norm_mismatch, coefficient * d),
    },
    aux=common.aux_k(k_aux, aux_weight, score="norm", normalised=False),
    transcodes=False,
    optimizer=partial(common.adam, b2=0.99),
  )


def adaptivek(
  d: int,
  n: int,
  *,
  min_k: int = 20,
  max_k: int = 320,
  scores: tuple[float, float] = (0.0, 10.0),
  steepness: float = 6.0,
  probe_weight: float = 0.05,
  l1_weight: float = 0.005,
  probe_phase: float = 0.1,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """AdaptiveK SAE: k per row depends on the score that a linear probe predicts.

      loss = mean_d (x - x_hat)^2 + l1_weight mean |z|_1 / mean |x| + 1/32 AuxK

  averaged over rows. The squares follow the scale of the rows and the L1 term
  does not: 0.005 suits coordinates with a mean square near 1. On rows with a
  mean square norm of 1 it outweighs the error; 0.005 / d is the same balance
  there. The probe (`row_budgets.Probe`) is a ridge fit to the sample that the
  weights are drawn with; in the last `probe_phase` of the steps it learns
  beside the SAE, from `training.parts.probe.loss` alone since k is rounded. It
  keeps an encode of its own. Where the paper's code fits on 80 % of its rows
  ours fits on the sample.

  Args:
    d: width of the activations.
    n: latents.
    min_k, max_k: bounds of a row's k; with the default steepness k is from
      5 % to 95 % of the way between them.
    scores: least and largest score; predictions are clipped to this range.
    steepness: slope of the sigmoid from score to k, see `row_budgets.Probe`.
    probe_weight: weight of the probe's loss; 0.05 in the paper's text, 0.9 in
      its code.
    l1_weight: weight of |z|_1 relative to the rows' norm.
    probe_phase: fraction at the end of the run in which the probe is trained.
    k_aux: dead latents revived per row; by default the power of two nearest
      d/2.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  Raises:
    InputError: the bounds of k or the scores are out of order or range.

  References:
    AdaptiveK Sparse Autoencoders: Dynamic Sparsity Allocation for Interpretable
    LLM Representations, 2025, arXiv:2508.17320.
  """
  if not 1 <= min_k <= n:
    rule = f"must be in [1, n={n}]"
    raise InputError("min_k", min_k, rule, "lower min_k, or raise n")
  if not min_k <= max_k <= n:
    rule = f"must be in [min_k={min_k}, n={n}]"
    raise InputError("max_k", max_k, rule, "such as min_k, or raise n")
  least, most = scores
  if not least < most:
    raise InputError("scores", scores, "must be in order", "such as (0, 10)")
  limits.check_least("steepness", steepness, 0)
  limits.check_least("probe_weight", probe_weight, 0)
  limits.check_least("l1_weight", l1_weight, 0)
  limits.check_fraction("probe_phase", probe_phase)
  steps = common.run_steps(options, "probe_phase")
  (start,) = common.switches((1 - probe_phase, probe_phase), steps)
  return common.compose(
    "adaptivek",
    d,
    n,
    options,
    init=partial(
      probe.init,
      min_k=min_k,
      max_k=max_k,
      least=least,
      most=most,
      steepness=steepness,
    ),
    terms={
      "mse": Term(fn=losses.mse, weight=1 / d),
      "l1": Term(fn=relative_l1, weight=l1_weight),
      "probe": Term(
        fn=probe.loss,
        weight=lambda step: jnp.where(step >= start, probe_weight, 0.0),
      ),
    },
    rules=(probe.Pull(start),),
    aux=common.aux_k(k_aux, aux_weight),
    optimizer=probe.optimizer(common.adam, start_step=start, clip_norm=1.0),
    needs=("score",),
    static_k=True,
  )


def relative_l1(record):
  """Computes mean |z|_1 / mean |x|, a scalar of the batch.

  Args:
    record: the record of the batch.
  """
  weight = record.batch.weight
  norm = mean(losses.squares(record.forward.x) ** 0.5, weight)
  return mean(losses.l1(record), weight) / norm
