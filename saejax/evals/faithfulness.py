"""Faithfulness of an SAE and of its training data to the model.

  SFR(tau) = shared feature ratio: share of the latents of one SAE whose
             one-to-one match in another has a decoder cosine above tau;
             measures stability for SAEs of two seeds
  FFR(tau) = fake feature ratio: share of latents that are not 0 on more than a
             share tau of random tokens, drawn uniformly from the vocabulary

The paper does not give tau for FFR. The default 0.1 is our definition; reports
should show the curve over tau. FFR grows with L0, so compare at equal k.

`first_tokens` compares the first tokens of documents with the model's
distribution after BOS, which measures whether the model could have written the
data.

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
  """Computes SFR(tau), with the one-to-one assignment of largest sum.

  Args:
    sae_a, sae_b: SAEs of one site.
    tau: minimum cosine of a match.
  """
  return matching.match(sae_a, sae_b, by="decoder", tau=tau).fraction


def top1_ratio(sae_a: SAE, sae_b: SAE, *, tau: float = matching.TAU) -> float:
  """Computes the share of latents with any decoder cosine above tau.

  Several latents of the first SAE may have one match in the second, so that the
  ratio is at least SFR.

  Args:
    sae_a, sae_b: SAEs of one site.
    tau: minimum cosine of a match.
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
  """Draws sequences of token ids uniformly from the vocabulary, int32.

  Args:
    rows: number of sequences.
    tokens: tokens per sequence.
    vocabulary: number of ids.
    seed: seed of the draw.
    leave_out: ids to exclude, such as special tokens.

  >>> random_ids(2, 3, 2, leave_out=[0]).tolist()
  [[1, 1, 1], [1, 1, 1]]
  """
  ids = np.setdiff1d(np.arange(vocabulary, dtype=np.int32), leave_out)
  return np.random.default_rng(seed).choice(ids, (rows, tokens))


def rates(sae: SAE, x: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, "n"]:
  """Computes the share of rows on which each latent is not 0.

  Args:
    sae: the SAE.
    x: rows.
  """
  return held_out.evaluate(sae, x).density


def ffr(
  sae: SAE, x_random: Float[np.ndarray, "rows d"], tau: float = FFR_TAU
) -> float:
  """Computes FFR(tau).

  Args:
    sae: the SAE.
    x_random: activations of random tokens, see `random_ids`.
    tau: share of tokens above which a latent counts.
  """
  return float(ffr_curve(rates(sae, x_random), [tau])[0])


def ffr_curve(
  rates: Float[np.ndarray, "n"], taus: Sequence[float] | np.ndarray
) -> Float[np.ndarray, "t"]:
  """Computes FFR at several thresholds.

  Args:
    rates: share of random tokens on which each latent is not 0.
    taus: thresholds.

  >>> ffr_curve(np.array([0.0, 0.2, 0.5]), [0.0, 0.3]).round(2).tolist()
  [0.67, 0.33]
  """
  return np.mean(np.asarray(rates)[None] > np.asarray(taus)[:, None], axis=1)


def first_tokens(
  first: Int[np.ndarray, "documents"],
  p: Float[np.ndarray, "V"],
  *,
  smoothing: float = 1.0,
) -> dict[str, float]:
  """Compares the first tokens of documents with the model's distribution.

  q are the frequencies in the data, smoothed by adding `smoothing` documents
  with the model's distribution (our definition).

  Args:
    first: first token id of each document.
    p: the model's probabilities after BOS.
    smoothing: number of added documents, at least 0; for 0, KL(p|q) is infinite
      if a token does not occur in the data.

  Returns:
    "kl_data_model" = KL(q|p) and "kl_model_data" = KL(p|q) in nats,
    "cross_entropy" = -sum q ln p, and "coverage", the probability under the
    model of the tokens that occur.
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
  """Computes sum p v over p > 0."""
  return float((p[p > 0] * values[p > 0]).sum())
