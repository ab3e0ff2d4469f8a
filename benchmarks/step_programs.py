"""Training steps compiled for a mesh, and what their programs hold.

Shared by tpu_steps.py and the tests: one step of a recipe as a run compiles it,
and the arrays and collectives that a design avoids or counts.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from saejax.kernels import dispatch
from saejax.plans import programs
from saejax.recipes import arguments
from saejax.training import ahead, config
from saejax.training.recipe import Recipe

STEPS = 1000  # of the run whose step is compiled
COEFFICIENT = {"coefficient": 1e-3}  # of recipes without a k
PENALISED = ("jumprelu", "gemma_scope")
RECIPES = (
  "topk",
  "batchtopk",
  "matryoshka",
  "hierarchical_topk",
  "abstopk",
  *PENALISED,
)  # those of the papers whose selection or activation a kernel could take


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Rows of a batch, width, latents, and active latents per row."""

  rows: int
  d: int
  n: int
  k: int


def recipe(name: str, sizes: Sizes, dtype: str) -> Recipe:
  """Builds a recipe with the settings that a run gives it by default.

  Args:
    name: name in the catalogue.
    sizes: sizes of the step.
    dtype: dtype of the matmuls' operands.
  """
  train = config.TrainConfig(batch_rows=sizes.rows, steps=STEPS, dtype=dtype)
  given = COEFFICIENT if name in PENALISED else {"k": sizes.k}
  return arguments.make(
    name, d=sizes.d, n=sizes.n, arguments=given, **train.options(STEPS)
  )


def compiled(
  made: Recipe,
  sizes: Sizes,
  mesh: Mesh,
  *,
  kernels: dispatch.Kernels = "pallas",
  members: int = 0,
  dtype: Any = jnp.bfloat16,
) -> Any:
  """One training step, compiled for the devices of a mesh.

  Args:
    made: the recipe.
    sizes: sizes of the step.
    mesh: mesh of (ensemble, data, latent) devices, which need not be here.
    kernels: the form of the ops, as `--train.kernels` gives it.
    members: number of stacked members, each with its own k; 0 for one that is
      not stacked.
    dtype: dtype of the batch.
  """
  x = jax.ShapeDtypeStruct((sizes.rows, sizes.d), dtype)
  step = ahead.lowered(made, x, mesh, members=members, kernels=kernels)
  return step.compile()


def large(
  found: Sequence[programs.Collective],
  kind: str,
  sizes: Sizes,
  mesh: Sequence[int],
) -> list[tuple[int, ...]]:
  """Shapes that a kind of collective gives of [B, d] entries or as many.

  Arrays with one row per latent, such as gradients, are not among them.

  Args:
    found: the collectives.
    kind: name of the operation.
    sizes: sizes of the step.
    mesh: sizes of the mesh.
  """
  rows = sizes.rows // mesh[1]
  width = min(sizes.d, mesh[2] * sizes.k)
  return [
    shape
    for c in found
    if c.kind == kind
    for _, shape in c.arrays
    if rows in shape and math.prod(shape) >= rows * width
  ]


def holdings(text: str, sizes: Sizes, mesh: Sequence[int]) -> dict[str, Any]:
  """What a step's program holds, as values for JSON.

  Args:
    text: its text.
    sizes: sizes of the step.
    mesh: sizes of the mesh.
  """
  found, shapes = programs.collectives(text), programs.arrays(text)
  rows, n = sizes.rows // mesh[1], sizes.n // mesh[2]
  avoided = {"[B, n]": (rows, n), "[B, k, d]": (rows, sizes.k, sizes.d)}
  calls = programs.kernels(text)
  return {
    "kernels": calls,
    "kernel_calls": sum(calls.values()),
    "sorts": programs.sorts(text),
    "large": [name for name, shape in avoided.items() if shape in shapes],
    "activations": {
      f"AuxK {'on' if aux else 'off'}": {
        kind: large(programs.executed(found, aux), kind, sizes, mesh)
        for kind in programs.KINDS
      }
      for aux in (False, True)
    },
    "collectives": [{**dataclasses.asdict(c), "bytes": c.bytes} for c in found],
  }
