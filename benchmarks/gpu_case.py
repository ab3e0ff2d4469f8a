"""One case of step_gpu.py that needs JAX: the floor, the check, or our step.

  python benchmarks/gpu_case.py REQUEST FILE

REQUEST is JSON, see `step_gpu.measure`; the result is written to FILE.
"""

import importlib.metadata
import json
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

SIZES = {  # B, d, n, k
  "A": (4096, 768, 24576, 32),
  "B": (16384, 2304, 65536, 64),
  "C": (8192, 4096, 131072, 64),
  "D": (8192, 4096, 1048576, 64),
}
TINY = {
  "A": (32, 16, 128, 4),
  "B": (64, 24, 192, 8),
  "C": (32, 32, 256, 8),
  "D": (32, 32, 1024, 8),
}
BATCHES = 4  # distinct batches, used in turn
ROUND_SECONDS = 0.1  # about what a round takes
FILLED = 0.6  # part of the device's memory filled with NaN before the check
CHECKED_ROWS = 64
TOLERANCE = 1e-4  # of the check, relative to the largest value


def sizes(name: str, tiny: bool = False) -> dict[str, int]:
  """B, d, n and k of a size.

  Args:
    name: name in `SIZES`.
    tiny: whether to give the small stand-in.
  """
  return dict(zip("Bdnk", (TINY if tiny else SIZES)[name], strict=True))


def write_batches(path: pathlib.Path, shape: dict[str, int]) -> None:
  """Writes batches [BATCHES, B, d] float32 to a file that is not there yet.

  Rows are sums of 8 of 4 d random directions, with a little noise.

  Args:
    path: file.
    shape: sizes, of which B and d are needed.
  """
  if path.exists():
    return
  B, d = shape["B"], shape["d"]
  rng = np.random.default_rng(0)
  directions = rng.standard_normal((4 * d, d), dtype=np.float32) / d**0.5
  batches = np.empty((BATCHES, B, d), np.float32)
  for x in batches:
    rng.standard_normal(out=x, dtype=np.float32)
    x *= 0.05
    for _ in range(8):
      scale = rng.random((B, 1), dtype=np.float32) + 0.5
      x += scale * directions[rng.integers(0, 4 * d, B)]
  np.save(path, batches)


def timed(one: Callable[[], Any], wait: Callable[[Any], Any], rounds: int):
  """Milliseconds of a call, as the median over rounds, and of every round.

  Args:
    one: dispatches one step.
    wait: waits for what it returns.
    rounds: rounds after the warm-up.
  """
  for _ in range(3):
    wait(one())
  start = time.perf_counter()
  wait(one())
  calls = int(np.clip(ROUND_SECONDS / (time.perf_counter() - start), 1, 100))
  taken = []
  for _ in range(rounds):
    start = time.perf_counter()
    for _ in range(calls):
      out = one()
    wait(out)
    taken.append(1e3 * (time.perf_counter() - start) / calls)
  return float(np.median(taken)), [round(t, 4) for t in taken]


def floor(shape: dict[str, int], batches: np.ndarray, rounds: int) -> dict:
  """The encoder's matmul, Adam and a copy, each on at most a part and scaled.

  Args:
    shape: B, d, n and k.
    batches: [BATCHES, B, d].
    rounds: timed rounds.
  """
  import jax
  import jax.numpy as jnp

  B, d, n = (shape[name] for name in "Bdn")
  rows = min(B, max(1, 2**30 // n))  # 2 GiB of pre-activations at once
  key = jax.random.key(0)
  W = jax.random.normal(key, (n, d), jnp.bfloat16)
  parts = [jnp.asarray(x[:rows], jnp.bfloat16) for x in batches]
  matmul, count = jax.jit(lambda x, W: x @ W.T), iter(range(10**9))
  matmul_ms, _ = timed(
    lambda: matmul(parts[next(count) % BATCHES], W),
    jax.block_until_ready,
    rounds,
  )
  del W, parts
  some = min(2 * n, 2**28 // d)
  state = tuple(jnp.full((some, d), v) for v in (0.1, 0.01, 0.02))
  g = jnp.full((some, d), 1e-3)

  def adam(state, g):
    p, m, v = state
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return p - 1e-4 * m / (jnp.sqrt(v) + 6.25e-10), m, v

  step = jax.jit(adam, donate_argnums=0)

  def one():
    nonlocal state
    state = step(state, g)
    return state

  adam_ms, _ = timed(one, jax.block_until_ready, rounds)
  copy = jax.jit(lambda a: a + 1)
  copy_ms, _ = timed(lambda: copy(g), jax.block_until_ready, rounds)
  flops = 2 * rows * d * n
  return {
    "matmul_ms": matmul_ms * B / rows,
    "adam_ms": adam_ms * 2 * n / some,
    "matmul_tflops": flops / matmul_ms / 1e9,
    "adam_bytes_per_s": 28e3 * some * d / adam_ms,
    "copy_bytes_per_s": 8e3 * some * d / copy_ms,
  }


def ours(
  shape: dict[str, int],
  batches: np.ndarray,
  rounds: int,
  *,
  engine: str,
  aux: bool = False,
) -> dict:
  """One of our engines, through the program that training runs.

  Args:
    shape: B, d, n and k.
    batches: [BATCHES, B, d].
    rounds: timed rounds.
    engine: "sparse" or "dense".
    aux: whether the step has AuxK, idle while nothing is dead.
  """
  import jax
  import jax.numpy as jnp

  from saejax.recipes import row_sparse
  from saejax.training import fit, members, sharding

  def recipe(k: int):
    more = {} if aux else {"aux_weight": 0.0}
    return row_sparse.topk(
      shape["d"],
      shape["n"],
      k,
      dead_after_tokens=10**9,
      clip_norm=1.0,
      dtype="bfloat16",
      **more,
    )

  group = members.Group(
    recipe,
    [fit.member(0, k=shape["k"], learning_rate=1e-4)],
    mesh=sharding.make_mesh((1, 1, 1)),
    stacked=False,
    engine=engine,
  )
  put = [group.put({"x": np.asarray(x, jnp.bfloat16)}) for x in batches]
  states, count = group.init(), iter(range(10**9))
  losses = []

  def one():
    nonlocal states
    states, metrics, _ = group.run(states, [put[next(count) % BATCHES]])
    losses.append(metrics[0]["loss"])
    return states

  start = time.perf_counter()
  jax.block_until_ready(one())
  compiling = time.perf_counter() - start
  ms, each = timed(one, jax.block_until_ready, rounds)
  ends = [float(np.ravel(losses[i])[0]) for i in (0, -1)]
  if not np.isfinite(ends).all():
    raise FloatingPointError(f"loss {ends}")
  return {
    "ms": ms,
    "rounds_ms": each,
    "first_call_s": round(compiling, 1),
    "loss_first": ends[0],
    "loss_last": ends[1],
    "peak_bytes": (jax.devices()[0].memory_stats() or {}).get(
      "peak_bytes_in_use"
    ),
  }


def check(shape: dict[str, int], batches: np.ndarray, rounds: int) -> dict:
  """Errors of selection, decode and gradients against float64.

  Args:
    shape: B, d, n and k.
    batches: [BATCHES, B, d].
    rounds: not needed.
  """
  import jax
  import jax.numpy as jnp

  from saejax.kernels.fused_encode import op as encode
  from saejax.kernels.sparse_decode import op as sparse

  del rounds
  d, n, k = (shape[name] for name in "dnk")
  limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 2**28)
  poison = [jnp.full(2**24, jnp.nan) for _ in range(int(FILLED * limit) >> 26)]
  jax.block_until_ready(poison)
  del poison
  rounded = jax.jit(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32))
  keys = jax.random.split(jax.random.key(1), 4)
  W, b = jax.random.normal(keys[0], (n, d)), jax.random.normal(keys[1], (n,))
  W = rounded(W / d**0.5)
  x = rounded(jnp.asarray(batches[0][:CHECKED_ROWS]))
  g = rounded(jax.random.normal(keys[2], x.shape))

  def forward(W, b):
    centre = jnp.zeros(d)
    values, indices = encode.encode_topk(x, centre, W, b, k, "bfloat16")
    return sparse.decode(values, indices, W, "bfloat16"), values, indices

  x_hat, values, indices = jax.jit(forward)(W, b)

  def loss(W, b):
    return jnp.sum(forward(W, b)[0] * g)

  d_W, d_b = jax.jit(jax.grad(loss, argnums=(0, 1)))(W, b)
  exact = jnp.matmul(x, W.T, precision="highest") + b
  best = jax.lax.top_k(exact, k)[0]
  f64 = partial(np.asarray, dtype=np.float64)
  rows = f64(W[indices])  # [rows, k, d]
  products = np.einsum("bd,bkd->bk", f64(g), rows)
  want = np.zeros((len(touched := np.unique(indices)), d))
  places = np.searchsorted(touched, np.asarray(indices))
  terms = f64(values)[..., None] * f64(g)[:, None]
  terms += products[..., None] * f64(x)[:, None]
  np.add.at(want, places, terms)
  want_b = np.zeros(len(touched))
  np.add.at(want_b, places, products)
  errors = {
    "selection": _error(values, f64(best)),
    "decode": _error(x_hat, np.einsum("bk,bkd->bd", f64(values), rows)),
    "d_W": _error(d_W[touched], want),
    "d_b": _error(d_b[touched], want_b),
    "elsewhere": _error(
      jnp.sqrt(jnp.sum(jnp.square(d_W))), np.sqrt(np.sum(want**2))
    ),
  }
  return {**errors, "ok": max(errors.values()) < TOLERANCE}


def _error(got: Any, want: np.ndarray) -> float:
  """The largest difference over the largest value; infinite for NaN."""
  got = np.asarray(got, np.float64)
  if not np.isfinite(got).all():
    return float("inf")
  return float(np.abs(got - want).max() / np.abs(want).max())


CASES: dict[str, Callable] = {
  "floor": floor,
  "check": check,
  "sparse": partial(ours, engine="sparse"),
  "sparse_aux": partial(ours, engine="sparse", aux=True),
  "dense": partial(ours, engine="dense"),
}


def main() -> None:
  import jax

  request = json.loads(sys.argv[1])
  batches = np.load(request["data"], mmap_mode="r")
  try:
    run = CASES[request["contender"]]
    result: dict[str, Any] = run(request["sizes"], batches, request["rounds"])
  except Exception as e:  # out of memory among others: the parent reports it
    result = {"error": f"{type(e).__name__}: {str(e)[:300]}"}
  device = jax.devices()[0]
  names = ("jax", "jaxlib", "optax", "numpy")
  result["hardware"] = {
    "platform": device.platform,
    "device": device.device_kind,
  }
  result["versions"] = {
    name: importlib.metadata.version(name) for name in names
  }
  result["versions"]["python"] = platform.python_version()
  pathlib.Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
  main()
