"""Edits of at most k latents that change one attribute of an activation.

For a prompt and its counterfactual, which differ in one attribute, with activations
x, x' and latents z, z':

  by F1      removes the k latents of largest F1 for the old value among those
             active in z, adds the k of largest F1 for the new value active in z':
             x - sum_removed z_j d_j + sum_added z'_j d_j
  greedy     adds sum_{j in S} (z'_j - z_j) d_j with S chosen one by one so that the
             sum is nearest to x' - x, until k or no latent brings it nearer

The first needs to know what latents stand for, the second does not. What S does not
name stays, the SAE's error too. An edit succeeds where the model answers as with x'
(`supervised_codes.agreement`).

The magnitude of an edit is the summed weight of the latents that it removes,

  weight_j = z_j <d_j, x_hat - b> / |x_hat - b|^2,   sum_j weight_j = 1

References:
  Makelov et al., Towards Principled Evaluations of Sparse Autoencoders for
  Interpretability and Control, 2024, arXiv:2405.08366.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError

Latents = Float[np.ndarray, "N n"]


@dataclasses.dataclass(frozen=True, eq=False)
class Edited:
  """Edited activations.

  Attributes:
    x: edited activations.
    removed: latents whose z was taken out (by F1), or that were changed (greedy).
    added: latents whose z' was put in.
    magnitude: summed weight of the removed latents, per row.
  """

  x: Float[np.ndarray, "N d"]
  removed: Bool[np.ndarray, "N n"]
  added: Bool[np.ndarray, "N n"]
  magnitude: Float[np.ndarray, "N"]


def latent_weights(
  z: Latents, W_dec: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "N n"]:
  """Computes the weight of each latent in the reconstruction.

  Args:
    z: latents.
    W_dec: decoder rows, in the units of the model.

  Returns:
    Weights of sum 1; 0 for a row that is reconstructed by the bias alone.
  """
  z, W_dec = np.asarray(z, np.float64), np.asarray(W_dec, np.float64)
  whole = z @ W_dec
  size = np.sum(whole * whole, axis=-1, keepdims=True)
  return z * (whole @ W_dec.T) / np.where(size > 0, size, 1)


def by_f1(
  x: Float[np.ndarray, "N d"],
  z: Latents,
  z_new: Latents,
  W_dec: Float[np.ndarray, "n d"],
  *,
  f1: Float[np.ndarray, "n V"],
  old: Int[np.ndarray, "N"],
  new: Int[np.ndarray, "N"],
  k: int,
) -> Edited:
  """Removes latents of the old value and adds those of the new one.

  Args:
    x: activations.
    z: their latents.
    z_new: latents of the counterfactuals.
    W_dec: decoder rows, in the units of the model.
    f1: F1 of each latent for each value, see `supervised_codes.Patterns`.
    old, new: values of the attribute, per row.
    k: largest number of latents that are removed, and that are added.

  Raises:
    InputError: k is negative.
  """
  _check(k)
  removed = _first(np.where(z > 0, f1.T[old], -np.inf), k)
  added = _first(np.where(z_new > 0, f1.T[new], -np.inf), k)
  change = (np.where(added, z_new, 0) - np.where(removed, z, 0)) @ W_dec
  return _edited(x + change, z, W_dec, removed, added)


def _first(score: Float[np.ndarray, "N n"], k: int) -> Bool[np.ndarray, "N n"]:
  """The k largest of each row that are above -inf."""
  order = np.argsort(-score, axis=1, kind="stable")[:, :k]
  chosen = np.zeros(score.shape, bool)
  np.put_along_axis(chosen, order, True, axis=1)
  return chosen & np.isfinite(score)


def greedy(
  x: Float[np.ndarray, "N d"],
  x_new: Float[np.ndarray, "N d"],
  z: Latents,
  z_new: Latents,
  W_dec: Float[np.ndarray, "n d"],
  *,
  k: int,
) -> Edited:
  """Chooses latents whose changes sum to nearly x_new - x; see the module.

  Args:
    x: activations.
    x_new: those of the counterfactuals.
    z, z_new: their latents.
    W_dec: decoder rows, in the units of the model.
    k: largest number of latents.

  Raises:
    InputError: k is negative.
  """
  _check(k)
  W_dec = np.asarray(W_dec, np.float64)
  delta = np.asarray(z_new, np.float64) - np.asarray(z, np.float64)
  size = delta**2 * np.sum(W_dec * W_dec, axis=-1)
  rest = np.asarray(x_new, np.float64) - np.asarray(x, np.float64)
  chosen, each = np.zeros(delta.shape, bool), np.arange(len(delta))
  for _ in range(min(k, delta.shape[1])):
    nearer = 2 * delta * (rest @ W_dec.T) - size  # decrease of |rest|^2
    nearer[chosen] = 0
    best = nearer.argmax(axis=1)
    use = nearer[each, best] > 0
    if not use.any():
      break
    chosen[each[use], best[use]] = True
    rest[use] -= delta[use, best[use], None] * W_dec[best[use]]
  change = np.where(chosen, delta, 0) @ W_dec
  return _edited(x + change, z, W_dec, chosen, chosen)


def _edited(x, z, W_dec, removed, added) -> Edited:
  magnitude = np.where(removed, latent_weights(z, W_dec), 0).sum(axis=1)
  return Edited(x, removed, added, magnitude)


def _check(k: int) -> None:
  if k < 0:
    raise InputError("k", k, "must be at least 0", "give a number of latents")
