"""Ensembles of SAEs as one SAE: bagging and boosting.

Bagging: the mean of J members is one plain SAE of J n latents (`flatten`).

    sum_j alpha_j (z_j W_j + b_j) = concat_j(alpha_j z_j) concat_j(W_j) + b

alpha multiplies the latents, so that the decoder's rows keep their norms.

Boosting: stage j is trained on the residual of the stages before it.

    r_1 = x,   r_j = x - sum_{l<j} g_l(r_l),   x_hat = sum_j g_j(r_j)

The earlier stages are a prep (`Residual`) of the last one, which is thereby the
whole ensemble: it encodes stage by stage, and only its decoder is a plain
concatenation (`decoder_of_stages`).

References:
  Ensembling Sparse Autoencoders, 2025, arXiv:2505.16077.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.errors import InputError
from saejax.sae import decoders, encoders, folding
from saejax.sae import prep as preps
from saejax.sae.context import Batch, as_batch
from saejax.sae.sae import SAE


def flatten(saes: Sequence[SAE], weights: Sequence[float] | None = None) -> SAE:
  """Concatenates members to one SAE whose output is their weighted mean.

      x_hat = sum_j alpha_j g_j(x)

  W_enc, b_enc and thresholds are multiplied by alpha_j; decoder rows are
  unchanged. TopK members give `BlockTopK`: k latents per member. Preps that
  differ between members are folded into the weights.

  Args:
    saes: members with affine encoders and activations of one class that defines
      `flattened` (ReLU, TopK, thresholds), as returned by `Recipe.finish`.
    weights: alpha per member, above 0; 1/J by default.

  Raises:
    InputError: the members differ in structure, or the weights are not one
      positive number per member.
    NotImplementedError: an encoder is not affine, an activation has no form for
      several members, or preps differ and cannot be folded.
  """
  alphas = [1 / len(saes)] * len(saes) if weights is None else list(weights)
  _check_members(saes, alphas)
  if not all(_equal(sae.prep, saes[0].prep) for sae in saes):
    saes = [folding.fold_prep(sae) for sae in saes]
  first = saes[0]
  centre = lambda sae: sae.W_enc @ sae.b_dec if sae.pre_bias else 0.0
  scaled = lambda part: jnp.concatenate(
    [alpha * part(sae) for alpha, sae in zip(alphas, saes, strict=True)]
  )
  total = sum(alpha * s.b_dec for alpha, s in zip(alphas, saes, strict=True))
  return first.replace(
    encoder=encoders.Affine(
      W=scaled(lambda sae: sae.W_enc),
      b=scaled(lambda sae: sae.b_enc - centre(sae)),
    ),
    activation=first.activation.flattened(
      [sae.activation for sae in saes], alphas, first.n
    ),
    decoder=decoders.Free(
      W=jnp.concatenate([sae.W_dec for sae in saes]), b=jnp.asarray(total)
    ),
    pre_bias=False,
  )


def _check_members(saes: Sequence[SAE], alphas: Sequence[float]) -> None:
  if len(alphas) != len(saes) or not all(
    math.isfinite(alpha) and alpha > 0 for alpha in alphas
  ):
    raise InputError(
      "weights",
      alphas,
      f"must be {len(saes)} positive numbers",
      "pass one weight per member",
    )
  kinds = [
    (jax.tree.structure(s.activation), s.d, s.n, s.dtype, s.target_prep)
    for s in saes
  ]
  for kind in kinds:
    if kind[:4] != kinds[0][:4] or not _equal(kind[4], kinds[0][4]):
      raise InputError(
        "saes",
        kind[:4],
        f"members must have equal structure; the first is {kinds[0][:4]}",
        "pass members of one run",
      )


def _equal(one: Any, two: Any) -> bool:
  """Whether two parts have the same structure and equal arrays."""
  leaves, structure = jax.tree.flatten(one)
  others, other = jax.tree.flatten(two)
  return structure == other and all(
    np.array_equal(a, b) for a, b in zip(leaves, others, strict=True)
  )


class Residual(preps.Prep):
  """The residual of x after frozen SAEs in turn, then an inner prep.

      r_1 = x;   r_{l+1} = r_l - g_l(r_l);   x' = inner(r_J)

  Undoing adds the reconstructions g_l(r_l) back, so that an SAE with this prep
  reconstructs x and not the residual. No gradient reaches the stages. Where
  each stage was trained on the residual of those before it, the last SAE is
  the boosted ensemble.

  Attributes:
    stages: earlier SAEs with their own preps, in the inference form.
    inner: prep applied to the residual.
  """

  stages: tuple[SAE, ...]
  inner: preps.Prep = preps.Identity()

  def apply(
    self, x: Float[Array, "*b d"], cond: Array | None = None
  ) -> tuple[Array, tuple[Array, Any]]:
    x = x.astype(jnp.float32)
    left, given = x, jnp.zeros_like(x)
    for stage in jax.lax.stop_gradient(self.stages):
      part = stage.reconstruct(Batch(x=left, cond=cond))
      left, given = left - part, given + part
    left, given = jax.lax.stop_gradient((left, given))
    frame, statistics = self.inner.apply(left, cond)
    return frame, (given, statistics)

  def undo(
    self,
    x: Float[Array, "*b d"],
    statistics: tuple[Array, Any] | None = None,
  ) -> Array:
    if statistics is None:
      raise ValueError(
        "a residual cannot be undone without the earlier stages' "
        "reconstructions of the rows; use reconstruct(x)"
      )
    given, inner_statistics = statistics
    return self.inner.undo(x, inner_statistics) + given

  def split(self) -> tuple[tuple[SAE, ...], preps.Prep]:
    return self.stages, self.inner


def residual(
  stages: Sequence[SAE], sample: Float[Array, "s d"] | Batch
) -> Residual:
  """The prep of the next stage, its inner prep fitted to the residuals.

  Residuals have another scale than x, so each stage has its own inner prep:
  centre and scale, after which they have mean 0 and mean square norm 1.

  Args:
    stages: the SAEs trained so far; empty for the first stage.
    sample: raw rows.

  Raises:
    InputError: a stage has another width than the rows.
  """
  sample = as_batch(sample)
  check_stages(stages, sample.x.shape[-1])
  left, _ = Residual(tuple(stages)).apply(sample.x, sample.cond)
  rows = left.reshape(-1, left.shape[-1])
  centre = jnp.mean(rows, axis=0)
  spread = jnp.mean(jnp.sum(jnp.square(rows - centre), axis=-1))
  # Where nothing is left there is no scale.
  scale = jnp.where(spread > 0, jnp.sqrt(spread), 1.0)
  return Residual(tuple(stages), inner=preps.Affine(centre, scale))


def check_stages(
  stages: Sequence[SAE], width: int, field: str = "stages"
) -> None:
  """Refuses SAEs that do not reconstruct rows of a width.

  Args:
    stages: the SAEs.
    width: of the rows.
    field: the argument that gave them, for errors.

  Raises:
    InputError: a stage has another width, or is a transcoder.
  """
  for stage in stages:
    if stage.target_prep is not None:
      raise InputError(
        field,
        "a transcoder",
        "every stage must reconstruct the rows that it reads",
        "pass SAEs that were trained without a target",
      )
    if stage.d != width:
      raise InputError(
        field,
        stage.d,
        f"every stage must have the width {width} of the rows",
        "pass SAEs trained on this site",
      )


def stages_of(sae: SAE) -> tuple[SAE, ...]:
  """The stages of a boosted SAE in order, the last with its inner prep only.

  Args:
    sae: the boosted SAE.
  """
  stages, prep = sae.prep.split()
  return (*stages, sae.replace(prep=prep))


def encode_stages(
  sae: SAE, x: Float[Array, "*b d"] | Batch
) -> Float[Array, "*b n_all"]:
  """The concatenated latents of all stages, each reading its residual.

  Args:
    sae: the boosted SAE.
    x: activations.
  """
  batch = as_batch(x)
  latents = []
  for stage in stages_of(sae):
    out = stage.forward(batch)
    latents.append(out.latents.dense())
    batch = batch.replace(
      x=batch.x - stage.prep.undo(out.x_hat, out.statistics)
    )
  return jnp.concatenate(latents, axis=-1)


def decoder_of_stages(
  sae: SAE,
) -> tuple[Float[Array, "n_all d"], Float[Array, "d"]]:
  """W and b with x_hat = encode_stages(x) W + b, in the units of x.

  Args:
    sae: the boosted SAE.

  Raises:
    NotImplementedError: a stage's own prep is not linear.
  """
  folded = [folding.fold_prep(stage) for stage in stages_of(sae)]
  W = jnp.concatenate([stage.W_dec for stage in folded])
  return W, jnp.sum(jnp.stack([stage.b_dec for stage in folded]), axis=0)
