"""Methods with factored encoders, which have fewer rows than latents."""

from functools import partial
from typing import Unpack

from saejax.errors import InputError
from saejax.recipes import common, limits
from saejax.sae import activations, kron
from saejax.training.parts import losses
from saejax.training.recipe import Recipe, Term


def kronsae(
  d: int,
  n: int,
  k: int,
  *,
  m: int = 2,
  q: int = 4,
  shared: bool = False,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """KronSAE: each latent is a pair of units, active where both are.

      z_(e,i,j) = sqrt(p_(e,i) s_(e,j)) on the k largest, else 0
      loss = mean_d (x - x_hat)^2 + 1/8 AuxK

  averaged over rows, with p and s the base and extension units of head e, see
  `sae.kron`. It keeps its own encode and cannot be exported. Decoder rows,
  which in the paper only start at unit norm, are kept there; its Adam has a
  weight decay whose value the paper does not give.

  On rows made of pairs (d 32, 32 pairs) it found them better than a TopK with
  as many encoder weights (mean cosine 0.90 against 0.79) and explained less
  (errors 0.20 against 0.17), so the paper's fewer weights at equal error were
  not seen.

  Args:
    d: width of the activations.
    n: latents, m q for each head.
    k: active latents per row.
    m: base units per head.
    q: extension units per head.
    shared: whether the extension units are the base units. With m = q = 1 this
      is TopK.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  Raises:
    InputError: m q does not divide n, or shared units differ in number.

  References:
    Kurochkin et al., Train Sparse Autoencoders Efficiently by Utilizing
    Features Correlation, 2025, arXiv:2505.22255.
  """
  limits.check_k(k, n)
  for field, units in (("m", m), ("q", q)):
    if not (units >= 1 and n % (m * q) == 0):
      raise InputError(
        field, units, f"m q={m * q} must divide n={n}", "change m, q or n"
      )
  if shared and m != q:
    raise InputError("q", q, f"must be m={m} if shared", f"use q={m}")
  return common.compose(
    "kronsae",
    d,
    n,
    options,
    init=partial(
      kron.init,
      sizes=(n // (m * q), m, q),
      shared=shared,
      activation=activations.TopK(k),
    ),
    terms={"mse": Term(fn=losses.mse, weight=1 / d)},
    aux=common.aux_k(k_aux, aux_weight, k),
    transcodes=False,
  )
