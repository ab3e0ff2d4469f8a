"""Trains one TopK SAE with saejax on given rows; for `outcome.py`.

Request and answer as in `outcome_peers.py`, and beside them: `passes` over the
rows, and null for `batch_rows` and `rate` stands for the defaults of
`saejax.fit`. The seconds are those of the whole call, with compiling.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import saejax
from saejax.training.config import TrainConfig


def run(request: dict[str, Any]) -> dict[str, Any]:
  rows, held = (np.load(request[name]) for name in ("train", "held_out"))
  size = request["batch_rows"] or TrainConfig.batch_rows
  each = len(rows) // size

  def batches() -> Iterator[np.ndarray]:
    for _ in range(request["passes"]):
      yield from np.split(rows[: each * size], each)

  start = time.perf_counter()
  sae, metrics = saejax.fit(
    batches(),
    "topk",
    n=request["n"],
    k=request["k"],
    held_out=held,
    steps=each * request["passes"],
    batch_rows=size,
    learning_rate=request["rate"],
    seed=request["seed"],
    progress=False,
  )
  seconds = time.perf_counter() - start
  np.save(request["out"], np.concatenate([sae(x) for x in _parts(held)]))
  return {"seconds": seconds, "dead": float(metrics.dead)}


def _parts(x: np.ndarray) -> list[np.ndarray]:
  return np.split(x, range(4096, len(x), 4096))


if __name__ == "__main__":
  print(json.dumps(run(json.loads(sys.stdin.readline()))), flush=True)
