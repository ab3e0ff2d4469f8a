"""The arms that claims compare, and the numbers read off each SAE."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saejax.evals import matching, reconstruction
from saejax.recipes import catalogue, row_sparse
from saejax.sae import activations
from saejax.sae.sae import SAE
from saejax.studies import architectures, arms

TRUNCATED = (2, 4, 8)  # latents kept of SAEs that keep more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
  """Rows of one site and the sizes used on them.

  Attributes:
    name: short, part of the arms' names.
    rows: data.
    config: how arms are trained.
    n: latents.
    k: latents a row, ascending.
  """

  name: str
  rows: arms.Rows
  config: arms.StudyConfig
  n: int
  k: tuple[int, ...]

  def setting(self, n: int, **options: Any) -> catalogue.Setting:
    """What recipes know of a run here."""
    return catalogue.Setting(
      d=self.rows.d,
      n=n,
      steps=self.config.steps,
      options={**arms.options(self.config, self.rows), **options},
      batch_rows=self.config.batch_rows,
    )

  def arm(
    self,
    method: str,
    *,
    label: str | None = None,
    n: int | None = None,
    k: tuple[int, ...] | None = None,
    make: Callable[[catalogue.Setting, int], Any] | None = None,
    **options: Any,
  ) -> arms.Arm:
    """A method of the catalogue, or a variant of it, on this site.

    Args:
      method: name in the catalogue.
      label: of the arm, the method's name by default.
      n: latents; the site's by default.
      k: latents a row; the site's by default.
      make: the variant's recipe.
      **options: of the recipe, instead of the site's.
    """
    line = catalogue.METHODS[method]
    setting = self.setting(n or self.n, **options)
    return arms.Arm(
      name=f"{self.name} {label or method}",
      make=partial(make or line.make, setting),
      n=n or self.n,
      k=(k or self.k) if line.sweeps == catalogue.K else (0,),
      coefficients=line.coefficients,
      rate=line.rate,
      rows=self.rows,
      facts={"site": self.name},
    )


def measure(trained: arms.Trained) -> list[dict[str, Any]]:
  """Numbers of each SAE that claims are about.

  Returns:
    max_cosine: mean over decoder rows of the largest cosine with another row;
    shared: fraction of live latents that the next seed of the same setting has;
    shrinkage: |1 - g| with g the factor that best stretches z W_dec;
    fvu_in_training: FVU of what was trained, before `finish`;
    fvu_at_2 ...: FVU with the k' largest latents of each row;
    encode_flops: of encoding one row.
  """
  settings = len(trained.arm.k) * len(trained.arm.coefficients)
  seeds = len(trained.saes) // settings
  cost = architectures.cost(trained.saes[0], trained.rows)
  points = []
  for i, (sae, state) in enumerate(
    zip(trained.saes, trained.states, strict=True)
  ):
    point: dict[str, Any] = {
      "max_cosine": max_cosine(np.asarray(sae.W_dec)),
      "shrinkage": _shrinkage(sae, trained.rows),
      "fvu_in_training": _fvu(state.sae, trained.rows),
      "encode_flops": cost["encode_flops"],
    }
    if seeds > 1:
      j = i - i % seeds + (i + 1) % seeds
      point["shared"] = matching.match(
        sae,
        trained.saes[j],
        by="decoder",
        alive_a=trained.found[i].density > 0,
        alive_b=trained.found[j].density > 0,
      ).fraction
    for k, fvu in truncated(sae, trained.rows).items():
      point[f"fvu_at_{k}"] = fvu
    points.append(point)
  return points


def max_cosine(W: np.ndarray) -> float:
  """Mean over rows of the largest cosine with another row."""
  unit = matching.unit(W)
  cosines = unit @ unit.T
  np.fill_diagonal(cosines, -np.inf)
  return float(cosines.max(axis=1).mean())


def truncated(
  sae: SAE, rows: arms.Rows, ks: Sequence[int] = TRUNCATED
) -> Mapping[int, float]:
  """FVU with only the k' largest latents of each row, for rows bounded by k."""
  activation = sae.activation
  if isinstance(activation, activations.ReLU):
    activation = activations.TopK(sae.n)
  if not isinstance(activation, activations.TopK):
    return {}
  return {
    k: _fvu(sae.replace(activation=activation.with_k(k)), rows)
    for k in ks
    if k <= activation.k
  }


def _fvu(sae: SAE, rows: arms.Rows) -> float:
  found = reconstruction.evaluate(
    sae, arms.chunks(rows.held_out), mean=rows.mean, frame="raw"
  )
  return found.fvu


def _shrinkage(sae: SAE, rows: arms.Rows) -> float:
  batch = next(arms.chunks(rows.held_out))
  return float(_stretch(sae, batch))


@jax.jit
def _stretch(sae, batch):
  out = sae.forward(batch)
  made, wanted = out.x_hat - sae.b_dec, out.y - sae.b_dec
  return jnp.abs(1 - jnp.sum(made * wanted) / jnp.sum(made**2))


def without_aux(site: Site, k: tuple[int, ...]) -> arms.Arm:
  """TopK without AuxK."""
  return site.arm("topk", label="topk without aux", k=k, aux_weight=0.0)


def k_sparse_fixed(site: Site, k: tuple[int, ...]) -> arms.Arm:
  """The k-sparse autoencoder without its annealing."""
  make = lambda s, k: row_sparse.k_sparse(
    s.d, s.n, k, anneal_steps=1, k_start=k, **s.options
  )
  return site.arm("k_sparse", label="k_sparse fixed k", k=k, make=make)
