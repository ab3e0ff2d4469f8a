"""Features of documents: pooled latents, and the baselines beside them.

For a document of tokens t and latent i:

  mean, sum, max    of z_ti over tokens
  last              z_i of the last token
  topn_count        number of tokens where z_ti is not 0 and among the N largest

and optionally 1[feature > t]. With compat="mosaic" topn_count also counts latents
that are 0 where fewer than N are active, as the reference does: its features then
name latents that never fired. Counts do not overflow.

Sums and counts encode the length of a text: `lengths` are the control. The means of
x and its last token are `pool` of x.

References:
  Gallifant et al., Sparse Autoencoder Features for Classifications and
  Transferability, 2025, arXiv:2502.11367.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saejax.errors import InputError

HOW = ("mean", "sum", "max", "last", "topn_count")
TOP_N, BINARY_ABOVE = 5, 1.0


# --- pooling -----------------------------------------------------------------------


def pool(
  z: Float[Array, "B T n"],
  mask: Bool[Array, "B T"],
  how: str = "mean",
  *,
  top_n: int = TOP_N,
  compat: Literal["mosaic"] | None = None,
) -> Float[Array, "B n"]:
  """Pools latents over the real tokens of each document.

  For documents of any length call it per batch; `features.pooling` pools rows of a
  store.

  Args:
    z: latents.
    mask: which tokens are real.
    how: one of `HOW`.
    top_n: N of topn_count.
    compat: "mosaic" for counts as in the reference.

  Raises:
    InputError: there is no such kind, N is not in [1, n], or compat is unknown.
  """
  if how not in HOW:
    rule = f"must be one of {', '.join(HOW)}"
    raise InputError("how", how, rule, f"use {HOW[0]}")
  if compat not in (None, "mosaic"):
    raise InputError("compat", compat, "must be mosaic or None", "leave it out")
  real = mask[..., None]
  if how == "topn_count":
    if not 1 <= top_n <= z.shape[-1]:
      rule = f"must be in [1, n={z.shape[-1]}]"
      raise InputError("top_n", top_n, rule, "choose another")
    _, among = jax.lax.top_k(z, top_n)
    chosen = jnp.put_along_axis(
      jnp.zeros(z.shape, bool), among, True, axis=-1, inplace=False
    )
    chosen = chosen & real if compat else chosen & real & (z != 0)
    return jnp.sum(chosen, axis=1, dtype=jnp.int32).astype(jnp.float32)
  if how == "max":
    largest = jnp.max(jnp.where(real, z, -jnp.inf), axis=1)
    return jnp.where(jnp.any(real, axis=1), largest, 0)
  if how == "last":
    place = jnp.where(mask, jnp.arange(z.shape[1])[None], -1).max(axis=1)
    found = jnp.take_along_axis(z, place[:, None, None], axis=1)[:, 0]
    return jnp.where(place[:, None] >= 0, found, 0)
  total = jnp.sum(jnp.where(real, z.astype(jnp.float32), 0), axis=1)
  if how == "mean":
    total = total / jnp.maximum(jnp.sum(real, axis=1).astype(jnp.float32), 1)
  return total


def binarise(
  features: Float[np.ndarray, "D n"], above: float = BINARY_ABOVE
) -> Float[np.ndarray, "D n"]:
  """Computes 1[feature > above].

  Args:
    features: pooled latents.
    above: the threshold; the reference's runs have 1.
  """
  return (np.asarray(features) > above).astype(np.float32)


# --- baselines -----------------------------------------------------------------------


def lengths(mask: Bool[np.ndarray, "D T"]) -> Float[np.ndarray, "D 2"]:
  """Returns the length of each document and its logarithm, the control.

  Args:
    mask: which tokens are real.
  """
  count = np.asarray(mask).sum(axis=1).astype(np.float64)
  return np.stack([count, np.log1p(count)], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class TfIdf:
  """Frequencies of tokens, weighted by rarity in training documents.

  feature = count log((1 + D) / (1 + df)) + count, divided by the norm of the
  document, as in scikit-learn.

  Attributes:
    tokens: ids of the tokens, ascending.
    weight: log((1 + D) / (1 + df)) + 1 of each.
  """

  tokens: Int[np.ndarray, "v"]
  weight: Float[np.ndarray, "v"]

  def __call__(
    self, ids: Int[np.ndarray, "D T"], mask: Bool[np.ndarray, "D T"]
  ) -> Float[np.ndarray, "D v"]:
    """Computes the features of documents.

    Args:
      ids: token ids.
      mask: which tokens are real.
    """
    features = _counts(ids, mask, self.tokens) * self.weight
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norm > 0, norm, 1)


def tf_idf(
  ids: Int[np.ndarray, "D T"],
  mask: Bool[np.ndarray, "D T"],
  *,
  most: int = 4096,
) -> TfIdf:
  """Fits TF-IDF on training documents.

  Args:
    ids: token ids.
    mask: which tokens are real.
    most: largest number of tokens; those in most documents are kept.
  """
  tokens = np.unique(np.asarray(ids)[np.asarray(mask)])
  df = np.zeros(len(tokens), np.int64)
  for row, real in zip(ids, mask, strict=True):
    df[np.searchsorted(tokens, np.unique(np.asarray(row)[real]))] += 1
  kept = np.sort(np.argsort(-df, kind="stable")[:most])
  weight = np.log((1 + len(ids)) / (1 + df[kept])) + 1
  return TfIdf(tokens[kept], weight)


def _counts(ids, mask, tokens) -> Float[np.ndarray, "D v"]:
  found = np.zeros((len(ids), len(tokens)))
  for count, row, real in zip(found, ids, mask, strict=True):
    own = np.asarray(row)[real]
    at = np.minimum(np.searchsorted(tokens, own), len(tokens) - 1)
    np.add.at(count, at[tokens[at] == own], 1)
  return found
