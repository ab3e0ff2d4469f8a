"""Rules that describe when a latent of attention outputs is active.

Specificity and sensitivity of a rule, beside those where the heads are shuffled.

References:
  Kissane et al., Interpreting Attention Layer Outputs with Sparse Autoencoders,
  2024, arXiv:2406.17759.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from saejax.errors import InputError
from saejax.evals import null
from saejax.evals.heads import head_attribution
from saejax.sae.sae import SAE


@dataclasses.dataclass(frozen=True)
class RuleScores:
  """How well a rule describes when a latent is active.

  Attributes:
    specificity: share of the tokens with z above the threshold at which the rule
      holds (the precision of the rule); 0 for a silent latent.
    sensitivity: share of the tokens at which the rule holds with z above the
      threshold (its recall).
    active: number of tokens above the threshold.
    holds: number of tokens at which the rule holds.
  """

  specificity: float
  sensitivity: float
  active: int
  holds: int


def rule_scores(
  z: Float[np.ndarray, "N"],
  rule: Bool[np.ndarray, "N"],
  *,
  threshold: float = 0.0,
) -> RuleScores:
  """Compares a rule with the activations of a latent.

  Args:
    z: the latent at tokens.
    rule: whether the rule holds at each, such as "an induction token before x".
    threshold: the latent is active above it.

  Raises:
    InputError: the rule holds nowhere.
  """
  rule = np.asarray(rule, bool)
  if not rule.any():
    raise InputError("rule", 0, "must hold at a token", "give more tokens")
  on = np.asarray(z) > threshold
  both, active, holds = int((on & rule).sum()), int(on.sum()), int(rule.sum())
  return RuleScores(both / max(active, 1), both / holds, active, holds)


def head_shuffle(
  sae: SAE,
  z: Float[np.ndarray, "N H h"],
  latent: int,
  rule: Bool[np.ndarray, "N"],
  *,
  count: int = 100,
  threshold: float = 0.0,
  seed: int = 0,
) -> dict[str, null.Null]:
  """Compares the scores of a rule with those where heads are shuffled.

  Each draw gives the SAE the outputs of the heads in another order, the same for
  all tokens, with none in its own place: what a latent reads is then no more in the
  head that it reads, while the norm of its input stays.

  Args:
    sae: SAE of the joined outputs of all heads.
    z: outputs of the heads at tokens.
    latent: the latent.
    rule: whether the rule holds at each token.
    count: number of draws.
    threshold: the latent is active above it.
    seed: seed of the orders.

  Returns:
    "specificity" and "sensitivity", observed and of the draws.

  Raises:
    InputError: there is one head only, or the rule holds nowhere.
  """
  heads = z.shape[1]
  if heads < 2:
    rule_ = "must have several heads to shuffle"
    raise InputError("z", z.shape, rule_, "use evals.null on tokens")
  head_attribution.check_heads(sae, heads)
  rng = np.random.default_rng(seed)
  orders = [np.arange(heads)]
  while len(orders) <= count:
    order = rng.permutation(heads)
    if (order != orders[0]).all():
      orders.append(order)
  encode = jax.jit(lambda sae, x: sae.encode(x)[:, latent])
  found = []
  for order in orders:
    x = jnp.asarray(z[:, order].reshape(len(z), -1))
    values = np.asarray(encode(sae, x))
    found.append(rule_scores(values, rule, threshold=threshold))
  draws = {
    name: np.array([getattr(one, name) for one in found])
    for name in ("specificity", "sensitivity")
  }
  return {k: null.Null(float(d[0]), d[1:]) for k, d in draws.items()}
