"""The arms (compared settings) of claims about a site, and their measures."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from saejax.evals import (
  cost,
  geometry,
  matching,
  reconstruction,
  shrinkage,
  truncation,
)
from saejax.studies import arms, short_runs
from saejax.studies.claims.claim import TRUNCATED, Sizes
from saejax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
  """Rows of one site and the sizes used on them.

  Attributes:
    name: short, part of the arms' names.
    rows: data.
    config: how arms are trained.
    sizes: latents, and active latents per token.
  """

  name: str
  rows: arms.Rows
  config: TrainConfig
  sizes: Sizes

  def arm(
    self,
    method: str,
    *,
    label: str | None = None,
    n: int | None = None,
    k: tuple[int, ...] | None = None,
    **given: Any,
  ) -> arms.Arm:
    """A method of `short_runs`, or a variant of it, on this site.

    Args:
      method: name in `short_runs`.
      label: of the arm, the method's name by default.
      n: latents; the site's by default.
      k: active latents per token; the site's by default.
      **given: arguments of the recipe, instead of those of the method.
    """
    line = short_runs.VARIANTS[method]
    variant = dataclasses.replace(
      line, arguments=lambda *at: {**line.arguments(*at), **given}
    )
    options = arms.options(self.config, self.rows)
    return arms.Arm(
      name=f"{self.name} {label or method}",
      make=partial(
        variant.make, d=self.rows.d, n=n or self.sizes.n, options=options
      ),
      n=n or self.sizes.n,
      k=(k or self.sizes.k) if line.sweeps == short_runs.K else (0,),
      coefficients=line.coefficients,
      rate=line.method.rate,
      rows=self.rows,
      facts={"data": self.name, "arm": label or method},
    )


def site_arms(site: Site) -> list[arms.Arm]:
  """Lists every arm that a claim about the site names.

  Args:
    site: rows of the site, and sizes of its SAEs.
  """
  sizes, arm = site.sizes, site.arm
  sparse, high = (sizes.sparse,), sizes.high
  wide = (sizes.low // 2, *sizes.k, 2 * high, 4 * high)
  of_many = (sizes.n // 2, 3 * sizes.n // 4)
  kron = arm("kronsae")
  fixed = {"anneal": 0.0, "k_start": sizes.sparse}
  return [
    arm("topk", k=tuple(dict.fromkeys(k for k in wide if k))),
    arm("topk", label="topk 2n", n=2 * sizes.n),
    arm("topk", label="topk without aux", k=sparse, aux_weight=0.0),
    arm("topk", label="topk sparse", k=sparse),
    arm("topk", label="topk of many", k=of_many),
    arm(
      "topk",
      label="topk at equal FLOPs",
      n=_equal_cost(site, kron, sizes.mid),
    ),
    arm("k_sparse", label="k_sparse annealed", k=sparse),
    arm("k_sparse", label="k_sparse fixed k", k=sparse, **fixed),
    arm("batchtopk", label="batchtopk sparse", k=sparse),
    arm("feature_choice_zipf", label="feature_choice sparse", k=sparse),
    arm("msae", k=(high,)),
    arm("hierarchical_topk", k=(high,)),
    kron,
    *map(
      arm,
      (
        "relu_l1",
        "batchtopk",
        "jumprelu_target",
        "gated",
        "llama_scope",
        "abstopk",
        "topafa",
        "adaptivek",
        "feature_choice_zipf",
        "mc_then_fc",
        "gba",
        "matryoshka",
        "ortsae",
        "ra_sae",
        "vsae",
      ),
    ),
  ]


def _equal_cost(site: Site, method: arms.Arm, k: int) -> int:
  """Latents of the TopK SAE that encodes with as many operations."""
  ours, theirs = (
    cost.cost(
      arm.make(k).init(jax.random.key(0), sample=None), site.rows.held_out
    )
    for arm in (method, site.arm("topk"))
  )
  return round(site.sizes.n * ours["encode_flops"] / theirs["encode_flops"])


def measure(trained: arms.Trained) -> list[dict[str, Any]]:
  """Numbers of each SAE that claims are about.

  Args:
    trained: the SAEs of an arm, with equally many seeds of each setting.

  Returns:
    max_cosine: mean over decoder rows of the largest cosine with another row;
    shared: share of live latents that the next seed of the same setting has;
    shrinkage: see `evals.shrinkage`; fvu_in_training: FVU of what was trained,
    before `finish`; fvu_at_2 ...: FVU with the k largest latents of each row;
    encode_flops: of encoding one row.
  """
  rows, settings = trained.rows, (trained.arm.k, trained.arm.coefficients)
  seeds = len(trained.saes) // (len(settings[0]) * len(settings[1]))
  flops = cost.cost(trained.saes[0], rows.held_out)["encode_flops"]
  shared = matching.shared_with_next(
    trained.saes, [m.density for m in trained.found], seeds
  )
  in_training = reconstruction.evaluate_many(
    [state.sae for state in trained.states],
    arms.chunks(rows.held_out),
    means=[rows.mean] * len(trained.states),
    frame="raw",
  )
  batch, points = next(arms.chunks(rows.held_out)), []
  for sae, share, training_form in zip(
    trained.saes, shared, in_training, strict=True
  ):
    fewer = truncation.fvu_at(
      sae, lambda: arms.chunks(rows.held_out), TRUNCATED, mean=rows.mean
    )
    points.append(
      {
        "max_cosine": geometry.mean_max_cosine(np.asarray(sae.W_dec)),
        "shrinkage": shrinkage.shrinkage(sae, batch),
        "fvu_in_training": training_form.fvu,
        "encode_flops": flops,
        **({} if share is None else {"shared": share}),
        **{f"fvu_at_{k}": fvu for k, fvu in fewer.items()},
      }
    )
  return points
