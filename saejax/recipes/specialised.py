"""Methods that finetune an SAE on a subset of the data."""

from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from saejax.errors import InputError
from saejax.recipes import common, limits
from saejax.sae import files
from saejax.sae.context import Batch
from saejax.sae.sae import SAE
from saejax.training.parts import losses
from saejax.training.parts.tilted import Tilted
from saejax.training.recipe import Recipe, Term


def ssae(
  d: int,
  n: int,
  *,
  init_from: str | SAE,
  t: float = 500.0,
  relative: bool = False,
  coefficient: float = 0.0,
  **options: Unpack[common.Options],
) -> Recipe:
  """Specialised SAE: a general SAE finetuned on a domain with a tilted loss.

      l_b = mean_d (x_b - x_hat_b)^2 + coefficient sum_i z_bi |w_i|
      loss = (1/t) log mean_b exp(t l_b)

  on rows of retrieved texts (`data.streams`). A large t lets single rows decide
  a step: leave out the first token of a context, whose norm is an outlier's.
  t is per unit of l_b, and so depends on the scale of x; the paper's 500 is for
  the units of its data, which it does not give. `relative` takes t per mean
  l_b instead. Decoder rows are free, their norms weigh the penalty.

  Args:
    d: width of the activations, that of the general SAE.
    n: latents, as many as the general SAE has.
    init_from: folder of the general SAE, or the SAE; its prep, activation and
      dtype are kept.
    t: tilt; 0 is the mean.
    relative: see `tilted.Tilted`.
    coefficient: weight of the L1 term; that of the general SAE, 0 for TopK.
    **options: see `common.Options`; the prep and dtype are those of the general
      SAE.

  Raises:
    InputError: the general SAE has another d or n.

  References:
    Muhamed et al., Decoding Dark Matter: Specialized Sparse Autoencoders for
    Interpreting Rare Concepts in Foundation Models, 2024, arXiv:2411.00743.
  """
  common.check_no_prep("ssae", options)
  general = files.loaded(init_from, "init_from")
  if (general.d, general.n) != (d, n):
    raise InputError(
      "init_from",
      f"d={general.d}, n={general.n}",
      f"must have the requested sizes, d={d}, n={n}",
      f"use d={general.d}, n={general.n}",
    )
  limits.check_finite("t", t)
  limits.check_least("t", t, 0)
  penalty = common.penalty(losses.l1_decoder_norm, coefficient)
  return common.compose(
    "ssae",
    d,
    n,
    {**options, "prep": general.prep, "dtype": general.dtype},
    init=partial(_same_weights, general=general),
    terms={
      "mse": Term(fn=losses.mse, weight=1 / d),
      **({"l1": penalty} if coefficient else {}),
    },
    reduce=Tilted(t, relative),
    unit_norm=False,
    transcodes=False,
  )


def _same_weights(
  key: PRNGKeyArray,
  *,
  general: SAE,
  sample: Batch | None = None,
  **given,
) -> SAE:
  """Copies the SAE, since the training state's buffers are donated."""
  del key, sample, given
  return jax.tree.map(jnp.array, general)
