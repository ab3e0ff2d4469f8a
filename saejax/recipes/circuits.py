"""Tiny SAEs for circuit discovery, fitted in seconds to a few prompts."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from saejax.recipes import common
from saejax.sae import activations, decoders, encoders
from saejax.sae.context import Batch
from saejax.sae.prep import Prep
from saejax.sae.sae import SAE
from saejax.training.parts import losses
from saejax.training.recipe import Recipe, Term


def circuit_codes(
  d: int,
  n: int,
  *,
  coefficient: float = 0.02,
  **options: Unpack[common.Options],
) -> Recipe:
  """The tiny SAE whose largest latent is an integer code of a head's output.

      loss = mean_{b, d} (x - x_hat)^2 + coefficient mean_b sum_i z_i

  Rows are outputs of attention heads on a few prompts, all in every batch (500
  steps of Adam at 1e-3). Encoder rows have unit norm; so has, as in the paper's
  code, each column of the decoder, not each row: gradients see the division,
  and what is stored is divided after each update. `evals.circuits` reads the
  codes.

  Args:
    d: width of the outputs.
    n: latents, the number of codes; 200 in the paper.
    coefficient: weight of the L1 term; the paper takes 0.05 for docstrings. It
      suits coordinates with a mean square near 1: on rows of norm 1 the L1 term
      outweighs the error, and heads share codes.
    **options: see `common.Options`.

  References:
    O'Neill and Bui, Sparse Autoencoders Enable Scalable and Reliable Circuit
    Identification in Language Models, 2024, arXiv:2405.12522.
  """
  l1 = common.penalty(losses.l1, coefficient)
  return common.compose(
    "circuit_codes",
    d,
    n,
    options,
    init=_unit_columns,
    terms={"mse": Term(fn=losses.mse, weight=1 / d), "l1": l1},
    swept="coefficient",
    unit_norm=False,
    transcodes=False,
    optimizer=optax.adam,
    project=_unit,
  )


def _unit(sae: SAE) -> SAE:
  """Stores the normalised weights: their norms depend only on the optimizer."""
  encoder: Any = sae.encoder
  decoder: Any = sae.decoder
  return sae.replace(
    encoder=encoder.replace(W=sae.W_enc), decoder=decoder.replace(W=sae.W_dec)
  )


def _unit_columns(
  key: PRNGKeyArray,
  *,
  n: int,
  d: int,
  prep: Prep,
  dtype: str,
  sample: Batch | None = None,
) -> SAE:
  """Normal weights, encoder biases uniform within 1 / sqrt(d), b_dec 0."""
  del sample
  encode, decode, bias = jax.random.split(key, 3)
  b = jax.random.uniform(bias, (n,), minval=-1, maxval=1) / jnp.sqrt(d)
  return SAE(
    prep=prep,
    encoder=encoders.UnitRows(W=jax.random.normal(encode, (n, d)), b=b),
    activation=activations.ReLU(),
    decoder=decoders.ColumnNormalised(
      W=jax.random.normal(decode, (n, d)), b=jnp.zeros((d,))
    ),
    dtype=dtype,
  )
