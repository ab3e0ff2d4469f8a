"""One TopK training step on a GPU: ours, the floor, and other libraries.

  python benchmarks/step_gpu.py --peers_python=.venv-torch/bin/python \
    --out=benchmarks/results/step-gpu.json

ends in under 8 minutes on one GPU. Each case, a contender at one of the sizes of
`gpu_case.SIZES`, runs in a process of its own: one that is out of memory, out of
time or without its library is reported, and the rest goes on. What matters most
comes first; what the time does not suffice for is named.

  floor   one encoder matmul and one Adam pass over 2dn parameters, each by
          itself (28 bytes a parameter), and the bandwidth of a copy
  check   our ops against float64 on fresh rows, in memory that was filled with
          NaN before; `sparse` is not timed where it fails
  sparse, dense   our engines through the programs that training runs, without
          AuxK; sparse_aux with it, idle
  sparsify, dictionary_learning, sae_lens   a step of each library (peers.py),
          with its weights in float32 under bfloat16 autocast
  openai_gather, openai_dense   OpenAI's formulation in PyTorch, compiled
          (torch_topk.py)

All see the same batches, four in turn, and multiply in bfloat16. A round is some
steps, from one synchronisation of the device to the next; the median over rounds
is given. The formula floor adds the sparse work at the bandwidth W of a copy:
matmul + (6 B k d + 2nd + 26 * 2dn) / W.

Aims are printed beside the figures: half of the floor's speed without kernels of
our own, twice the fastest other contender, and size D on one card.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import gpu_case

from saejax import config as flags
from saejax.errors import InputError

HERE = pathlib.Path(__file__).parent
OURS = ("floor", "check", "sparse", "dense", "sparse_aux")
LIBRARIES = ("sparsify", "dictionary_learning", "sae_lens")
FORMULATIONS = ("openai_gather", "openai_dense")
PEERS = (*LIBRARIES, *FORMULATIONS)
# XLA would recompute matmuls rather than fill the last fifth of the memory.
OUR_SETTINGS = {
  "XLA_PYTHON_CLIENT_MEM_FRACTION": ".97",
  "XLA_FLAGS": "--xla_gpu_memory_limit_slop_factor=150",
}
FLOOR_SHARE, PEER_RATIO = 0.5, 2.0  # aims


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuConfig:
  """What is measured, and for how long."""

  sizes: tuple[str, ...] = ("A", "B", "C", "D")  # reference sizes
  contenders: tuple[str, ...] = (*OURS, *PEERS)  # of every size
  seconds: float = 460.0  # of the whole run
  case_seconds: float = 75.0  # most of one case
  rounds: int = 9  # timed rounds of a case
  peers_python: str = ""  # Python that has the peers; empty: none
  tiny: bool = False  # sizes of milliseconds, on a CPU: is this script whole
  out: str = ""  # file for the JSON

  def __post_init__(self):
    for field, known in (
      ("sizes", gpu_case.SIZES),
      ("contenders", (*OURS, *PEERS)),
    ):
      for name in getattr(self, field):
        if name not in known:
          rule = f"must be of {', '.join(known)}"
          raise InputError(field, name, rule, "choose one")
    if self.rounds < 1:
      raise InputError("rounds", self.rounds, "must be at least 1", "give more")


def cases(config: GpuConfig) -> list[tuple[str, str]]:
  """(size, contender), what matters most first.

  Args:
    config: settings of the run.
  """
  first = ("floor", "check", "sparse")
  wanted = [(s, c) for s in ("B", "A") for c in (*first, *PEERS[:1])]
  wanted += [(s, c) for s in ("D", "C") for c in first]
  wanted += [(s, c) for c in FORMULATIONS for s in ("B", "A")]
  wanted += [(s, c) for c in LIBRARIES[1:] for s in ("B", "A")]
  wanted += [("C", c) for c in ("sparsify", "openai_gather")]
  wanted += [(s, c) for c in ("dense", "sparse_aux") for s in ("B", "A")]
  wanted += [(s, c) for c in PEERS for s in ("C", "D")]
  wanted += [(s, c) for c in ("dense", "sparse_aux") for s in ("C", "D")]
  return [
    (size, contender)
    for size, contender in dict.fromkeys(wanted)
    if size in config.sizes and contender in config.contenders
  ]


def run(command: list[str], seconds: float, settings: dict[str, str]) -> dict:
  """The JSON that a process writes, or why there is none.

  Args:
    command: command whose last argument, a file to write, is still to come.
    seconds: time after which it is ended.
    settings: variables of its environment.
  """
  start = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder, "case.json")
    try:
      done = subprocess.run(
        [*command, str(out)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, **settings},
      )
      result = json.loads(out.read_text()) if out.exists() else {}
      if not result:
        lines = done.stderr.strip().splitlines() or ["no output"]
        result["error"] = f"exit {done.returncode}: {lines[-1][:300]}"
    except subprocess.TimeoutExpired:
      result = {"error": f"not done in {seconds:.0f} s"}
    except OSError as e:
      result = {"error": f"{command[0]}: {e.strerror}"}
  return {**result, "seconds": round(time.perf_counter() - start, 1)}


def measure(config: GpuConfig, size: str, contender: str, **around) -> dict:
  """Runs one case in a process of its own.

  Args:
    config: settings of the run.
    size: name in `gpu_case.SIZES`.
    contender: one of `OURS` or `PEERS`.
    **around: data, file of the batches, and seconds, the time that is left.
  """
  request = {
    "contender": contender,
    "sizes": gpu_case.sizes(size, config.tiny),
    "data": around["data"],
    "rounds": config.rounds,
    "device": "cpu" if config.tiny else "cuda",
  }
  python, script, settings = sys.executable, "gpu_case.py", {}
  if contender in PEERS:
    python, script = config.peers_python, "gpu_peers.py"
    if not python:
      return {"error": "absent: no --peers_python"}
  elif not config.tiny:
    flags_given = os.environ.get("XLA_FLAGS", "")
    settings = dict(OUR_SETTINGS)
    settings["XLA_FLAGS"] = f"{flags_given} {settings['XLA_FLAGS']}".strip()
  else:
    settings = {"JAX_PLATFORMS": "cpu"}
  command = [python, str(HERE / script), json.dumps(request)]
  return run(command, min(config.case_seconds, around["seconds"]), settings)


def summary(found: dict[str, dict], sizes: dict[str, int]) -> dict[str, Any]:
  """The figures of one size.

  Args:
    found: results by contender.
    sizes: B, d, n and k.
  """
  B, d, n, k = (sizes[name] for name in "Bdnk")
  floor = found.get("floor", {})
  ms = {c: r["ms"] for c, r in found.items() if c != "floor" and "ms" in r}
  result: dict[str, Any] = {
    "tokens_per_second": {c: round(1e3 * B / t) for c, t in ms.items()},
    "peak_bytes": {
      c: r["peak_bytes"] for c, r in found.items() if r.get("peak_bytes")
    },
    "fits": "ms" in found.get("sparse", {}),
  }
  if "matmul_ms" in floor:
    floor_ms = floor["matmul_ms"] + floor["adam_ms"]
    sparse_work = 6 * B * k * d + 2 * n * d + 26 * 2 * d * n
    formula = floor["matmul_ms"] + 1e3 * sparse_work / floor["copy_bytes_per_s"]
    result["floor_ms"] = round(floor_ms, 4)
    result["formula_floor_ms"] = round(formula, 4)
    result["of_floor"] = {c: round(floor_ms / t, 4) for c, t in ms.items()}
    result["of_formula_floor"] = {
      c: round(formula / t, 4) for c, t in ms.items()
    }
    if "sparse" in ms:
      rate = 2 * B * d * n / floor["matmul_ms"]
      work = (2 * d * n + 8 * k * d) * B
      result["utilisation"] = round(work / (rate * ms["sparse"]), 4)
  peers = {c: t for c, t in ms.items() if c in PEERS}
  if peers and "sparse" in ms:
    result["fastest_peer"] = min(peers, key=peers.__getitem__)
    result["over_fastest_peer"] = round(min(peers.values()) / ms["sparse"], 4)
  return result


def aims(figures: dict[str, dict]) -> list[dict[str, Any]]:
  """Each aim, its figure where there is one, and whether it is met.

  Args:
    figures: summaries by size.
  """
  rows = []
  for size, row in figures.items():
    for aim, value, least in (
      ("of the floor", row.get("of_floor", {}).get("sparse"), FLOOR_SHARE),
      ("over the fastest peer", row.get("over_fastest_peer"), PEER_RATIO),
    ):
      met = None if value is None else value >= least
      rows.append({"size": size, "aim": aim, "least": least, "met": met})
      rows[-1]["figure"] = value
  if "D" in figures:
    fits = figures["D"]["fits"]
    rows.append({"size": "D", "aim": "fits", "least": True, "met": fits})
    rows[-1]["figure"] = fits
  return rows


def print_case(size: str, contender: str, result: dict) -> None:
  """Prints one line.

  Args:
    size: name of the size.
    contender: who took the steps.
    result: what `measure` gave.
  """
  text = result.get("error") or ", ".join(
    f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}"
    for name, value in result.items()
    if name not in ("hardware", "versions", "rounds_ms")
  )
  print(f"{size} {contender:20s} {text}", flush=True)


def main(config: GpuConfig) -> int:
  end = time.perf_counter() + config.seconds
  found: dict[str, dict[str, dict]] = {size: {} for size in config.sizes}
  with tempfile.TemporaryDirectory() as folder:
    for size, contender in cases(config):
      of_size = found[size]
      left = end - time.perf_counter()
      if left < 1:
        result = {"error": "no time left"}
      elif contender == "sparse" and not of_size.get("check", {}).get(
        "ok", True
      ):
        result = {"error": "its results are wrong: see check"}
      else:
        shape = gpu_case.sizes(size, config.tiny)
        data = pathlib.Path(folder, f"{shape['B']}-{shape['d']}.npy")
        gpu_case.write_batches(data, shape)
        left = end - time.perf_counter()
        result = measure(config, size, contender, data=str(data), seconds=left)
      of_size[contender] = result
      print_case(size, contender, result)
  shapes = {size: gpu_case.sizes(size, config.tiny) for size in found}
  figures = {s: summary(rows, shapes[s]) for s, rows in found.items()}
  ours = [
    r for rows in found.values() for r in rows.values() if "hardware" in r
  ]
  final = {
    "date": str(datetime.date.today()),
    "hardware": ours[0]["hardware"] if ours else None,
    "versions": {k: v for r in ours for k, v in r["versions"].items()},
    "sizes": shapes,
    "cases": found,
    "figures": figures,
    "aims": aims(figures),
  }
  for row in final["aims"]:
    if config.tiny:
      row |= {"figure": None, "met": None}
    met = {None: "not measured", True: "met", False: "missed"}[row["met"]]
    aim = f"{row['aim']}, at least {row['least']}"
    print(f"{row['size']} {aim:40s} {row['figure']}: {met}")
  text = json.dumps(final)
  if config.out:
    pathlib.Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(config.out).write_text(text + "\n")
  print(text)
  return 0


if __name__ == "__main__":
  flags.run(main, GpuConfig)
