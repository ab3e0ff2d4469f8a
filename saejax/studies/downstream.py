"""Evaluates the SAEs of a grid in the model, for the report of a run.

  run_dir/downstream/
    tokens-16384.json   measures of each SAE, which a repeated run reads
    0123456789abcdef/   sums, from which a killed evaluation is resumed

The measures are those of `saejax evaluate` on as many tokens. They follow from the
trained SAEs and change none of them, so that they can be added to a finished run.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from saejax import durable
from saejax.data import spec
from saejax.errors import InputError
from saejax.evals import core, in_model
from saejax.report import results
from saejax.runs import evaluation, grid, latents
from saejax.sae import files
from saejax.studies import evaluate

FOLDER = "downstream"
KINDS = (core.ZERO, core.MEAN, core.PCA, core.RANDOM)
_FIELDS = {  # names in an evaluation -> names of a run
  "tokens": "downstream_tokens",
  "dir": "run_dir",
  "model": "harvest.model",
  "corpus": "harvest.corpus",
}


def check(
  run_dir: str | pathlib.Path, harvest: spec.HarvestConfig, tokens: int
) -> None:
  """Checks, before anything is trained, that SAEs of a site can be evaluated.

  Args:
    run_dir: folder of the run; what was evaluated there is not checked again.
    harvest: model, site and text.
    tokens: number of held-out tokens.

  Raises:
    InputError: the harvest has several sites, the model has no head, or the text
      is too short.
  """
  _settings(pathlib.Path(run_dir), ["sae"], harvest, tokens)
  if _file(pathlib.Path(run_dir), tokens).exists():
    return
  try:
    job = evaluation.job(harvest, tokens, {}, {})
    if job.model.causal:
      in_model.check(job.model)
  except InputError as error:
    raise _renamed(error) from error


def measure(
  sweep: grid.Grid,
  points: Sequence[Mapping[str, Any]],
  harvest: spec.HarvestConfig,
  tokens: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Evaluates every SAE in the model, or reads what was measured before.

  Args:
    sweep: the grid, trained.
    points: its points; SAEs that failed are left out.
    harvest: model, site and text.
    tokens: number of held-out tokens.

  Returns:
    (points with the measures of `flat`; facts of the evaluation: tokens asked
    for, tokens and documents or windows that are counted, clean loss).

  Raises:
    InputError: an SAE cannot be evaluated, a file is damaged, or the disk is full.
      What was trained and measured is kept.
  """
  good = [p for p in points if (p.get("status") or "ok") == "ok"]
  if not good:
    return [dict(p) for p in points], {"tokens_asked": tokens}
  places = latents.folders(sweep, points)
  saes = [places[id(point)] for point in good]
  key = _key(sweep, saes, tokens)
  file = _file(sweep.path, tokens)
  remedy = "remove it and repeat the same command"
  known = file.exists() and durable.read_sealed(
    file, field="run_dir", remedy=remedy
  )
  if not known or known["key"] != key:
    known = {"key": key, **_evaluated(sweep.path, saes, harvest, tokens)}
    durable.write_sealed(file, known, field="run_dir")
  of_point = {
    id(p): own for p, own in zip(good, known["measures"], strict=True)
  }
  return [{**p, **of_point.get(id(p), {})} for p in points], known["facts"]


def flat(record: Mapping[str, Any]) -> dict[str, float | None]:
  """The measures of an SAE and its controls, by one name each.

  ce_increase and ce_recovered with _low and _high, the ends of the 95 % interval,
  of a language model; cosine_distance and neighbours_kept of an embedding model.
  Those of a control end in _zero, _mean, _pca or _random.

  Args:
    record: one of `core.Core.records`.
  """
  found: dict[str, Any] = {}
  given = {"": record["model"]} | {
    f"_{kind}": record["controls"][kind]
    for kind in KINDS
    if kind in record["controls"]
  }
  for end, values in given.items():
    if "cosine" in values:
      found[f"cosine_distance{end}"] = 1 - values["cosine"]
      found[f"neighbours_kept{end}"] = values["retrieval"]
      continue
    for name in ("ce_increase", "ce_recovered"):
      found[name + end] = values[name]
      if not end and f"{name}_interval" in values:
        low, high = values[f"{name}_interval"]
        found |= {f"{name}_low": low, f"{name}_high": high}
  return results.plain(found)


def _evaluated(
  run_dir: pathlib.Path,
  saes: Sequence[pathlib.Path],
  harvest: spec.HarvestConfig,
  tokens: int,
) -> dict[str, Any]:
  """The measures of each SAE, in order, and facts of the evaluation."""
  names = [str(path) for path in saes]
  settings = _settings(run_dir, names, harvest, tokens)
  try:
    records, _, _ = evaluate.evaluate(settings)
  except InputError as error:
    raise _renamed(error) from error
  whole = records[names[0]]["model"]
  shared = ("tokens", "documents", "windows", "clean")
  facts = {name: whole[name] for name in shared if name in whole}
  return {
    "measures": [flat(records[name]) for name in names],
    "facts": results.plain({"tokens_asked": tokens, **facts}),
  }


def _settings(
  run_dir: pathlib.Path,
  saes: Sequence[str],
  harvest: spec.HarvestConfig,
  tokens: int,
) -> evaluate.Config:
  return evaluate.Config(
    sae=tuple(saes), harvest=harvest, tokens=tokens, dir=str(run_dir / FOLDER)
  )


def _file(run_dir: pathlib.Path, tokens: int) -> pathlib.Path:
  return run_dir / FOLDER / f"tokens-{tokens}.json"


def _key(
  sweep: grid.Grid, saes: Sequence[pathlib.Path], tokens: int
) -> dict[str, Any]:
  """What the measures depend on; the run's identity has the rest."""
  return {
    "version": evaluate.VERSION,
    "tokens": tokens,
    "held_out": sweep.held_out.content,
    "saes": [
      durable.checksum(path / file)[1]
      for path in saes
      for file in (files.STRUCTURE, files.ARRAYS)
    ],
  }


def _renamed(error: InputError) -> InputError:
  """The error with the name of the run's setting."""
  return error.renamed(_FIELDS.get(error.field, error.field))
