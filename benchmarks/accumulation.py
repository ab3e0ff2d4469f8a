"""Every method with its batch in parts: equal to the whole batch, or refused.

  python benchmarks/accumulation.py --write=benchmarks/results/accumulation.json

Each method of the catalogue takes the steps of agreement.py, whose last ones have dead
latents and AuxK, with whole batches and with batches in 4 parts (--train.accumulate).
A difference is the largest of those of loss, gradients and update over the tolerances
of agreement.py. Methods that draw noise for each row draw other noise in parts. Exits
with 1 where another method differs.
"""

import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks import agreement, agreement_cases
from saejax import config as flags
from saejax import machine
from saejax.errors import InputError
from saejax.recipes import catalogue
from saejax.training import passes

PARTS = 4
DRAWN = ("vsae",)  # methods with noise for each row
# More points than a batch has rows.
POINTS = np.random.default_rng(4).standard_normal(
  (agreement_cases.SIZES.n, agreement_cases.SIZES.d), np.float32
)
MORE: dict[str, dict[str, Any]] = {"ra_sae": {"points": POINTS}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is compared."""

  methods: tuple[str, ...] = tuple(catalogue.METHODS)
  write: str = ""  # JSON file to write the rows to


def compared(name: str) -> dict[str, Any]:
  """The row of a method.

  Args:
    name: name in the catalogue.
  """
  more = MORE.get(name, {})
  with jax.default_matmul_precision("highest"):
    try:
      got = agreement.outcome(name, accumulate=PARTS, **more)
    except InputError as error:
      if error.field != passes.FLAG:
        raise
      why = error.rule.split(f"{name} ", 1)[-1]
      return {"method": name, "in parts": f"refused: {why}", "difference": None}
    found = agreement.differences(got, agreement.outcome(name, **more))
  if name in DRAWN:
    return {"method": name, "in parts": "other draws", "difference": None}
  worst = max(v / agreement.TOLERANCES[k] for k, v in found.items())
  kind = "equal" if worst <= 1 else "DIFFERS"
  return {"method": name, "in parts": kind, "difference": f"{worst:.2f}"}


def main(config: Config) -> None:
  rows = []
  for name in config.methods:
    rows.append(compared(name))
    print(*rows[-1].values(), sep="\t", flush=True)
    if config.write:
      about = {"parts": PARTS, "date": time.strftime("%Y-%m-%d")}
      about |= {"machine": machine.environment(), "methods": rows}
      text = json.dumps(about, indent=1) + "\n"
      pathlib.Path(config.write).write_text(text)
  sys.exit(any(row["in parts"] == "DIFFERS" for row in rows))


if __name__ == "__main__":
  flags.run(main, Config)
