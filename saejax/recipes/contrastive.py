"""Methods whose batches are pairs of rows."""

from functools import partial
from typing import Unpack

import optax

from saejax.errors import InputError
from saejax.recipes import common, limits
from saejax.sae import activations, initial
from saejax.training.parts import contrast, losses
from saejax.training.recipe import Recipe, Term


def csae(
  d: int,
  n: int,
  *,
  sparsity: float = 1e-3,
  coefficient: float = 1e-3,
  sparsity_warmup: float = 0.1,
  **options: Unpack[common.Options],
) -> Recipe:
  """Contrastive SAE: in a pair, half of the latents agree, half are disjoint.

      loss = |x - x_hat|^2 + sparsity sum_i f_i |W_dec_i|
             + coefficient (|c_1 - c_2|_1 + |d_1 d_2|_1)

  Rows are pairs [R, 2, d], latents f = [c, d] halves of n. The first two terms
  are averaged over the 2 R rows, the last over the R pairs; all sum over d or
  latents. Decoder rows have unit norm, there is no pre-bias. In the paper the
  pair are the futures of an optimal and a suboptimal line of play, each stacked
  on the channels of the root. With coefficient 0 this is a ReLU SAE on single
  rows, and takes those too.

  The swept coefficient of a member multiplies the sparsity.

  Args:
    d: width of the activations.
    n: latents, even.
    sparsity: weight of the L1 term.
    coefficient: weight of the contrastive term.
    sparsity_warmup: fraction of the run in which the L1 term rises.
    **options: see `common.Options`; gradients are clipped at norm 1.

  Raises:
    InputError: n is odd.

  References:
    Contrastive Sparse Autoencoders for Interpreting Planning of Chess-Playing
    Agents, 2024, arXiv:2406.04028.
  """
  if n % 2:
    raise InputError("n", n, "must be even, for two halves", f"use {n + 1}")
  limits.check_least("coefficient", coefficient, 0)
  pairs = {
    "common": Term(fn=contrast.common, weight=coefficient),
    "different": Term(fn=contrast.different, weight=coefficient),
  }
  l1 = common.penalty(
    losses.l1_decoder_norm,
    sparsity,
    sparsity_warmup,
    options,
    names=("sparsity", "sparsity_warmup"),
  )
  return common.compose(
    "csae",
    d,
    n,
    {"clip_norm": 1.0, **options},
    init=partial(
      initial.init, activation=activations.ReLU(), pre_bias=False, centre=False
    ),
    terms={
      "mse": Term(fn=losses.mse),
      "l1": l1,
      **(pairs if coefficient else {}),
    },
    swept="sparsity",
    optimizer=optax.adam,
  )
