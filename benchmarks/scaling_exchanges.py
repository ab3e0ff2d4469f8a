"""What a step exchanges where latents are sharded, beside the least it must.

A part of scaling_efficiency.py: compiled for `MESH`, not run. A row is an
executed branch of a method's step, with or without AuxK. Bytes are those of the
results on a device, times the passes of loops around them.

  least         bytes of one [B, d] all-reduce in float32, to sum x_hat over
                shards, and in the sparse engine one all-gather [B, T k] of
                values and indices; with AuxK twice that
  activations   collectives of as many entries as those, by kind
  others        all others: gradients and statistics of latents, counts per row
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import agreement_cases, step_programs
from saejax.plans import programs
from saejax.recipes import catalogue
from saejax.training import ahead, sharding

MESH = (1, 1, 8)
# No two of rows, d, n / T and T k are equal, so that shapes tell arrays apart.
SIZES = step_programs.Sizes(rows=160, d=64, n=2048, k=16)
METHODS = (
  "topk",
  "abstopk",
  "hierarchical_topk",
  "multi_topk",
  "kronsae",
  "group_max",
  "batchtopk",
  "matryoshka",
  "feature_choice",
  "jumprelu",
  "gated",
  "relu_l1",
)


def rows(methods: Sequence[str] = METHODS) -> list[dict[str, Any]]:
  """The exchanges of the steps of some methods.

  Args:
    methods: names in the catalogue.
  """
  return [row for name in methods for row in _of_method(name)]


def _of_method(name: str) -> list[dict[str, Any]]:
  """The executed branches of a method's step."""
  made = agreement_cases.recipe(name, SIZES)
  x = jax.ShapeDtypeStruct((SIZES.rows, SIZES.d), jnp.float32)
  program = ahead.lowered(made, x, sharding.make_mesh(MESH)).compile()
  found = programs.collectives(program.as_text())
  sae: Any = jax.eval_shape(lambda: made.init(jax.random.key(0), sample=None))
  sparse = sae.engine("auto", train=True) == "sparse"
  activation = sae.activation
  k = (activation.row_k or round(activation.mean_k)) if sparse else None
  has_aux = any(term.active for term in made.terms.values())
  return [
    {
      "method": name,
      "family": catalogue.METHODS[name].family,
      "engine": "sparse" if sparse else "dense",
      "aux": aux,
      **summary(programs.executed(found, aux), least(k, aux)),
    }
    for aux in ((False, True) if has_aux else (False,))
  ]


def least(k: int | None, aux: bool) -> int:
  """Bytes that a step must exchange for its activations.

  Args:
    k: active latents per row, or their mean; None in the dense engine, which
      exchanges none.
    aux: whether the step has AuxK.
  """
  shards = MESH[2]
  gathered = 0 if k is None else 2 * 4 * SIZES.rows * shards * k
  again = 2 * 4 * SIZES.rows * shards * SIZES.k if k is not None else 0
  summed = 4 * SIZES.rows * SIZES.d
  return gathered + summed + ((again + summed) if aux else 0)


def summary(step: Sequence[programs.Collective], fewest: int) -> dict[str, Any]:
  """Counts and bytes of a branch.

  Args:
    step: its collectives.
    fewest: the least bytes.
  """
  large = {
    kind: step_programs.large(step, kind, SIZES, MESH)
    for kind in programs.KINDS
  }
  total = sum(c.bytes * c.times for c in step)
  each = [
    {"kind": c.kind, "dtype": dtype, "shape": shape, "times": c.times}
    for c in step
    for dtype, shape in c.arrays
  ]
  is_large = lambda a: a["shape"] in large[a["kind"]]
  size = lambda a: (
    programs.item_bytes(a["dtype"]) * math.prod(a["shape"]) * a["times"]
  )
  others = [a for a in each if not is_large(a)]
  return {
    "activations": {kind: found for kind, found in large.items() if found},
    "activation_bytes": sum(size(a) for a in each if is_large(a)),
    "collectives": len(step),
    "bytes": total,
    "least": fewest,
    "ratio": sum(size(a) for a in each if is_large(a)) / fewest,
    "other_bytes": sum(map(size, others)),
    "largest_other": max(map(size, others), default=0),
    "others": others,
  }
