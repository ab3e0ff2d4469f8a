"""SAEs of one site in the model and on the text that they are evaluated in."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from saejax import models
from saejax.data import spec
from saejax.data.text import corpus as text
from saejax.data.text import rows, windows
from saejax.errors import InputError
from saejax.evals import core_controls
from saejax.interop import names
from saejax.models import taps
from saejax.sae import files
from saejax.sae.sae import SAE

SAES = "saes"  # folder of a run's SAEs


class Job(NamedTuple):
  """What SAEs are evaluated in.

  Attributes:
    model: the model.
    meta: identity of the model and the site.
    site: name of the site that SAEs reconstruct.
    source: that of the site that transcoders read, or "".
    train, held_out: the text.
  """

  model: models.Model
  meta: Mapping[str, Any]
  site: str
  source: str
  train: rows.TextRows
  held_out: rows.TextRows


def job(
  harvest: spec.HarvestConfig,
  tokens: int,
  saes: Mapping[str, SAE],
  about: Mapping[str, Mapping[str, Any]],
) -> Job:
  """Loads the model once, after all checks that need only its settings.

  Args:
    harvest: model, site, devices, corpus and rules for rows.
    tokens: number of rows of each part of the text.
    saes: SAEs by name.
    about: what was saved with each.

  Raises:
    InputError: an SAE is of another model or site, or as `core_controls.check`;
      or the settings are invalid.
  """
  chosen = dataclasses.replace(harvest, rows=tokens, held_out_rows=tokens)
  source, target = spec.subject_of(chosen), spec.target(chosen)
  for name, known in about.items():
    check_site(name, known, source.meta, target and target.meta)
  site = own = source.meta["site"]["name"]
  if target is not None:
    site = target.meta["site"]["name"]
  width = source.d if target is None else target.d
  core_controls.check(saes, source.d, width, source=own if target else "")
  model = models.load(chosen.model, mesh=spec.mesh_of(chosen))
  source = dataclasses.replace(source, forward=_reads(model, own))
  if target is not None:
    target = dataclasses.replace(target, forward=_reads(model, site))
  corpus = spec.corpus_of(chosen)
  parts = []
  for part in (text.TRAIN, text.HELD_OUT):
    meta = spec.meta(chosen, part, source=source, corpus=corpus, target=target)
    parts.append(rows.TextRows(chosen, source, corpus, part, meta, target))
    _check_tokens(parts[-1])
  return Job(model, source.meta, site, own if target else "", *parts)


def saes(
  given: Sequence[str],
) -> Iterator[tuple[str, tuple[SAE, dict[str, Any]]]]:
  """Yields SAEs by name, with what saejax saved about them.

  Args:
    given: saved or published SAEs as for `saejax.load`, or folders of runs, which
      stand for all their SAEs.

  Raises:
    InputError: as `saejax.load`.
  """
  for one in given:
    folder = pathlib.Path(one).expanduser()
    if (folder / SAES).is_dir():
      for path in sorted((folder / SAES).iterdir()):
        label = path.name if len(given) == 1 else str(path)
        yield label, (names.load(path), files.about(path))
    else:
      saved = (folder / files.STRUCTURE).exists()
      yield one, (names.load(one), files.about(folder) if saved else {})


def _check_tokens(part: rows.TextRows) -> None:
  """Refuses fewer tokens than a document has, before the model runs."""
  try:
    _ = part.documents
  except InputError as error:
    if error.field in ("harvest.rows", "harvest.held_out_rows"):
      raise error.renamed("tokens") from error
    raise


def _reads(model: models.Model, site: str) -> Callable:
  """The forward pass of a `Subject`, on a model that is loaded once."""

  def forward(ids, mask):
    return taps.read(model, ids, mask, [site])[site].reshape(*ids.shape, -1)

  return forward


def check_site(
  name: str,
  about: Mapping[str, Any],
  meta: Mapping[str, Any],
  target: Mapping[str, Any] | None = None,
) -> None:
  """Refuses an SAE of another model or site, where it says which.

  Args:
    name: of the SAE.
    about: what was saved with it.
    meta: identity of the model and the site, of a `Subject`.
    target: that of the site that a transcoder writes.

  Raises:
    InputError: the weights of the model, the layer or the point differ.
  """
  written = about.get("target")
  if written and target is None:
    raise InputError(
      "harvest.target_point",
      "",
      f"must be that of {name}, a transcoder to {written.get('name')}",
      f"give --harvest.target_point={written.get('point')}",
    )
  ours_of = {"model": meta.get("model"), "site": meta.get("site")}
  ours_of["target"] = (target or {}).get("site")
  pairs = (
    ("model", ("weights",), "harvest.model"),
    ("site", ("layer", "point"), "harvest.layer"),
    ("target", ("layer", "point"), "harvest.target_point"),
  )
  for part, keys, field in pairs:
    theirs, ours = about.get(part) or {}, ours_of[part] or {}
    for key in keys if ours else ():
      if key in theirs and theirs[key] != ours.get(key):
        raise InputError(
          field,
          ours.get(key),
          f"must be that of the SAE {name}, {key} {theirs[key]} of "
          f"{theirs.get('name', part)}",
          "give its model and site, or other SAEs",
        )


def training(
  job: Job,
  saes: Mapping[str, SAE],
  tokens: int,
  *,
  progress: Callable[[int], None] = lambda rows: None,
) -> core_controls.Training:
  """Computes the facts of training rows at the site.

  Args:
    job: model, site and text.
    saes: SAEs by name.
    tokens: number of rows.
    progress: called with the number of rows so far.
  """
  limit = float(job.train.limits(job.train.prepare(None))[0])
  names_ = [job.source, job.site] if job.source else [job.site]
  found: dict[str, list[np.ndarray]] = {name: [] for name in names_}
  count = 0
  for batch in job.train.batches():
    read = taps.read(job.model, batch.ids, batch.mask, names_)
    near = None
    for name in names_:
      x = np.asarray(read[name], np.float32)
      x = x.reshape(*batch.ids.shape, -1)[batch.keep]
      if near is None:  # the site that SAEs read
        near = np.linalg.norm(x, axis=-1) <= limit
      found[name].append(x[near])
    count += len(found[names_[0]][-1])
    progress(count)
    if count >= tokens:
      break
  x = np.concatenate(found[names_[0]])
  target = np.concatenate(found[job.site]) if job.source else None
  return core_controls.training(saes, x, target, limit=limit)


def taken(part: rows.TextRows, tokens: int) -> Iterator[windows.Batch]:
  """Yields the first forward batches that have so many rows.

  Args:
    part: the text.
    tokens: number of rows; outliers count, so that the model need not run.
  """
  count = 0
  for batch in part.batches():
    yield batch
    count += int(batch.keep.sum())
    if count >= tokens:
      return
