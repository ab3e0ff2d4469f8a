"""Processor seconds to compile a model's forward pass, by number of layers.

  python benchmarks/scan_compile.py --write=benchmarks/results/scan-compile.json

A Gemma 2 model of random weights (windows in every second layer, soft caps), its
layers unrolled or scanned (`Model.scanned`): the whole forward pass, one that
reads the residual stream after the middle layer, and one that rewrites the
output of its MLP. Medians over rounds, with compilation caches off.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from saejax import config, durable, machine
from saejax.models import config_file, lazy, taps, weights
from saejax.models import model as model_lib

LAYERS = (2, 8, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes and rounds."""

  d: int = 128  # width of the model
  tokens: int = 64  # tokens per row, of 2 rows
  rounds: int = 5  # compilations of each program
  write: str = ""  # JSON file to write the seconds to


class Drawn(weights.Weights):
  """Random tensors of any name and shape."""

  def __init__(self):
    super().__init__(pathlib.Path(), {}, jnp.dtype(jnp.float32))
    self._rng = np.random.default_rng(0)

  def strip_prefix(self, anchor: str, *prefixes: str) -> None:
    """Does nothing."""

  def stored(self, name: str, *shape: int, absolute: bool = False) -> lazy.Lazy:
    """Draws a tensor, see `Weights.stored`."""
    tensor = 0.1 * self._rng.standard_normal(shape, np.float32)
    return lazy.Lazy(shape, lambda part: tensor[part])


def drawn(layers: int, d: int) -> model_lib.Model:
  """A model of random weights.

  Args:
    layers: number of layers.
    d: width.
  """
  values = {
    "model_type": "gemma2",
    "vocab_size": 256,
    "hidden_size": d,
    "num_hidden_layers": layers,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": d // 4,
    "intermediate_size": 4 * d,
    "sliding_window": 16,
  }
  family = model_lib.FAMILIES["gemma2"]
  file = config_file.ConfigFile(pathlib.Path(), values)
  settings = family.read_config(file)
  params = family.read_params(Drawn(), settings)
  return model_lib.Model(params=params, config=settings, name="random")


def programs(model: model_lib.Model, tokens: int) -> dict[str, Callable]:
  """Functions of the model that are compiled.

  Args:
    model: the model.
    tokens: tokens per row.
  """
  ids, mask = jnp.ones((2, tokens), jnp.int32), jnp.ones((2, tokens), bool)
  at = model.layers // 2
  edits = {f"layers.{at}.mlp_out": lambda h: 2 * h}
  return {
    "forward": lambda m: m(ids, mask),
    "read": lambda m: taps.read(m, ids, mask, [f"layers.{at}.resid_post"]),
    "rewrite": lambda m: taps.write(m, ids, mask, edits),
  }


def seconds(function: Callable, model: model_lib.Model) -> float:
  """Processor seconds to trace, lower and compile.

  Args:
    function: a function of the model.
    model: the model.
  """
  jax.clear_caches()
  start = time.process_time()
  jax.jit(function).lower(model).compile()
  return time.process_time() - start


def main(chosen: Config) -> None:
  jax.config.update("jax_enable_compilation_cache", False)
  rows = []
  for layers in LAYERS:
    unrolled = drawn(layers, chosen.d)
    for form, model in (
      ("unrolled", unrolled),
      ("scanned", unrolled.scanned()),
    ):
      row = {"layers": form, "number": layers}
      for name, function in programs(model, chosen.tokens).items():
        each = [seconds(function, model) for _ in range(chosen.rounds)]
        row[f"{name}, s"] = round(float(np.median(each)), 3)
      rows.append(row)
      print(row, flush=True)
  if chosen.write:
    sizes = {"d": chosen.d, "tokens": chosen.tokens, "rounds": chosen.rounds}
    result = {"environment": machine.environment(), "sizes": sizes}
    text = json.dumps(result | {"rows": rows}, indent=1) + "\n"
    durable.write_file(pathlib.Path(chosen.write), text.encode(), field="write")


if __name__ == "__main__":
  config.run(main, Config)
