"""Reconstruction from fewer active latents than an SAE was trained with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Array, Float

from saejax.evals import reconstruction
from saejax.sae import activations
from saejax.sae.sae import SAE


def fvu_at(
  sae: SAE,
  batches: Callable[[], Iterable[Any]],
  ks: Sequence[int],
  *,
  mean: Float[Array, "d"],
) -> Mapping[int, float]:
  """Computes the FVU with the k largest latents per row, in units of the model.

  Args:
    sae: SAE with a TopK or ReLU activation.
    batches: returns the batches of rows, from the start at each call.
    ks: numbers of latents per row; those above the SAE's k are left out.
    mean: mean of the training rows.

  Returns:
    FVU by k; empty for other activations.
  """
  activation = sae.activation
  if isinstance(activation, activations.ReLU):
    activation = activations.TopK(sae.n)
  if not isinstance(activation, activations.TopK):
    return {}
  narrowed = [k for k in ks if k <= activation.k]
  if not narrowed:
    return {}
  metrics = reconstruction.evaluate_many(
    [sae.replace(activation=activation.with_k(k)) for k in narrowed],
    batches(),
    means=[mean] * len(narrowed),
    frame="raw",
  )
  return {k: m.fvu for k, m in zip(narrowed, metrics, strict=True)}
