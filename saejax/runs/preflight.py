"""Checks and estimates of a run before it starts."""

import contextlib
import os
import pathlib
import resource
import time
from functools import partial

import jax
import jax.numpy as jnp

from saejax import durable, terminal
from saejax.errors import InputError
from saejax.kernels import native
from saejax.recipes import common
from saejax.runs import grid
from saejax.runs.config import SAEConfig
from saejax.sae import prep
from saejax.training import ahead, loop, passes, sharding, wandb_run


def check(
  rows: int,
  d: int,
  sae: SAEConfig,
  train: loop.TrainConfig,
  *,
  columns: tuple[str, ...] = ("x",),
  target: common.Target | None = None,
  together: int = 0,
) -> None:
  """Checks that a grid can be trained, before any file is written.

  Args:
    rows: number of training rows.
    d: width of the rows.
    sae: the grid.
    train: settings of training.
    columns: names of the rows' columns.
    target: reconstruction target instead of x.
    together: sites whose groups are all trained at once; 0 for one group after
      the other.

  Raises:
    InputError: there is no whole batch, the warmup is longer than the run, a
      recipe refuses its arguments or a batch in parts, the mesh does not divide
      the sizes, memory does not suffice, or C++ kernels are wanted and cannot be had.
  """
  if train.native:
    native.load()
  wandb_run.check(train.wandb)
  if train.batch_rows > rows:
    raise InputError(
      "train.batch_rows",
      train.batch_rows,
      f"must be at most {rows}, the number of rows of the store",
      "lower it, or harvest more rows (harvest.rows)",
    )
  steps = train.total_steps(rows)
  check_memory(d, sae, train, together=together)
  mesh = sharding.make_mesh(train.mesh, first=train.first_device)
  for n in sae.n:
    members = grid.members(n, sae, train)
    sharding.check(
      mesh,
      n=n,
      batch_rows=train.batch_rows,
      members=len(members),
      accumulate=train.accumulate,
    )
    for values in dict.fromkeys(member.arguments for member in members):
      recipe = grid.recipe(
        n,
        dict(values),
        d=d,
        prep=prep.Identity(),
        target=target,
        sae=sae,
        train=train,
        total_steps=steps,
      )
      recipe.check(columns, len(members))
      if train.accumulate > 1:
        start = partial(recipe.init, sample=None)
        shapes = jax.eval_shape(start, jax.random.key(0))
        passes.check(recipe, shapes, train.accumulate)
      if mesh.size > 1:  # arrays of other sizes than n: one row per head
        ahead.state_shapes(recipe, mesh)


def check_memory(
  d: int,
  sae: SAEConfig,
  train: loop.TrainConfig,
  limit: int | None = None,
  *,
  together: int = 0,
) -> None:
  """Checks that the groups of a grid that are trained at once fit in memory.

  Args:
    d: width of the rows.
    sae: the grid.
    train: settings of training.
    limit: available bytes; see `memory` for the default.
    together: as for `check`.

  Raises:
    InputError: it does not fit; names the setting that takes most memory.
  """
  limit = memory() if limit is None else limit
  weights, batch = _memory(d, sae, train, together)
  if weights + batch <= limit:
    return
  n = max(sae.n)
  field, value = (
    ("sae.n", n)
    if weights > batch
    else (
      "train.batch_rows",
      train.batch_rows,
    )
  )
  raise InputError(
    field,
    value,
    f"n={n} with d={d}, {len(grid.members(n, sae, train))} SAE(s) and batches "
    f"of {train.batch_rows} needs about {durable.size(weights + batch)} of "
    f"memory, and {durable.size(limit)} are available",
    "lower it, or use more devices (train.mesh)"
    if weights > batch
    else "lower it, or compute it in parts (train.accumulate)",
  )


def memory() -> int:
  """Returns the bytes that a run may use on all its devices."""
  devices = jax.local_devices()
  if devices[0].platform != "cpu":
    found = [device.memory_stats() or {} for device in devices]
    limits = [stats.get("bytes_limit", 2**63) for stats in found]
    return sum(limits) * jax.process_count()
  limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  soft = resource.getrlimit(resource.RLIMIT_AS)[0]
  if soft != resource.RLIM_INFINITY:
    limits.append(soft)
  group = pathlib.Path("/sys/fs/cgroup/memory.max")
  with contextlib.suppress(OSError, ValueError):
    limits.append(int(group.read_text()))
  return min(limits)


def _memory(
  d: int, sae: SAEConfig, train: loop.TrainConfig, together: int
) -> tuple[int, int]:
  """Estimates the bytes of the states that are held at once and of a batch.

  States are weights, two moments, gradients and a checkpoint's copy of the first
  three, with accumulation the gradients of a part too; a batch is its rows and
  the pre-activations of a part.
  """
  largest = max(sae.n)
  n = sum(sae.n) * together or largest
  count = len(grid.members(largest, sae, train))
  part = train.batch_rows // train.accumulate
  state = 4 + (2 if train.param_dtype == "bfloat16" else 4)
  state += 4 if train.second_moments == "element" else 0
  gradients = 4 * (1 + (train.accumulate > 1))
  held = (2 * state + gradients) * count * 2 * n * d
  return held, 4 * (train.batch_rows * d + part * largest)


def line(
  rows: int,
  d: int,
  sae: SAEConfig,
  train: loop.TrainConfig,
  *,
  harvest_layers: int = 0,
  together: int = 0,
) -> str:
  """Formats the size and estimated cost of a run; times a matmul for the rate.

  Args:
    rows: number of training rows.
    d: width of the rows.
    sae: the grid.
    train: settings of training.
    harvest_layers: transformer layers to run per row, of 12 d^2 parameters each;
      0 where the store exists.
    together: as for `check`.
  """
  count = len(grid.members(sae.n[0], sae, train))
  pairs = sum(2 * n * d for n in sae.n) * max(1, together)
  # A sparse step costs about twice its encoder's matmul.
  seen = train.total_steps(rows) * train.batch_rows
  flops = rows * 2 * 12 * d**2 * harvest_layers + seen * 2 * count * pairs
  return terminal.preflight(
    rows=rows,
    disk_bytes=0 if together else rows * (2 * d + 16),
    parameters=count * sum(2 * n * d + n + d for n in sae.n) * max(1, together),
    seconds=flops / _matmul_flops(),
    # 1 GB is for JAX and windows of rows.
    memory_bytes=sum(_memory(d, sae, train, together)) + 10**9,
    programs=len(sae.n) * len(sae.combinations) * max(1, together),
  )


def _matmul_flops(size: int = 1024) -> float:
  """Measures the FLOPs per second of a float32 matmul."""
  a = jnp.ones((size, size))
  multiply = jax.jit(lambda a: a @ a)
  multiply(a).block_until_ready()
  best = float("inf")
  for _ in range(3):
    start = time.perf_counter()
    multiply(a).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best
