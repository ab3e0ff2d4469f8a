"""Claims about methods on the activations of one site, and their arms.

What is claimed follows the papers' abstracts and headline results; "TopK" and
the others are our recipes at the same size, data and steps.
"""

from functools import partial

import jax

from saejax.studies import architectures, arms
from saejax.studies.claim_arms import Site, k_sparse_fixed, without_aux
from saejax.studies.claims import (
  Claim,
  at_own_l0,
  both,
  each,
  log_fvu,
  log_of,
  mean_of,
)

FEWER_DEAD = 0.005  # a difference in dead latents below this does not count


def of(site: Site) -> tuple[list[arms.Arm], list[Claim]]:
  """Arms and claims on a site; k of the arms are the site's unless said."""
  low, mid, high = site.k[0], site.k[1], site.k[-1]
  at = both(log_fvu((low * high) ** 0.5))  # inside the range of every arm
  wide = tuple(k for k in (low // 2, low, mid, high, 2 * high, 4 * high) if k)
  sparse = (max(2, low // 2),)
  arm, name = site.arm, lambda method: f"{site.name} {method}"
  kron = arm("kronsae")
  made = [
    arm("topk", k=wide),
    arm("topk", label="topk 2n", n=2 * site.n),
    without_aux(site, sparse),
    arm("topk", label="topk sparse", k=sparse),
    arm("k_sparse", k=sparse, label="k_sparse annealed"),
    k_sparse_fixed(site, sparse),
    arm("relu_l1"),
    arm("batchtopk"),
    arm("batchtopk", label="batchtopk sparse", k=sparse),
    arm("jumprelu_target"),
    arm("gated"),
    arm("llama_scope"),
    arm("abstopk"),
    arm("topafa"),
    arm("topk", label="topk of many", k=(site.n // 2, 3 * site.n // 4)),
    arm("adaptivek"),
    arm("feature_choice_zipf"),
    arm("feature_choice_zipf", label="feature_choice sparse", k=sparse),
    arm("mc_then_fc"),
    arm("gba"),
    arm("matryoshka"),
    arm("msae", k=(high,)),
    arm("hierarchical_topk", k=(high,)),
    kron,
    arm("topk", label="topk at equal FLOPs", n=_equal_cost(site, kron, mid)),
    arm("ortsae"),
    arm("ra_sae"),
    arm("vsae"),
  ]

  def claim(recipe, paper, text, method, against, compare, direction, **more):
    return Claim(
      recipe=recipe,
      paper=paper,
      claim=text,
      method=name(method),
      against=name(against),
      compare=compare,
      direction=direction,
      data=site.name,
      **more,
    )

  dead = {"unit": "difference in dead latents", "margin": FEWER_DEAD}
  share = {"unit": "difference in shared latents", "margin": 0.01}
  cosine = {"unit": "difference in mean max cosine", "margin": 0.005}
  lower_error = partial(claim, direction="lower", compare=at)
  found = [
    claim(
      "k_sparse",
      "1312.5663",
      "annealing k leaves fewer dead latents than a fixed k",
      "k_sparse annealed",
      "k_sparse fixed k",
      both(mean_of("dead")),
      "lower",
      **dead,
    ),
    lower_error(
      "topk", "2406.04093", "lower error than L1 at equal L0", "topk", "relu_l1"
    ),
    claim(
      "topk",
      "2406.04093",
      "AuxK leaves fewer dead latents",
      "topk sparse",
      "topk without aux",
      both(mean_of("dead")),
      "lower",
      **dead,
    ),
    lower_error(
      "batchtopk",
      "2412.06410",
      "lower error than TopK at equal L0",
      "batchtopk",
      "topk",
    ),
    lower_error(
      "jumprelu",
      "2407.14435",
      "error not above TopK's at equal L0",
      "jumprelu_target",
      "topk",
      margin=-0.01,
    ),
    lower_error(
      "gated",
      "2404.16014",
      "lower error than L1 at equal L0",
      "gated",
      "relu_l1",
    ),
    claim(
      "gated",
      "2404.16014",
      "shrinks reconstructions less than L1",
      "gated",
      "relu_l1",
      both(mean_of("shrinkage")),
      "lower",
      unit="difference in |1 - best stretch|",
      margin=0.002,
    ),
    claim(
      "llama_scope",
      "2410.20526",
      "conversion to one threshold costs at most 0.02 explained variance",
      "llama_scope",
      "llama_scope",
      each(mean_of("fvu"), mean_of("fvu_in_training")),
      "lower",
      unit="difference in FVU",
      margin=-0.02,
    ),
    lower_error(
      "abstopk",
      "2510.00404",
      "n latents do not lose to TopK with 2 n",
      "abstopk",
      "topk 2n",
      margin=-0.01,
    ),
    claim(
      "topafa",
      "top-AFA",
      "lower error than TopK at its own L0",
      "topafa",
      "topk of many",
      at_own_l0,
      "lower",
    ),
    lower_error(
      "adaptivek",
      "2508.17320",
      "lower error than TopK at equal L0",
      "adaptivek",
      "topk",
    ),
    claim(
      "feature_choice",
      "2411.02124",
      "fewer dead latents than TopK by inference thresholds",
      "feature_choice sparse",
      "topk sparse",
      both(mean_of("dead")),
      "lower",
      **dead,
    ),
    lower_error(
      "feature_choice",
      "2411.02124",
      "lower error than TopK at equal L0",
      "feature_choice_zipf",
      "topk",
    ),
    lower_error(
      "mc_then_fc",
      "2411.02124",
      "lower error than TopK at equal L0",
      "mc_then_fc",
      "topk",
    ),
    claim(
      "gba",
      "2506.14002",
      "lower error than L1 at its own L0",
      "gba",
      "relu_l1",
      at_own_l0,
      "lower",
    ),
    claim(
      "gba",
      "2506.14002",
      "more latents in common between seeds than TopK",
      "gba",
      "topk",
      both(mean_of("shared", k=mid)),
      "higher",
      **share,
    ),
    claim(
      "matryoshka",
      "2503.17547",
      "higher error than BatchTopK at equal L0",
      "matryoshka",
      "batchtopk",
      at,
      "higher",
    ),
    claim(
      "matryoshka",
      "2503.17547",
      "lower decoder cosines than BatchTopK",
      "matryoshka",
      "batchtopk",
      both(mean_of("max_cosine", k=mid)),
      "lower",
      **cosine,
    ),
    *_truncation(claim, site, high),
    claim(
      "kronsae",
      "2505.22255",
      "error on par with TopK at equal n and L0",
      "kronsae",
      "topk",
      at,
      "lower",
      margin=-0.02,
    ),
    lower_error(
      "kronsae",
      "2505.22255",
      "lower error than TopK at equal L0 and operations to encode",
      "kronsae",
      "topk at equal FLOPs",
    ),
    claim(
      "kronsae",
      "2505.22255",
      "fewer operations to encode than TopK at equal n",
      "kronsae",
      "topk",
      both(log_of("encode_flops", k=mid)),
      "lower",
      unit="difference of log FLOPs",
      margin=0.05,
    ),
    claim(
      "ortsae",
      "2509.22033",
      "lower decoder cosines than BatchTopK",
      "ortsae",
      "batchtopk",
      both(mean_of("max_cosine", k=mid)),
      "lower",
      **cosine,
    ),
    claim(
      "ortsae",
      "2509.22033",
      "error at most 5 % above BatchTopK's",
      "ortsae",
      "batchtopk",
      at,
      "lower",
      margin=-0.05,
    ),
    claim(
      "ra_sae",
      "2506.19708",
      "more latents in common between seeds than TopK",
      "ra_sae",
      "topk",
      both(mean_of("shared", k=mid)),
      "higher",
      **share,
    ),
    claim(
      "ra_sae",
      "2506.19708",
      "error at most 5 % above TopK's at equal L0",
      "ra_sae",
      "topk",
      at,
      "lower",
      margin=-0.05,
    ),
    claim(
      "vsae",
      "vSAE",
      "higher error than TopK at equal L0",
      "vsae",
      "topk",
      at,
      "higher",
    ),
    claim(
      "vsae",
      "vSAE",
      "more dead latents than TopK",
      "vsae",
      "topk",
      both(mean_of("dead", k=mid)),
      "higher",
      **dead,
    ),
    claim(
      "seeds",
      "2501.16615",
      "fewer latents in common between seeds with more latents",
      "topk 2n",
      "topk",
      both(mean_of("shared", k=mid)),
      "lower",
      **share,
    ),
  ]
  return made, found


def _equal_cost(site: Site, method: arms.Arm, k: int) -> int:
  """Latents of the TopK SAE that encodes with as many operations."""
  ours, theirs = (
    architectures.cost(
      made.make(k).init(jax.random.key(0), sample=None), site.rows
    )
    for made in (method, site.arm("topk"))
  )
  return round(site.n * ours["encode_flops"] / theirs["encode_flops"])


def _truncation(claim, site: Site, high: int) -> list[Claim]:
  found = []
  k = max(k for k in (2, 4, 8) if k < high)
  for recipe, paper in (
    ("msae", "2502.20578"),
    ("hierarchical_topk", "2505.24473"),
  ):
    found.append(
      claim(
        recipe,
        paper,
        f"lower error with {k} latents than TopK trained with {high}",
        recipe,
        "topk",
        each(log_of(f"fvu_at_{k}"), log_of(f"fvu_at_{k}", k=high)),
        "lower",
      )
    )
  k = max(k for k in (2, 4, 8) if k < high and k in site.k)
  found.append(
    claim(
      "hierarchical_topk",
      "2505.24473",
      f"with {k} latents, error not above TopK trained with {k}",
      "hierarchical_topk",
      "topk",
      each(log_of(f"fvu_at_{k}"), log_of("fvu", k=k)),
      "lower",
      margin=-0.01,
    )
  )
  return found
