"""One training step on a CPU: ours, the machine's floor, and other libraries.

  python benchmarks/step.py                                   # 2 threads
  python benchmarks/step.py --peers_python=/path/to/python    # and the peers
  python benchmarks/step.py --sizes=S,M,A --methods=topk,batchtopk,jumprelu

A step is forward, loss with AuxK idle, backward, clipping, Adam, and the
decoder's norm. Every contender has a process of its own (`step_ours.py`,
`peers.py`). Rounds are interleaved: in each, every contender gives one sample of
some steps, starting with another one each time, on the same data; a ratio is
taken within a round, and the median and quartiles over rounds are given. A
sample during which others than the contender used more than `--busy` of the
cores is taken again.

  xla, native   ours without and with the C++ kernels
  floor         one x W_enc^T matmul and one Adam pass over the parameters
  matmul, adam  the two parts of the floor alone
  sae_lens, dictionary_learning, sparsify, torch_index_add, torch_embedding_bag
                where the Python of --peers_python (or SAEJAX_PEERS_PYTHON) has
                them, or those of --peers; one that cannot run is reported, and
                the rest goes on. All processes stay in memory: at size A all
                peers need more than 24 GiB

Ours run with glibc told to keep large blocks (`step_contenders.MALLOC`), as the
launchers of this repository do; otherwise a step on a CPU spends its time on
page faults. PyTorch gains from that too: peers are measured with the same setting
("+malloc"), as they come (--peers_malloc=default), or both.

The last line printed is one JSON object. Of several sizes or methods it holds the
first, and all of them in a list under "results".
"""

import collections
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import sys
from typing import Any, Literal

import step_contenders
import step_summary

from saejax import checks, errors, machine
from saejax import config as flags

REFERENCE = {
  "S": (2048, 384, 6144, 32),
  "M": (1024, 256, 8192, 32),
  "A": (4096, 768, 24576, 32),
}
METHODS = ("topk", "batchtopk", "jumprelu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
  """What is measured, and how often."""

  sizes: tuple[str, ...] = ()  # reference sizes S, M, A; none: the four below
  batch: int = 2048  # rows a step
  d: int = 384  # width of the activations
  n: int = 6144  # latents
  k: int = 32  # latents kept in a row
  methods: tuple[str, ...] = ("topk",)  # topk, batchtopk, jumprelu
  ours: tuple[str, ...] = ("xla", "native")  # the last is compared
  rounds: int = 11  # interleaved rounds
  sample_seconds: float = 0.3  # least length of a sample
  busy: float = 0.1  # largest share of the cores used by others in a sample
  tries: int = 4  # samples taken where others are busy
  threads: int = 2  # cores for everybody
  peers_python: str = ""  # Python that has the peers; empty: none
  peers: tuple[str, ...] = ()  # which of them; none: all. All run at once
  peers_malloc: Literal["default", "tuned", "both"] = "tuned"  # their allocator
  seed: int = 0  # of data and weights
  out: str = ""  # file for the JSON

  def __post_init__(self):
    checks.at_least(
      self, 1, "batch", "d", "n", "k", "rounds", "tries", "threads"
    )
    checks.positive(self, "sample_seconds", "busy")
    if self.k > self.n:
      rule = f"must be at most n={self.n}"
      raise errors.InputError("k", self.k, rule, "lower it")
    known = {"sizes": REFERENCE, "methods": METHODS, "ours": ("xla", "native")}
    for field, names in known.items():
      for name in getattr(self, field):
        if name not in names:
          rule = f"must be of {', '.join(names)}"
          raise errors.InputError(field, name, rule, "choose one")
    for name in set(self.peers) - set(step_contenders.peers()):
      rule = f"must be of {', '.join(step_contenders.peers())}"
      raise errors.InputError("peers", name, rule, "choose one")
    for field in ("methods", "ours"):
      if not getattr(self, field):
        raise errors.InputError(field, "", "there must be one", "choose one")


def main(config: BenchConfig) -> int:
  if hasattr(os, "sched_setaffinity"):  # contenders inherit it
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: config.threads])
  os.environ["JAX_PLATFORMS"] = "cpu"
  every = [REFERENCE[name] for name in config.sizes]
  results = []
  for sizes in every or [(config.batch, config.d, config.n, config.k)]:
    for method in config.methods:
      results.append(
        _measure(config, dict(zip("Bdnk", sizes, strict=True)), method)
      )
      text = json.dumps({**results[0], "results": results})
      if config.out:  # after each, so that what is measured is kept
        pathlib.Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(config.out).write_text(text + "\n")
  print(text)
  return 0


def _measure(
  config: BenchConfig, sizes: dict[str, int], method: str
) -> dict[str, Any]:
  """Times all contenders of a method at one size."""
  print(f"{method}, {sizes}", file=sys.stderr)
  request = {
    "method": method,
    "sizes": sizes,
    "dtype": "float32",
    "seed": config.seed,
    "steps": 10_000,
    "threads": config.threads,
    "device": "cpu",
  }
  contenders, absent, versions = [], {}, {"python": platform.python_version()}
  try:
    for name, script, python, tuned in step_contenders.starts(config):
      contender = step_contenders.Contender(name, script, python, tuned=tuned)
      contenders.append(contender)
      try:
        versions |= contender.build(config.sample_seconds, **request)
      except RuntimeError as e:
        if script == "step_ours.py":
          raise
        absent[name] = str(e)
        contenders.remove(contender)
        contender.close()
    load = os.getloadavg()[0]
    taken = _rounds(config, contenders, absent)
  finally:
    for contender in contenders:
      contender.close()
  result = {
    "method": method,
    "sizes": sizes,
    "dtype": "float32",
    "rounds": config.rounds,
    **step_summary.summary(config, sizes, taken),
    "absent": absent,
    "load_average": {
      "before": round(load, 2),
      "after": round(os.getloadavg()[0], 2),
    },
    "hardware": {
      "device": "cpu",
      "cpu": machine.cpu_model(),
      "cores": config.threads,
      "malloc": step_contenders.MALLOC,
    },
    "versions": versions,
    "date": datetime.date.today().isoformat(),
  }
  step_summary.print_table(result)
  return result


def _rounds(config: BenchConfig, contenders, absent: dict[str, str]):
  """A sample a round of each contender; those that fail become absent."""
  taken: dict[str, list[step_contenders.Sample]] = {}
  order = collections.deque(contenders)
  for _ in range(config.rounds):
    for contender in tuple(order):
      try:
        sample = step_contenders.undisturbed(
          contender, config.busy, config.tries
        )
      except RuntimeError as e:
        absent[contender.name] = str(e)
        order.remove(contender)
        taken.pop(contender.name, None)
      else:
        taken.setdefault(contender.name, []).append(sample)
    order.rotate(-1)
  return {c.name: taken[c.name] for c in contenders if c.name in taken}


if __name__ == "__main__":
  flags.run(main, BenchConfig)
