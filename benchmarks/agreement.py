"""Agreement of every method's update across engines and platforms, as a table.

  python benchmarks/agreement.py --write=benchmarks/results/agreement.json

Each method of the catalogue takes `STEPS` steps on the same rows, through the
programs that training runs:

  dense, sparse     the two engines with --train.kernels=xla; sparse where the
                    method has that engine
  pallas            the engine that users get with --train.kernels=pallas, its
                    kernels simulated; where a Pallas kernel is in the step
  1 device, 8 devices   one CPU device, and eight on mesh (1,2,4): two shards of
                    the batch, four of the latents

The reference is the dense engine on one device, with matmuls at the highest
precision. A cell is the largest of three differences over their tolerances:

  loss         |loss - reference| / |reference|, largest of all steps
  gradients    of the last step: |g - reference| / |reference| per leaf
  update       of the weights over all steps, likewise

Norms below `SHARE` of the whole tree's count as that share: Adam moves weights
whose gradient is a rounding error by its sign. TPU columns say whether the step
was compiled, which tpu_steps.py writes down; nothing runs there. Exits with 1
where a cell is above its tolerance.
"""

import dataclasses
import datetime
import functools
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.agreement_cases import (
  SAMPLED,
  SIZES,
  STEPS,
  batches,
  joined,
  recipe,
)
from saejax import config, errors, machine
from saejax.kernels import dispatch
from saejax.recipes import catalogue
from saejax.sae.context import Batch
from saejax.training import fit, members, sharding
from saejax.training import recipe as recipes

DEVICES, MESH = 8, (1, 2, 4)
SHARE = 1e-3
TOLERANCES = {"loss": 1e-6, "gradients": 1e-5, "update": 1e-4}
COMPILED = pathlib.Path(__file__).parent / "results" / "tpu-steps.json"
FORMS = ("dense", "sparse", "pallas")
REFERENCE = ("dense", 1)  # form and number of devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is compared."""

  methods: tuple[str, ...] = ()  # names in the catalogue; none: all of them
  write: str = ""  # JSON file to write the cells to

  def __post_init__(self):
    for name in self.methods:
      if name not in catalogue.METHODS:
        raise errors.InputError(
          "methods", name, "is not in the catalogue", "see docs/methods.md"
        )


# --- one update --------------------------------------------------------------


class Kept(NamedTuple):
  """Optimizer state that keeps the gradients that it was given last."""

  gradients: Any
  inner: Any


def keeping(made: recipes.Recipe) -> recipes.Recipe:
  """A recipe whose optimizer also keeps the gradients it is given.

  Args:
    made: the recipe.
  """

  def optimizer(rate):
    inner = made.optimizer(rate)

    def init(sae):
      return Kept(jax.tree.map(jnp.zeros_like, sae), inner.init(sae))

    def update(gradients, state, sae=None):
      updates, new = inner.update(gradients, state.inner, sae)
      return updates, Kept(gradients, new)

    return optax.GradientTransformation(init, update)

  return dataclasses.replace(made, optimizer=optimizer)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Losses of all steps, the last gradients, and the weights' whole change."""

  losses: np.ndarray
  gradients: list[np.ndarray]
  update: list[np.ndarray]


def outcome(
  name: str,
  *,
  engine: str = "dense",
  kernels: dispatch.Kernels = "xla",
  mesh: tuple[int, ...] = (1, 1, 1),
  accumulate: int = 1,
  **more: Any,
) -> Outcome:
  """Takes the steps of a method.

  Args:
    name: name in the catalogue.
    engine: "auto", "dense" or "sparse".
    kernels: the form of the ops; Pallas kernels are simulated.
    mesh: sizes of the mesh of devices.
    accumulate: parts that a batch is computed in.
    **more: further arguments and options of the recipe.

  Raises:
    InputError: a batch of the method cannot be computed in parts.
  """
  method, seeds = catalogue.METHODS[name], (0, 1) if name == "mfr" else (0,)
  made = keeping(recipe(name, **more))
  group = members.Group(
    lambda: made,
    [fit.member(s, learning_rate=1e-3 * method.rate) for s in seeds],
    mesh=sharding.make_mesh(mesh),
    stacked=len(seeds) > 1,
    engine=engine,
    accumulate=accumulate,
  )
  group.check(("x", "score", "cond", "target"))
  data = batches(name)
  sample = batches(name, steps=SAMPLED.get(name, 1))
  leaves = lambda tree: [np.asarray(a) for a in jax.tree.leaves(tree)]
  with dispatch.kernels(kernels, interpret=kernels == "pallas"):
    states = group.init(joined(sample))
    start, losses = leaves(states[0].sae), []
    for batch in data:
      states, metrics, _ = group.run(states, [group.put(batch)])
      jax.block_until_ready(states)
      losses.append(np.asarray(metrics[0]["loss"]))
  (state,) = states
  update = [b - a for a, b in zip(start, leaves(state.sae), strict=True)]
  kept = leaves(state.opt_state.gradients)
  return Outcome(np.stack(losses), kept, update)


@functools.cache
def forms(name: str) -> tuple[str, ...]:
  """The forms that a method has.

  Args:
    name: name in the catalogue.
  """
  made = recipe(name)
  first = Batch(**batches(name)[0])
  sae = jax.eval_shape(lambda: made.init(jax.random.key(0), sample=first))
  found = ["dense", *(["sparse"] if sae.has_sparse_engine else [])]
  with dispatch.kernels("pallas", interpret=True):
    text = str(
      jax.make_jaxpr(lambda s, x: s.forward(x, **around(made, s)).x_hat)(
        sae, first
      )
    )
  return (*found, *(["pallas"] if "pallas_call" in text else []))


def around(made: recipes.Recipe, sae: Any) -> dict[str, Any]:
  """What a training pass hands to the SAE beside the batch.

  Args:
    made: the recipe.
    sae: the SAE.
  """
  stats, _ = recipes.statistics(made.rules, sae)
  step = jnp.asarray(0, jnp.int32)
  return {
    "stats": stats,
    "step": step,
    "key": jax.random.key(0),
    "train": True,
  }


# --- comparison --------------------------------------------------------------


def differences(got: Outcome, want: Outcome) -> dict[str, float]:
  """The three differences of an outcome from the reference.

  Args:
    got: the outcome.
    want: the reference.
  """
  scale = np.maximum(np.abs(want.losses), 1e-12)
  return {
    "loss": float(np.max(np.abs(got.losses - want.losses) / scale)),
    "gradients": _largest(got.gradients, want.gradients),
    "update": _largest(got.update, want.update),
  }


def _largest(got: list[np.ndarray], want: list[np.ndarray]) -> float:
  """The largest relative difference of a leaf; NaN where anything is."""
  whole = math.sqrt(sum(float(np.sum(np.square(w))) for w in want))
  each = []
  for g, w in zip(got, want, strict=True):
    size = max(float(np.linalg.norm(w)), SHARE * whole, 1e-30)
    each.append(float(np.linalg.norm(g - w)) / size)
  return float(np.max(each))


def agrees(cell: Mapping[str, float]) -> bool:
  """Whether every difference is within its tolerance; NaN is not.

  Args:
    cell: differences by name.
  """
  return all(cell[name] <= most for name, most in TOLERANCES.items())


def cells(name: str, devices: int) -> dict[str, dict[str, float]]:
  """The differences of a method's forms, by form and number of devices.

  Args:
    name: name in the catalogue.
    devices: number of devices here; those of eight are left out below that.
  """
  with jax.default_matmul_precision("highest"):
    want = outcome(name, engine="dense", kernels="xla", mesh=(1, 1, 1))
  found = {}
  for form in forms(name):
    engine = "auto" if form == "pallas" else form
    kernels: dispatch.Kernels = "pallas" if form == "pallas" else "xla"
    for count, mesh in ((1, (1, 1, 1)), (DEVICES, MESH)):
      if count <= devices and (form, count) != REFERENCE:
        got = outcome(name, engine=engine, kernels=kernels, mesh=mesh)
        found[f"{form}, {count}"] = differences(got, want)
  return found


# --- the table ---------------------------------------------------------------


def tpu(name: str) -> str:
  """What was compiled for TPUs: the topologies, and the number of kernels.

  Args:
    name: name in the catalogue.
  """
  if not COMPILED.exists():
    return "–"
  steps = json.loads(COMPILED.read_text())["steps"]
  found = [s for s in steps if s["recipe"] == name]
  return (
    "; ".join(f"{s['topology']}: {s['kernel_calls']} kernels" for s in found)
    or "–"
  )


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
  """Formats the matrix in Markdown.

  Args:
    found: the cells of each method.
  """
  columns = [
    f"{form}, {count}"
    for form in FORMS
    for count in (1, DEVICES)
    if (form, count) != REFERENCE
  ]
  names = [f"{c} device{'s' * (not c.endswith(' 1'))}" for c in columns]
  lines = [["method", *names, "TPU, compiled"]]
  lines.append(["---"] * len(lines[0]))
  for method, row in found.items():
    shown = [_shown(row[c]) if c in row else "–" for c in columns]
    lines.append([method, *shown, tpu(method)])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(cell: Mapping[str, float]) -> str:
  worst = max(cell[name] / most for name, most in TOLERANCES.items())
  return f"{worst:.2g}" if agrees(cell) else f"**FAILED** {worst:.2g}"


def main(chosen: Config) -> int:
  devices = jax.device_count()
  found = {}
  for name in chosen.methods or catalogue.METHODS:
    found[name] = cells(name, devices)
    print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
  print("Largest difference over its tolerance; at most 1 agrees.\n")
  print(table(found))
  failed = [
    f"{name}: {form}"
    for name, row in found.items()
    for form, cell in row.items()
    if not agrees(cell)
  ]
  print(f"\n{len(failed)} of {sum(map(len, found.values()))} cells failed")
  if chosen.write:
    about = {
      "date": datetime.date.today().isoformat(),
      "environment": machine.environment(),
      "xla_flags": os.environ.get("XLA_FLAGS", ""),
      "sizes": {**dataclasses.asdict(SIZES), "steps": STEPS},
      "mesh": MESH,
      "tolerances": TOLERANCES,
      "failed": failed,
      "cells": found,
    }
    text = json.dumps(about, indent=1)
    pathlib.Path(chosen.write).write_text(text + "\n")
  return 1 if failed else 0


if __name__ == "__main__":
  # Before the first use of JAX, which then has this many CPU devices.
  os.environ["JAX_PLATFORMS"] = "cpu"
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", DEVICES)
  config.run(main, Config)
