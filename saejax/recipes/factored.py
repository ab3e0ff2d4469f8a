"""Methods whose encoder has fewer weights than its latents have rows."""

from functools import partial
from typing import Unpack

from saejax.errors import InputError
from saejax.recipes import common
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
  h: int | None = None,
  shared: bool = False,
  **options: Unpack[common.Options],
) -> Recipe:
  """KronSAE: latents are pairs of few pre-latents, on where both are.

      z_(e,i,j) = sqrt(p_(e,i) s_(e,j)) on the k largest, else 0
      loss = mean_d (x - x_hat)^2 + 1/32 AuxK

  averaged over rows, with p and s the base and extension units of head e, see
  `sae.kron`. It keeps an encode of its own and cannot be exported. The decoder's
  rows, which the paper only starts at unit norm, are held there; its Adam has a
  weight decay that is not given.

  On rows made of pairs (d 32, 32 pairs) it found them better than a TopK with as
  many encoder weights (mean cosine 0.90 against 0.79) and explained less (errors
  0.20 against 0.17), so the paper's fewer weights at equal error were not seen.

  Args:
    d: width of the activations.
    n: latents, h m q.
    k: latents kept in a row.
    m: base units of a head.
    q: extension units of a head.
    h: heads; n / (m q) by default.
    shared: whether the extension units are the base units. With m = q = 1 this
      is TopK.
    **options: see `common.Options`.

  References:
    Kurochkin et al., Train Sparse Autoencoders Efficiently by Utilizing
    Features Correlation, 2025, arXiv:2505.22255.
  """
  common.check_k(k, n)
  heads = n // (m * q) if h is None and m > 0 and q > 0 else h or 0
  if min(heads, m, q) < 1 or heads * m * q != n:
    raise InputError(
      "h, m, q", (heads, m, q), f"must multiply to n={n}", "change one of them"
    )
  if shared and m != q:
    raise InputError("m, q", (m, q), "must be equal if shared", "change one")
  return common.compose(
    "kronsae",
    d,
    n,
    options,
    init=partial(
      kron.init,
      sizes=(heads, m, q),
      shared=shared,
      activation=activations.TopK(k),
    ),
    terms={"mse": Term(fn=losses.mse, weight=1 / d)},
    aux={},
  )
