"""Training of each case on each mesh against one device, by its values.

A part of scaling_efficiency.py: every method on every mesh of `MESHES`, other cases
on those of `SOME`, for `STEPS` steps. Columns:

  start       whether initial weights and statistics are equal bit for bit
  weights     |w - reference| / |reference|, the largest of all arrays
  metrics     |m - reference| over the metric's largest value, of all steps
  noise       above `TOLERANCES`, or where entries differ: weights, metrics, counts
              and dead of one device as all rows are moved by `ROUNDING` of their
              size, the largest of `DRAWS`. Adam divides a gradient by its size, so
              that one that is nearly 0 may round to another direction
  dead        whether the number of dead latents is equal after every step
  died        number of dead latents after the last step, mean over members
  counts      entries of integer statistics that differ
  active      active entries of `ROWS` rows that no step has seen, in training
              form, with the state after the last step
  same        of these, entries that differ where the mesh has the weights of
              one device
  own         entries that differ where each has its own weights
  far         of those, entries that do not differ on one device where rows are
              moved by `EDGE` of their size, or by `ROUNDING` in training: no ties
              within rounding
  redone      steps that the sparse engine does over in the dense one
  idle        metrics that are 0 in every step: what the case does not reach

A cell agrees where start is true, far is 0, weights and metrics are at most the
larger of the tolerance and `TIMES` the noise, and dead and counts are equal unless
they are not with noise either.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.agreement import SIZES
from benchmarks.scaling_cases import CASES, STEPS, Case
from saejax.recipes import catalogue
from saejax.training import fit, members, sharding

MESHES = ((1, 8, 1), (1, 4, 2), (1, 2, 4), (1, 1, 8), (2, 2, 2), (8, 1, 1))
SOME = ((1, 2, 4),)  # of cases that are not named after a method
STACKED = 8  # members where the mesh has an ensemble axis
TOLERANCES = {"weights": 1e-5, "metrics": 1e-5}
ROUNDING, DRAWS, TIMES = 2.0**-23, 3, 4.0
EDGE, TRIES = 1e-5, 8
Metrics = Mapping[str, np.ndarray]


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
    return self.train()

  def train(self, moved: float = 0, seed: int = 0):
    """As `trained`, on moved rows.

    Args:
      moved: part of their size by which the rows are moved at random.
      seed: seed of that.
    """
    group, found = self.group, []
    batches = [_moved(b, moved, seed + i) for i, b in enumerate(self.batches)]
    states = jax.block_until_ready(group.init(self.case.sample(SIZES)))
    start = [np.asarray(a) for s in states for a in _numbers(s.sae, s.stats)]
    for batch in batches[:STEPS]:
      states, metrics, _ = group.run(states, [group.put(batch)])
      jax.block_until_ready(states)
      found.append(group.by_member(metrics))
    metrics = {k: np.concatenate([f[k] for f in found]) for k in found[0]}
    return start, jax.device_get(states[0]), metrics

  @functools.cached_property
  def _encode(self) -> Any:
    def one(state, batch):
      def forward(engine):
        return state.sae.forward(
          batch,
          engine=engine,
          stats=state.stats,
          step=state.step,
          key=state.key,
          train=True,
        )

      out = forward(state.sae.engine(self.case.engine, train=True))
      z = out.latents.dense()
      if out.exact is not None:  # as the step does it over
        z = jnp.where(out.exact, z, forward("dense").latents.dense())
      return z != 0

    if not self.group.stacked:
      return jax.jit(one)
    return jax.jit(jax.vmap(one, (0, None), spmd_axis_name="ensemble"))

  def selected(self, state: Any, moved: float = 0, seed: int = 0) -> np.ndarray:
    """Which latents are active on the rows of a further batch.

    Args:
      state: a state on the host.
      moved, seed: see `train`.
    """
    batch = _moved(self.batches[-1], moved, seed)
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
    """Entries that rounding decides: of these weights, or while training."""
    own, state = self.own, self.trained[1]
    found = [self.selected(state, EDGE, seed) for seed in range(TRIES)]
    found += [self.selected(state) for _, state, _ in self._rounded]
    return np.any([each != own for each in found], axis=0)

  @functools.cached_property
  def _rounded(self) -> list[tuple[list[np.ndarray], Any, Metrics]]:
    """What the steps give as rows are moved by rounding errors."""
    return [self.train(ROUNDING, 1000 * i) for i in range(1, DRAWS + 1)]

  @functools.cached_property
  def noise(self) -> dict[str, Any]:
    """The largest differences of these, as in a cell."""
    found = [self.apart(each) for each in self._rounded]
    return {
      **{name: max(each[name] for each in found) for name in TOLERANCES},
      "counts": max(each["counts"] for each in found),
      "dead": all(each["dead"] for each in found),
    }

  def apart(self, other: tuple[list[np.ndarray], Any, Metrics]) -> dict:
    """The differences of the results of other steps.

    Args:
      other: what `train` of a run returns.
    """
    (_, state, metrics), (_, reference, wanted) = other, self.trained
    weights = zip(_numbers(state.sae), _numbers(reference.sae), strict=True)
    each = {name: difference(metrics[name], m) for name, m in wanted.items()}
    return {
      "weights": max(norm(a, b) for a, b in weights),
      "metrics": max(each.values()),
      "metric": max(each, key=lambda name: each[name]),
      "dead": np.array_equal(metrics["dead"], wanted["dead"]),
      "counts": sum(
        int(np.sum(state.stats[name] != value))
        for name, value in reference.stats.items()
        if value.dtype.kind in "iub"
      ),
    }


def _moved(
  batch: Mapping[str, np.ndarray], part: float, seed: int
) -> dict[str, np.ndarray]:
  """A batch whose rows are moved at random by a part of their size."""
  noise = np.random.default_rng(seed).uniform(-1, 1, batch["x"].shape)
  x = (batch["x"] * (1 + part * noise)).astype(np.float32)
  return {**batch, "x": x}


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
  (start, _, metrics), (first, reference, wanted) = got.trained, want.trained
  apart = want.apart(got.trained)
  same = got.selected(reference) != want.own
  own = got.own != want.own
  rounds = any(apart[name] > most for name, most in TOLERANCES.items())
  noise = want.noise if rounds or own.any() else None
  return {
    "start": all(
      np.array_equal(a, b, equal_nan=True)
      for a, b in zip(start, first, strict=True)
    ),
    **apart,
    "noise": noise,
    "died": round(float(wanted["dead"][-1].mean()) * SIZES.n, 2),
    "active": int(want.own.sum()),
    "same": int(same.sum()),
    "own": int(own.sum()),
    "far": int((own & ~want.edges).sum() if own.any() else 0),
    "redone": int(np.sum(metrics.get("redone", np.zeros(1)).max(axis=-1))),
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
  noise = {"weights": 0, "metrics": 0, "counts": 0, "dead": True}
  noise |= cell["noise"] or {}
  near = all(
    cell[name] <= max(most, TIMES * noise[name])
    for name, most in {**TOLERANCES, "counts": 0}.items()
  )
  dead = cell["dead"] or not noise["dead"]
  return bool(cell["start"] and near and dead and not cell["far"])


def meshes(name: str) -> tuple[tuple[int, int, int], ...]:
  """The meshes of a case.

  Args:
    name: name of the case.
  """
  return MESHES if name in catalogue.METHODS else SOME


def cells(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """The mesh and the cell of each mesh.

  Args:
    name: name of the case.
  """
  one = {count: Run(CASES[name], (1, 1, 1), count) for count in (1, STACKED)}
  for shape in meshes(name):
    count = STACKED if shape[0] > 1 else 1
    got = Run(CASES[name], shape, count)
    yield ",".join(map(str, shape)), compared(got, one[count])
