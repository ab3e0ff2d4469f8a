"""One TopK training step: ours, the machine's floor, and other libraries.

  python benchmarks/step.py                                   # CPU, 2 threads
  python benchmarks/step.py --peers_python=/path/to/python    # and the peers
  python benchmarks/step.py --sizes=A,B,C --dtypes=bfloat16,float32   # a GPU

A step is forward, loss with AuxK idle, backward, clipping, Adam, and the
decoder's norm. Rounds are interleaved: in each round every contender takes its
steps once, starting with another one each time, on the same data; a ratio is
taken within a round, and the median and quartiles over rounds are given.

  sparse, dense   our engines, through the programs that training runs
  floor           one x W_enc^T matmul and one Adam pass over the
                  2dn + n + d parameters, jitted, donated, in the same run
  matmul, adam    the two parts of the floor alone
  sae_lens, dictionary_learning, sparsify
                  served by peers.py under the Python of --peers_python (or
                  SAEJAX_PEERS_PYTHON), where they can be imported

The script starts itself again with glibc told to keep large blocks
(MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, MALLOC_TOP_PAD_), as the
launchers of this repository do; otherwise a step on a CPU spends its time on
page faults. PyTorch gains from that too, so each peer is measured twice: as it
comes, and ("+malloc") with the same setting. `ratio_peers` is against the
peers as they come, `ratio_peers_malloc` against the others.

The formula floor is enc + dec + bwd + Adam with dec = 2Bkd/W, bwd =
(4Bkd + 2nd)/W, Adam = 26 * 2dn/W: all sparse work at the bandwidth W, with the
matmul's rate and W = 28 bytes a parameter over the Adam pass both measured in
the same run. Utilisation is (2dn + 8kd) B over the matmul's rate times ms.

The last line printed is one JSON object. Of several sizes or dtypes it holds
the first, and all of them in a list under "results".
"""

import collections
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import peers
import step_peers
import step_summary

from saejax import config as flags
from saejax import errors
from saejax.recipes import row_sparse
from saejax.training import fit, members, sharding

BUSY = 0.15  # share of the cores that others may use before the start


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Rows, width, latents, latents kept in a row."""

  B: int
  d: int
  n: int
  k: int


REFERENCE = {
  "A": Sizes(4096, 768, 24576, 32),
  "B": Sizes(16384, 2304, 65536, 64),
  "C": Sizes(8192, 4096, 131072, 64),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
  """What is measured, and how often."""

  sizes: tuple[str, ...] = ()  # reference sizes A, B, C; none: the four below
  batch: int = 2048  # rows a step
  d: int = 384  # width of the activations
  n: int = 6144  # latents
  k: int = 32  # latents kept in a row
  dtypes: tuple[str, ...] = ("float32",)  # float32, bfloat16: of matmuls
  engines: tuple[str, ...] = ("sparse", "dense")  # of ours; the first is ours
  rounds: int = 15  # interleaved rounds
  warmup: int = 3  # rounds before, not counted
  steps: int = 0  # steps a contender takes in a round; 0: 1 on CPU, else 20
  threads: int = 2  # cores for everybody, on CPU
  device: str = ""  # JAX platform: cpu, gpu, tpu; empty: the best there is
  peers_python: str = ""  # Python that has the peers; empty: none
  peers_malloc: Literal["default", "tuned", "both"] = "both"  # their allocator
  allow_busy: bool = False  # measure on a machine that is not idle
  seed: int = 0  # of data and weights
  out: str = ""  # file for the JSON
  profile: str = ""  # folder for a profiler trace of our step

  def __post_init__(self):
    for field in ("batch", "d", "n", "k", "rounds", "threads"):
      if getattr(self, field) < 1:
        _refuse(field, getattr(self, field), "must be at least 1", "give more")
    if self.k > self.n:
      _refuse("k", self.k, f"must be at most n={self.n}", "lower it")
    for name in self.sizes:
      if name not in REFERENCE:
        _refuse("sizes", name, f"must be of {list(REFERENCE)}", "choose one")
    for name in self.dtypes:
      if name not in ("float32", "bfloat16"):
        _refuse("dtypes", name, "must be float32 or bfloat16", "choose one")
    for name in self.engines:
      if name not in ("sparse", "dense"):
        _refuse("engines", name, "must be sparse or dense", "choose one")
    if not self.engines or not self.dtypes:
      _refuse("engines", self.engines, "there must be one", "choose one")


def _refuse(field: str, value: object, rule: str, remedy: str) -> None:
  raise errors.InputError(field, value, rule, remedy)


def main(config: BenchConfig) -> int:
  if config.device:
    jax.config.update("jax_platforms", config.device)
  # Before the first use of JAX, whose CPU threads are as many as the cores.
  accelerators = [*pathlib.Path("/dev").glob("nvidia[0-9]*")]
  accelerators += pathlib.Path("/dev").glob("accel[0-9]*")
  on_cpu = config.device == "cpu" or not (config.device or accelerators)
  if on_cpu and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: config.threads])
  _check_idle(config)
  results = [
    _measure(config, sizes, dtype)
    for sizes in [REFERENCE[s] for s in config.sizes]
    or [Sizes(config.batch, config.d, config.n, config.k)]
    for dtype in config.dtypes
  ]
  final = dict(results[0])
  if len(results) > 1:
    final["results"] = results
  text = json.dumps(final)
  if config.out:
    pathlib.Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(config.out).write_text(text + "\n")
  print(text)
  return 0


def _check_idle(config: BenchConfig) -> None:
  busy = _busy_share()
  if busy > BUSY:
    message = f"others use {busy:.0%} of the cores"
    if not config.allow_busy:
      _refuse(
        "allow_busy",
        config.allow_busy,
        f"the machine must be idle, and {message}",
        "wait, or give --allow_busy and do not quote the numbers",
      )
    print(f"warning: {message}: do not quote the numbers", file=sys.stderr)


def _busy_share(seconds: float = 2.0) -> float:
  """Share of all cores in use; by the load average where /proc is missing."""

  def times() -> np.ndarray:
    line = pathlib.Path("/proc/stat").read_text().splitlines()[0]
    return np.array(line.split()[1:9], float)

  try:
    before = times()
    time.sleep(seconds)
    spent = times() - before
  except (OSError, ValueError):
    return os.getloadavg()[0] / (os.cpu_count() or 1)
  return 1 - (spent[3] + spent[4]) / spent.sum()  # idle and waiting for disk


def _measure(config: BenchConfig, sizes: Sizes, dtype: str) -> dict[str, Any]:
  """Times all contenders at one size."""
  backend = jax.default_backend()
  steps = config.steps or (1 if backend == "cpu" else 20)
  data = peers.data(config.seed, sizes.B, sizes.d)
  print(f"{sizes} {dtype} on {jax.devices()[0].device_kind}", file=sys.stderr)
  contenders: dict[str, Callable[[], float]] = {}
  for engine in config.engines:
    one = build_ours(engine, sizes, dtype, data, config.seed)
    contenders[engine] = _timed(one, steps)
  for name, one in build_floor(sizes, dtype, data).items():
    contenders[name] = _timed(one, steps)
  served = step_peers.serve(config, sizes, dtype, steps)
  for server in served:
    contenders.update(server.contenders)

  load_before = os.getloadavg()
  taken: dict[str, list[float]] = {name: [] for name in contenders}
  order = collections.deque(contenders)
  for number in range(config.warmup + config.rounds):
    for name in order:
      ms = contenders[name]()
      if number >= config.warmup:
        taken[name].append(ms)
    order.rotate(-1)
  load_after = os.getloadavg()
  for server in served:
    server.close()

  result = step_summary.summary(config, sizes, dtype, taken)
  result["steps_a_round"] = steps
  result["load_average"] = {
    "before": round(load_before[0], 2),
    "after": round(load_after[0], 2),
  }
  result["peak_memory_bytes"] = _peak_memory()
  result["absent"] = {k: v for s in served for k, v in s.absent.items()}
  result["hardware"] = _hardware()
  result["versions"] = _versions()
  for server in served:
    result["versions"] |= server.versions
  step_summary.print_table(result)
  if config.profile:
    where = pathlib.Path(config.profile) / f"{sizes.B}-{sizes.n}-{dtype}"
    with jax.profiler.trace(str(where)):
      contenders[config.engines[0]]()
  return result


def _timed(one: Callable[[], Any], steps: int) -> Callable[[], float]:
  """Milliseconds a step, over `steps` of them dispatched in a row."""

  def run() -> float:
    start = time.perf_counter()
    for _ in range(steps):
      out = one()
    jax.block_until_ready(out)
    return 1e3 * (time.perf_counter() - start) / steps

  return run


def build_ours(
  engine: str, sizes: Sizes, dtype: str, data: np.ndarray, seed: int = 0
) -> Callable[[], Any]:
  """A callable that takes one training step of ours and gives the state."""

  def recipe(k: int):
    return row_sparse.topk(
      sizes.d,
      sizes.n,
      k,
      dead_after_tokens=10_000_000,
      clip_norm=1.0,
      dtype=dtype,
    )

  group = members.Group(
    recipe,
    [fit.member(seed, k=sizes.k, learning_rate=3e-4)],
    mesh=sharding.make_mesh((1, 1, 1)),
    stacked=False,
    engine=engine,
  )
  batches = [group.put({"x": x}) for x in np.asarray(data, dtype)]
  states = group.init(jnp.asarray(data[0], jnp.float32))
  taken = 0

  def one() -> Any:
    nonlocal states, taken
    states, _, _ = group.run(states, [batches[taken % len(batches)]])
    taken += 1
    return states

  return one


def build_floor(
  sizes: Sizes, dtype: str, data: np.ndarray
) -> dict[str, Callable[[], Any]]:
  """The least that a step must do: one matmul, one pass of Adam, and both."""
  shapes = {
    "W_enc": (sizes.n, sizes.d),
    "W_dec": (sizes.n, sizes.d),
    "b_enc": (sizes.n,),
    "b_dec": (sizes.d,),
  }
  keys = jax.random.split(jax.random.key(0), len(shapes))
  draw = {
    name: jax.random.normal(key, shape) / sizes.d**0.5
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }
  state = {
    "p": draw,
    "m": jax.tree.map(jnp.zeros_like, draw),
    "v": jax.tree.map(jnp.ones_like, draw),
  }
  gradient = jax.tree.map(lambda p: p * 1e-3, draw)
  batches = [jnp.asarray(x, dtype) for x in data]

  def matmul(W_enc, x):
    return x @ W_enc.astype(x.dtype).T

  def adam(state, g, b1=0.9, b2=0.999, rate=1e-4, eps=6.25e-10):
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["m"], g)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state["v"], g)
    p = jax.tree.map(
      lambda p, m, v: p - rate * m / (jnp.sqrt(v) + eps), state["p"], m, v
    )
    return {"p": p, "m": m, "v": v}

  def both(state, g, x):
    return adam(state, g), matmul(state["p"]["W_enc"], x)

  jit_matmul = jax.jit(matmul)
  jit_adam = jax.jit(adam, donate_argnums=0)
  jit_both = jax.jit(both, donate_argnums=0)
  taken = 0

  def batch():
    nonlocal taken
    taken += 1
    return batches[taken % len(batches)]

  def run_floor():
    nonlocal state
    state, a = jit_both(state, gradient, batch())
    return state, a

  def run_adam():
    nonlocal state
    state = jit_adam(state, gradient)
    return state

  def run_matmul():
    return jit_matmul(state["p"]["W_enc"], batch())

  return {"floor": run_floor, "matmul": run_matmul, "adam": run_adam}


def _peak_memory() -> int:
  """Of the device so far; of this process where the device does not say."""
  stats = jax.devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  scale = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _hardware() -> dict[str, Any]:
  device = jax.devices()[0]
  cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
  return {
    "platform": device.platform,
    "device": device.device_kind,
    "cpu": _cpu_name(),
    "cores": len(cores(0)),
    "malloc": {k: os.environ[k] for k in step_peers.MALLOC if k in os.environ},
  }


def _cpu_name() -> str:
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:
    return platform.processor() or platform.machine()
  names = [line for line in text.splitlines() if line.startswith("model name")]
  return names[0].split(":", 1)[1].strip() if names else platform.machine()


def _versions() -> dict[str, str]:
  names: Sequence[str] = ("jax", "jaxlib", "numpy", "optax")
  found = {name: importlib.metadata.version(name) for name in names}
  return {"python": platform.python_version(), **found}


def _with_malloc() -> None:
  """Starts this program again under the allocator setting, once."""
  if sys.platform == "linux" and any(
    k not in os.environ for k in step_peers.MALLOC
  ):
    os.environ.update(step_peers.MALLOC)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
  _with_malloc()
  flags.run(main, BenchConfig)
