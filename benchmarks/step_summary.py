"""What step.py reports of the samples that contenders gave."""

from typing import Any

import numpy as np
from step_contenders import Sample


def summary(
  config, sizes: dict[str, int], taken: dict[str, list[Sample]]
) -> dict[str, Any]:
  """Medians and quartiles over rounds; ratios are taken within rounds.

  Args:
    config: of step.py.
    sizes: B, d, n and k.
    taken: a sample a round by contender.
  """
  ms = {name: np.array([s.ms for s in own]) for name, own in taken.items()}
  ours = [name for name in config.ours if name in ms]
  best = ours[-1]
  share = {name: ms["floor"] / ms[name] for name in ours}
  over = {
    own: {n: each / ms[own] for n, each in ms.items() if n not in ours}
    for own in ours
  }
  median = {name: round(float(np.median(each)), 4) for name, each in ms.items()}
  work = 2 * sizes["B"] * sizes["d"] * sizes["n"] / median["matmul"] / 1e9
  moved = 28 * 2 * sizes["d"] * sizes["n"] / median["adam"] / 1e6
  return {
    "ms": median,
    "share_of_floor": _medians(share),
    "times_ours": {own: _medians(each) for own, each in over.items()},
    "ratio_floor": _medians(share)[best],
    "quartiles": {
      "ms": {name: _quartiles(each) for name, each in ms.items()},
      "share_of_floor": {name: _quartiles(s) for name, s in share.items()},
    },
    "processor_ms": {
      name: round(float(np.median([s.processor_ms for s in own])), 4)
      for name, own in taken.items()
    },
    "peak_bytes": {
      n: max(s.peak_bytes for s in own) for n, own in taken.items()
    },
    "busy_samples": {
      name: sum(s.others > config.busy for s in own)
      for name, own in taken.items()
    },
    "engine": best,
    "tokens_per_second": round(1e3 * sizes["B"] / median[best]),
    "matmul_tflops": round(work, 3),
    "adam_gb_per_second": round(moved, 1),
  }


def _medians(values: dict[str, np.ndarray]) -> dict[str, float]:
  return {name: round(float(np.median(v)), 4) for name, v in values.items()}


def _quartiles(values: np.ndarray) -> list[float]:
  return [round(float(q), 4) for q in np.quantile(values, [0.25, 0.75])]


def print_table(result: dict[str, Any]) -> None:
  """Prints a line per contender."""
  ours, ms = result["engine"], result["ms"]
  print(
    f"{'':30s}{'ms':>10s}{'quartiles':>20s}{'to ours':>9s}{'cpu ms':>10s}"
    f"{'peak MB':>9s}  busy"
  )
  for name, each in ms.items():
    low, high = result["quartiles"]["ms"][name]
    peak = result["peak_bytes"][name] / 2**20
    print(
      f"{name:30s}{each:10.2f}{low:10.2f}{high:10.2f}{each / ms[ours]:9.2f}"
      f"{result['processor_ms'][name]:10.2f}{peak:9.0f}{result['busy_samples'][name]:6d}"
    )
  for name, share in result["share_of_floor"].items():
    print(f"{name}: {share:.0%} of the floor's speed")
  for name, why in result["absent"].items():
    print(f"{name} is absent: {why}")
