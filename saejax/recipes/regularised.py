"""Methods that regularise decoder rows: towards orthogonality or the data."""

import dataclasses
from functools import partial
from typing import Unpack

from jaxtyping import Array, Float

from saejax.recipes import batch_sparse, common, limits
from saejax.sae import activations, archetypal
from saejax.training.parts import constraints, losses, orthogonality
from saejax.training.recipe import Recipe, Term


def ortsae(
  d: int,
  n: int,
  k: float,
  *,
  gamma: float = 0.25,
  chunk: int = 8192,
  every: int = 5,
  signed: bool = False,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """OrtSAE: BatchTopK with a penalty on cosines between decoder rows.

      loss = |x - x_hat|^2 + 1/8 AuxK + gamma mean_i max(s_i, 0)^2

  with s_i the largest cosine of row i with another one of its random chunk, see
  `orthogonality.nearest`; a member's own coefficient multiplies gamma. gamma is
  relative to squares summed over d of rows with mean square norm 1. Neither
  that nor chunk, gamma and every could be read in the paper's own code.

  Args:
    d: width of the activations.
    n: latents.
    k: mean number of active latents per row, which may be a fraction.
    gamma: weight of the penalty; 0 leaves it out.
    chunk: maximum number of latents compared with each other.
    every: the penalty acts in one of this many steps; gamma is not rescaled.
    signed: whether negative s_i are penalised too.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Korznikov et al., OrtSAE: Orthogonal Sparse Autoencoders Uncover Atomic
    Features, 2025, arXiv:2509.22033.
  """
  limits.check_least("gamma", gamma, 0)
  limits.check_least("chunk", chunk, 2)
  limits.check_least("every", every, 1)
  base = batch_sparse.batchtopk(
    d, n, k, k_aux=k_aux, aux_weight=aux_weight, **options
  )
  penalty = orthogonality.nearest(chunk=chunk, every=every, signed=signed)
  more = {}
  if gamma:
    term = common.penalty(penalty, gamma)
    more["ortho"] = dataclasses.replace(term, mean=True)
  return dataclasses.replace(base, name="ortsae", terms={**base.terms, **more})


def ra_sae(
  d: int,
  n: int,
  k: int,
  *,
  points: Float[Array, "p d"] | int | None = None,
  delta: float = 1.0,
  multiplier: bool = True,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """RA-SAE: TopK with decoder rows near convex combinations of data points.

      W_dec = (A C + Lambda) exp(m),  A_i on the simplex, |Lambda_i| <= delta
      loss = |x - x_hat|^2 / var(x) + 1/8 AuxK,  x_hat = z W_dec

  A and Lambda are put back after each update; there is no b_dec. The library of
  the authors normalises the encoder by batch and has no AuxK; the encoder here
  is affine and starts at the points.

  Args:
    d: width of the activations.
    n: latents.
    k: active latents per row.
    points: p, at least n, which is the default: each member takes that many
      centroids of the sample that weights are drawn with, by its own key. Or
      C, raw rows, to which the prep is applied too.
    delta: largest |Lambda_i|, in the units of the prepared rows; 0 keeps rows
      inside the hull.
    multiplier: whether m is learned, else 0.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Fel et al., Archetypal SAE: Adaptive and Stable Dictionary Learning for
    Concept Extraction in Large Vision Models, 2025, arXiv:2502.12892.
    Bohacek et al., Uncovering Conceptual Blindspots in Generative Image Models
    Using Sparse Autoencoders, 2025, arXiv:2506.19708.
  """
  limits.check_k(k, n)
  points = n if points is None else points
  archetypal.check_points(points, d, n, delta)
  return common.compose(
    "ra_sae",
    d,
    n,
    options,
    init=partial(
      archetypal.init,
      points=points,
      activation=activations.TopK(k),
      delta=delta,
      multiplied=multiplier,
    ),
    terms={"nmse": Term(fn=losses.normalised_mse)},
    aux=common.aux_k(k_aux, aux_weight, k),
    unit_norm=False,
    transcodes=False,
    gradient=constraints.without_decoder_bias,
    project=archetypal.project,
  )
