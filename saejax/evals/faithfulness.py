"""Faithfulness of an SAE and of its data to the model.

  SFR(tau) = share of latents of one SAE matched one to one with those of
             another by a decoder cosine above tau: of two seeds, stability
  FFR(tau) = share of latents that are not 0 on more than a share tau of random
             tokens, drawn uniformly from the vocabulary: on nonsense

The paper does not give tau of FFR: 0.1 by default (our definition); prefer the
curve over tau in reports. FFR grows with L0: compare at equal k.

The first tokens of a data set against the model's own distribution after BOS
say whether the data are what the model would write.

References:
  Cho et al., FaithfulSAE, 2025, arXiv:2506.17673.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from saejax.evals import held_out, matching, recovery
from saejax.sae.sae import SAE

FFR_TAU = 0.1
BATCH_ROWS = 4096


def sfr(sae_a: SAE, sae_b: SAE, *, tau: float = matching.TAU) -> float:
  """SFR(tau), with the best one-to-one assignment."""
  return matching.match(sae_a, sae_b, by="decoder", tau=tau).fraction


def top1_ratio(sae_a: SAE, sae_b: SAE, *, tau: float = matching.TAU) -> float:
  """Share of the first SAE's latents with any decoder cosine above tau.

  Without an assignment, so that one latent may serve several; at least SFR.
  """
  a, b = np.asarray(sae_a.W_dec), np.asarray(sae_b.W_dec)
  return recovery.recovery_rate(a, b, tau)


def random_ids(
  rows: int,
  tokens: int,
  vocabulary: int,
  *,
  seed: int = 0,
  leave_out: Sequence[int] = (),
) -> Int[np.ndarray, "rows tokens"]:
  """Sequences of tokens drawn uniformly from the vocabulary, int32.

  Args:
    rows: sequences.
    tokens: of each.
    vocabulary: ids there are.
    seed: of the draw.
    leave_out: ids never drawn, such as special tokens.
  """
  kept = np.setdiff1d(np.arange(vocabulary, dtype=np.int32), leave_out)
  return np.random.default_rng(seed).choice(kept, (rows, tokens))


def rates(sae: SAE, x: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, "n"]:
  """Share of rows on which each latent is not 0."""
  return held_out.evaluate(sae, x).density


def ffr(
  sae: SAE, x_random: Float[np.ndarray, "rows d"], tau: float = FFR_TAU
) -> float:
  """FFR(tau) from the activations of random tokens."""
  return float(ffr_curve(rates(sae, x_random), [tau])[0])


def ffr_curve(
  rates: Float[np.ndarray, "n"], taus: Sequence[float] | np.ndarray
) -> Float[np.ndarray, "t"]:
  """FFR at several thresholds, from the rates on random tokens."""
  return np.mean(np.asarray(rates)[None] > np.asarray(taus)[:, None], axis=1)


def first_tokens(
  first: Int[np.ndarray, "documents"],
  p: Float[np.ndarray, "V"],
  *,
  smoothing: float = 1.0,
) -> dict[str, float]:
  """The first tokens of documents against the model's distribution after BOS.

  With q the frequencies in the data, smoothed by adding `smoothing` documents
  that are distributed as the model says (our definition).

  Args:
    first: token ids.
    p: the model's probabilities.
    smoothing: at least 0; at 0 a token that the data lack makes KL(p|q)
      infinite.

  Returns:
    "kl_data_model" = KL(q|p) and "kl_model_data" = KL(p|q) in nats,
    "cross_entropy" = -sum q ln p, and "coverage", the probability under the
    model of the tokens that begin a document.
  """
  p = np.asarray(p, np.float64)
  p = p / p.sum()
  counts = np.bincount(first, minlength=len(p)).astype(np.float64)
  q = (counts + smoothing * p) / (counts.sum() + smoothing)
  with np.errstate(divide="ignore"):
    log_p, log_q = np.log(p), np.log(q)
  cross = _expected(q, -log_p)
  return {
    "kl_data_model": cross + _expected(q, log_q),
    "kl_model_data": _expected(p, log_p) + _expected(p, -log_q),
    "cross_entropy": cross,
    "coverage": float(p[counts > 0].sum()),
  }


def _expected(p: np.ndarray, values: np.ndarray) -> float:
  """sum p v, where 0 times anything is 0."""
  return float((p[p > 0] * values[p > 0]).sum())
