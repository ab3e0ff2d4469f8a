"""What step.py reports of the milliseconds that contenders took."""

import dataclasses
from typing import Any

import numpy as np
import peers


def summary(
  config, sizes, dtype: str, taken: dict[str, list[float]]
) -> dict[str, Any]:
  """Medians and quartiles; ratios are taken within rounds."""
  ours = np.array(taken[config.engines[0]])
  ratio = {name: np.array(ms) / ours for name, ms in taken.items()}
  peer_names = [n for n in taken if n.removesuffix("+malloc") in peers.BUILDERS]
  plain = [n for n in peer_names if not n.endswith("+malloc")]
  tuned = [n for n in peer_names if n.endswith("+malloc")]
  median = {name: float(np.median(ms)) for name, ms in taken.items()}
  parameters = 2 * sizes.d * sizes.n
  bandwidth = 28 * parameters / median["adam"]  # bytes a millisecond
  rows = sizes.B * sizes.k * sizes.d
  formula = (
    median["matmul"]
    + (2 * rows + 4 * rows + 2 * sizes.n * sizes.d + 26 * parameters)
    / bandwidth
  )
  rate = 2 * sizes.B * sizes.d * sizes.n / median["matmul"]
  work = (2 * sizes.d * sizes.n + 8 * sizes.k * sizes.d) * sizes.B
  our_ms = float(np.median(ours))
  return {
    "ms": {name: round(ms, 4) for name, ms in median.items()},
    "ratio_dense": _median(ratio.get("dense")),
    "ratio_floor": _median(ratio["floor"]),
    "ratio_peers": {n: _median(ratio[n]) for n in plain},
    "ratio_peers_malloc": {
      n.removesuffix("+malloc"): _median(ratio[n]) for n in tuned
    },
    "quartiles": {
      "ms": {name: _quartiles(np.array(ms)) for name, ms in taken.items()},
      "ratio_dense": _quartiles(ratio.get("dense")),
      "ratio_floor": _quartiles(ratio["floor"]),
      "ratio_peers": {n: _quartiles(ratio[n]) for n in plain},
      "ratio_peers_malloc": {
        n.removesuffix("+malloc"): _quartiles(ratio[n]) for n in tuned
      },
    },
    "sizes": dataclasses.asdict(sizes),
    "dtype": dtype,
    "engine": config.engines[0],
    "rounds": config.rounds,
    "tokens_per_second": round(1e3 * sizes.B / our_ms),
    "formula_floor_ms": round(formula, 4),
    "ratio_formula_floor": round(formula / our_ms, 4),
    "utilisation": round(work / (rate * our_ms), 4),
    "matmul_tflops": round(rate / 1e9, 3),
    "adam_gb_per_second": round(bandwidth / 1e6, 1),
  }


def _median(values: np.ndarray | None) -> float | None:
  return None if values is None else round(float(np.median(values)), 4)


def _quartiles(values: np.ndarray | None) -> list[float] | None:
  if values is None:
    return None
  return [round(float(q), 4) for q in np.quantile(values, [0.25, 0.75])]


def print_table(result: dict[str, Any]) -> None:
  """Prints a line per contender."""
  ours = result["engine"]
  print(f"{'':28s}{'ms':>10s}{'quartiles':>20s}{'to ours':>10s}")
  for name, ms in result["ms"].items():
    low, high = result["quartiles"]["ms"][name]
    ratio = ms / result["ms"][ours]
    print(f"{name:28s}{ms:10.2f}{low:10.2f}{high:10.2f}{ratio:10.2f}")
  print(
    f"{result['tokens_per_second']:,} tokens/s, {result['ratio_floor']:.0%} of"
    f" the floor's speed, {result['ratio_formula_floor']:.0%} of the formula"
    f" floor's ({result['formula_floor_ms']:.2f} ms), utilisation"
    f" {result['utilisation']:.0%}"
  )
  for name, why in result["absent"].items():
    print(f"{name} is absent: {why}")
