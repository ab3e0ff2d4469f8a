"""Methods that hold firing rates by moving biases, without a sparsity loss."""

from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from saejax.errors import InputError
from saejax.recipes import common
from saejax.sae import amplitude, bias_gate, initial
from saejax.sae.context import as_batch
from saejax.sae.prep import Affine
from saejax.sae.sae import SAE
from saejax.training import bias_adaptation, losses
from saejax.training.recipe import Recipe, Term


def gba(
  d: int,
  n: int,
  *,
  groups: int = 10,
  htf: float = 0.1,
  ltf: float = 1e-3,
  every: int = 50,
  up: float = 0.01,
  down: float = 0.01,
  form: str = "jump",
  **options: Unpack[common.Options],
) -> Recipe:
  """Group Bias Adaptation: biases follow the firing rates of their latents.

      y_i = w_i (x - b_pre) + b_i,    x_hat = sum_i a_i w_i phi(y_i) + b_pre
      loss = 1/2 |x - x_hat|^2

  summed over d, averaged over rows, with unit rows w_i in both layers and
  amplitudes a_i. Nothing penalises density: `training.bias_adaptation` lowers
  the b_i of latents that fire more often than their group should and raises
  those that never fire. Group targets fall geometrically from htf to ltf.

  The biases stay in [-1, 0], so rows must have a norm of about 1: without a
  prep of its own the SAE divides x by the root mean square norm of its sample.
  Afterwards the gate is a threshold, exactly.

  The paper gives the highest frequency as 0.5 and as 0.1. Ours is 0.1: where no
  feature is as frequent as 0.5, latents of that group carry the reconstruction
  and recovery fails.

  Args:
    d: width of the activations.
    n: latents.
    groups: of n / groups latents each.
    htf, ltf: target frequencies of the first and the last group.
    every: steps between adaptations; their rows must be several times 1 / ltf.
    up, down: rates of adaptation, gamma in the paper.
    form: "jump" (values without the bias) or "relu" (with it).
    **options: see `common.Options`.

  References:
    Chen et al., Taming Polysemanticity in LLMs: Provable Feature Recovery via
    Sparse Autoencoders, 2025, arXiv:2506.14002.
  """
  _check(n, groups, htf, ltf, every, form)
  targets = bias_adaptation.targets(groups, htf, ltf)
  return common.compose(
    "gba",
    d,
    n,
    options,
    init=partial(_init, activation=bias_gate.BiasGate(jnp.zeros((n,)), form)),
    terms={"mse": Term(fn=losses.mse, weight=0.5)},
    rules=(bias_adaptation.BiasAdaptation(targets, every, up, down),),
    finish=bias_adaptation.to_threshold,
  )
