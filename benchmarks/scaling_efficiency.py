"""Sharded training against one device: values, selections, exchanges, processes.

  python benchmarks/scaling_efficiency.py \\
    --write=benchmarks/results/scaling-efficiency.json

Eight forced CPU devices, which share the processor of one: their time says
nothing about that of eight chips, and none is taken. What carries over to chips
is whether the results agree, and what the compiled step exchanges.

  values      every method on every mesh of `MESHES`, and the other cases of
              scaling_cases.py on those of `SOME`, against one device, with the
              same seeds and batches, for `STEPS` steps
  exchanges   the collectives of a compiled step whose latents are sharded
  processes   the command in 2 and 4 processes of 2 devices against one process

Columns of the values:

  start       whether initial weights and statistics are equal bit for bit
  weights     |w - reference| / |reference|, the largest of all arrays
  metrics     |m - reference| over the metric's largest value, of all steps
  dead        whether the number of dead latents is equal after every step
  died        number of dead latents after the last step, mean over members
  counts      entries of integer statistics that differ
  active      active entries of `ROWS` rows that no step has seen, in training
              form, with the state after the last step
  same        of these, entries that differ where the mesh has the weights of
              one device
  own         entries that differ where each has its own weights
  far         of those, entries that do not differ on one device where rows are
              moved by `EDGE` of their size: no ties within rounding
  idle        metrics that are 0 in every step: what the case does not reach

A file that exists keeps the parts and cases that are not run. Exits with 1 where
a value is not within `TOLERANCES`, a row is far, or processes differ.
"""

import dataclasses
import datetime
import functools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import scaling_exchanges, scaling_processes
from benchmarks.agreement import SIZES
from benchmarks.scaling_cases import CASES, STEPS, Case
from saejax import config, errors, machine
from saejax.recipes import catalogue
from saejax.sae.context import Batch
from saejax.training import fit, members, sharding

DEVICES = 8
MESHES = ((1, 8, 1), (1, 4, 2), (1, 2, 4), (1, 1, 8), (2, 2, 2), (8, 1, 1))
SOME = ((1, 2, 4), (2, 2, 2))  # of cases that are not named after a method
STACKED = 8  # members where the mesh has an ensemble axis
TOLERANCES = {"weights": 1e-4, "metrics": 1e-4}
EDGE, TRIES = 1e-5, 8
PARTS = ("values", "exchanges", "processes")
Metrics = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is compared."""

  parts: tuple[str, ...] = PARTS  # parts to run
  cases: tuple[str, ...] = ()  # cases of the values; none: all of them
  write: str = ""  # JSON file to write to

  def __post_init__(self):
    for field, known in (("parts", PARTS), ("cases", tuple(CASES))):
      for name in getattr(self, field):
        if name not in known:
          rule = f"must be one of {'; '.join(known)}"
          raise errors.InputError(field, name, rule, "see scaling_cases.py")


# --- values ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
  """Some steps of a case on a mesh, and what follows from them, on the host."""

  case: Case
  shape: tuple[int, ...]
  count: int  # members

  @functools.cached_property
  def group(self) -> members.Group:
    """The members of the run."""
    made = self.case.recipe(SIZES)
    stacked = self.count > 1 or made.coupling is not None
    seeds = range(max(self.count, 2 if made.coupling else 1))
    return members.Group(
      lambda: made,
      [fit.member(seed, learning_rate=self.case.rate) for seed in seeds],
      mesh=sharding.make_mesh(self.shape),
      stacked=stacked,
      engine=self.case.engine,
    )

  @functools.cached_property
  def batches(self) -> list[dict[str, np.ndarray]]:
    """The batches of all steps, and one more."""
    return self.case.batches(SIZES, STEPS + 1)

  @functools.cached_property
  def trained(self) -> tuple[list[np.ndarray], Any, Metrics]:
    """Initial weights and statistics, the last states, and all metrics."""
    group, found = self.group, []
    first = {k: jnp.asarray(v) for k, v in self.batches[0].items()}
    states = jax.block_until_ready(group.init(Batch(**first)))
    start = [np.asarray(a) for s in states for a in _numbers(s.sae, s.stats)]
    for batch in self.batches[:STEPS]:
      states, metrics, _ = group.run(states, [group.put(batch)])
      jax.block_until_ready(states)
      found.append(group.by_member(metrics))
    metrics = {k: np.concatenate([f[k] for f in found]) for k in found[0]}
    return start, jax.device_get(states[0]), metrics

  @functools.cached_property
  def _encode(self) -> Any:
    def one(state, batch):
      engine = state.sae.engine(self.case.engine, train=True)
      forward = state.sae.forward(
        batch,
        engine=engine,
        stats=state.stats,
        step=state.step,
        key=state.key,
        train=True,
      )
      return forward.latents.dense() != 0

    if not self.group.stacked:
      return jax.jit(one)
    return jax.jit(jax.vmap(one, (0, None), spmd_axis_name="ensemble"))

  def selected(self, state: Any, moved: float = 0, seed: int = 0) -> np.ndarray:
    """Which latents are active on the rows of a further batch.

    Args:
      state: a state on the host.
      moved: part of their size by which the rows are moved at random.
      seed: seed of that.
    """
    batch = dict(self.batches[-1])
    noise = np.random.default_rng(seed).uniform(-1, 1, batch["x"].shape)
    batch["x"] = (batch["x"] * (1 + moved * noise)).astype(np.float32)
    (where,) = self.group.shardings((state,))
    with jax.set_mesh(self.group.mesh):
      args = sharding.place(state, where), self.group.put(batch)
      return np.asarray(jax.block_until_ready(self._encode(*args)))

  @functools.cached_property
  def own(self) -> np.ndarray:
    """The active latents with the run's own states."""
    return self.selected(self.trained[1])

  @functools.cached_property
  def edges(self) -> np.ndarray:
    """Entries that are active or not as rows are moved by rounding errors."""
    moved = [
      self.selected(self.trained[1], EDGE, seed) for seed in range(TRIES)
    ]
    return np.any([each != self.own for each in moved], axis=0)


def _numbers(*trees: Any) -> list[Any]:
  """The leaves of trees that are numbers, and no keys."""
  leaves = jax.tree.leaves(trees)
  return [a for a in leaves if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key)]


def compared(got: Run, want: Run) -> dict[str, Any]:
  """The cell of a mesh.

  Args:
    got: the run on the mesh.
    want: the run on one device.
  """
  (start, state, metrics), (first, reference, wanted) = got.trained, want.trained
  weights = zip(_numbers(state.sae), _numbers(reference.sae), strict=True)
  counts = [
    int(np.sum(state.stats[name] != value))
    for name, value in reference.stats.items()
    if value.dtype.kind in "iub"
  ]
  each = {name: difference(metrics[name], m) for name, m in wanted.items()}
  same = got.selected(reference) != want.own
  own = got.own != want.own
  far = own & ~want.edges if own.any() else own
  return {
    "start": all(
      np.array_equal(a, b, equal_nan=True)
      for a, b in zip(start, first, strict=True)
    ),
    "weights": max(norm(a, b) for a, b in weights),
    "metrics": max(each.values()),
    "metric": max(each, key=lambda name: each[name]),
    "dead": np.array_equal(metrics["dead"], wanted["dead"]),
    "died": round(float(wanted["dead"][-1].mean()) * SIZES.n, 2),
    "counts": sum(counts),
    "active": int(want.own.sum()),
    "same": int(same.sum()),
    "own": int(own.sum()),
    "far": int(far.sum()),
    "idle": [name for name, m in wanted.items() if not np.any(m)],
  }


def norm(got: np.ndarray, want: np.ndarray) -> float:
  """|got - want| / |want|, or |got| where want is 0.

  Args:
    got: an array.
    want: the reference.
  """
  got, want = (np.asarray(a, np.float64) for a in (got, want))
  size = np.linalg.norm(want)
  return float(np.linalg.norm(got - want) / (size or 1.0))


def difference(got: np.ndarray, want: np.ndarray) -> float:
  """The largest difference of a metric, over its largest value.

  Args:
    got: metric [steps, members].
    want: the reference; NaN where the method has none, which must be equal.
  """
  got, want = (np.asarray(a, np.float64) for a in (got, want))
  if not np.array_equal(np.isnan(got), np.isnan(want)):
    return float("inf")
  size = np.max(np.abs(np.nan_to_num(want)), initial=0.0)
  return float(np.max(np.abs(np.nan_to_num(got - want))) / (size or 1.0))


def agrees(cell: Mapping[str, Any]) -> bool:
  """Whether a cell is within the tolerances.

  Args:
    cell: differences by name.
  """
  exact = cell["start"] and cell["dead"]
  near = all(cell[name] <= most for name, most in TOLERANCES.items())
  return bool(exact and near and not cell["counts"] and not cell["far"])


def cells(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """The mesh and the cell of each mesh.

  Args:
    name: name of the case.
  """
  one = {count: Run(CASES[name], (1, 1, 1), count) for count in (1, STACKED)}
  for shape in MESHES if name in catalogue.METHODS else SOME:
    count = STACKED if shape[0] > 1 else 1
    got = Run(CASES[name], shape, count)
    yield ",".join(map(str, shape)), compared(got, one[count])


# --- the script --------------------------------------------------------------


def failures(found: Mapping[str, Any]) -> list[str]:
  """Names what does not agree.

  Args:
    found: the parts of the result.
  """
  values = [
    f"{name} on {mesh}"
    for name, row in found.get("values", {}).items()
    for mesh, cell in row.items()
    if not agrees(cell)
  ]
  processes = [
    f"{row['recipe']} in {row['processes']} processes"
    for row in found.get("processes", [])
    if not row["equal"]
  ]
  return values + processes


def around() -> dict[str, Any]:
  """The date, the machine and what the values depend on."""
  return {
    "date": datetime.date.today().isoformat(),
    "environment": machine.environment(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "sizes": {**dataclasses.asdict(SIZES), "steps": STEPS},
    "tolerances": TOLERANCES,
    "edge": EDGE,
  }


def write(path: str, part: str, made: Any) -> dict[str, Any]:
  """Writes a part of the result, beside those that the file has.

  Args:
    path: the file; empty for none.
    part: name of the part.
    made: the part; of a mapping, the entries to be replaced.

  Returns:
    The whole result.
  """
  file = pathlib.Path(path)
  found = json.loads(file.read_text()) if path and file.exists() else {}
  if isinstance(made, Mapping):
    made = {**found.get(part, {}), **made}
    made = {name: made[name] for name in CASES if name in made}
  found = {**found, **around(), part: made}
  found["failed"] = failures(found)
  if path:
    file.write_text(json.dumps(found, indent=1) + "\n")
  return found


def main(chosen: Config) -> int:
  found: dict[str, Any] = {}
  names: Sequence[str] = chosen.cases or tuple(CASES)
  for name in names if "values" in chosen.parts else ():
    row = {}
    for mesh, cell in cells(name):
      row[mesh] = cell
      print(name, mesh, json.dumps(cell), file=sys.stderr, flush=True)
    jax.clear_caches()
    found = write(chosen.write, "values", {name: row})
  if "exchanges" in chosen.parts:
    found = write(chosen.write, "exchanges", scaling_exchanges.rows())
  if "processes" in chosen.parts:
    found = write(chosen.write, "processes", scaling_processes.rows())
  failed = found["failed"]
  print("\n".join(["all agree"] if not failed else failed))
  return 1 if failed else 0


if __name__ == "__main__":
  # Before the first use of JAX, which then has this many CPU devices.
  os.environ["JAX_PLATFORMS"] = "cpu"
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", DEVICES)
  config.run(main, Config)
