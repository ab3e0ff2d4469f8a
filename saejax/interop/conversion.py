"""Converts between formats, with a certificate of parity beside the result."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from saejax import durable, machine
from saejax.errors import InputError
from saejax.interop import (
  certificate,
  folds,
  formats,
  kinds,
  names,
  native,
  publish,
  torch_writer,
)
from saejax.interop import record as records
from saejax.interop.certificate import Rows
from saejax.interop.formats import Lossy
from saejax.interop.record import Record
from saejax.sae import convert as sae_convert

LOSSES = {
  "threshold": "ranked latents become thresholds estimated from the rows",
  "layer_norm_eps": "a layer norm is undone without its epsilon",
}


def convert(
  name: str,
  output: str | pathlib.Path,
  format: str,
  *,
  source: str | None = None,
  allow_lossy: Collection[str] = (),
  unit_decoder: bool = False,
  rows: Rows | None = None,
  k: int | None = None,
  scale: float | None = None,
) -> dict[str, Any]:
  """Writes published weights, or a saved SAE, in another format.

  Args:
    name: what is read: see `names.load`.
    output: the folder, replaced where it is an earlier conversion.
    format: "saejax", or one of `formats.writable()`.
    source: format of what is read; by default the one that it matches.
    allow_lossy: names in `LOSSES` of what may be lost.
    unit_decoder: whether decoder rows are given unit norm, and latents the
      units of the output.
    rows: rows for the certificate, and for thresholds; by default random ones.
    k, scale: as for `names.load`.

  Returns:
    The certificate, which is also in the folder as certificate.json.

  Raises:
    InputError: it cannot be read, the format has no form of it, something would
      be lost, or the written files do not give the same latents and outputs.
      Nothing is written.
  """
  _check(output, format, allow_lossy)
  found = names.read(name, format=source, k=k, scale=scale)
  record = _as_asked(found.record, unit_decoder, k)
  given = rows or certificate.random_rows(record)
  with _draft(pathlib.Path(output)) as draft:
    lost = _write(record, format, allow_lossy, rows, draft)
    content = _certificate(found, draft, format, given, lost)
    durable.write_sealed(draft / publish.CERTIFICATE, content, field="output")
  return content


def _certificate(
  found: names.Found,
  draft: pathlib.Path,
  format: str,
  rows: Rows,
  lost: list[str],
) -> dict[str, Any]:
  """Compares the source with saejax and with the written files.

  Raises:
    InputError: they differ, and nothing was to be lost.
  """
  written = names.read(draft, format=format)
  if found.record.transcoder != written.record.transcoder:
    rule = f"cannot say that transcoder is {found.record.transcoder}"
    raise InputError("format", format, rule, "choose saelens")
  factor = _factor(found.record, written.record)
  want, record = found.forward(), found.record
  ours = certificate.compare(
    want, native.running(record.to_sae()), record, rows
  )
  theirs = certificate.compare(
    want, written.forward(), record, rows, factor=factor
  )
  bad = [p for p in (ours, theirs) if not p.holds]
  if not ours.holds or (bad and not lost):
    rule = f"must keep latents and outputs to {certificate.TOLERANCE:g}, not "
    rule += str(dataclasses.asdict(bad[0]))
    raise InputError("input", record.source.name, rule, "report this")
  return {
    "source": {"format": found.format, "name": record.source.name},
    "folds": list(record.source.folds),
    "format": format,
    "rows": dict(rows.about),
    "tolerance": certificate.TOLERANCE,
    "lossy": lost,
    "latents": "times the norms of decoder rows" if np.ndim(factor) else "same",
    "in_saejax": dataclasses.asdict(ours),
    "written": dataclasses.asdict(theirs),
    "version": machine.version(),
  }


def _check(
  output: str | pathlib.Path, format: str, allow_lossy: Collection[str]
) -> None:
  known = [names.NATIVE, *formats.writable()]
  if format not in known:
    rule = f"must be one of {', '.join(known)}"
    raise InputError("format", format, rule, "choose one")
  for loss in allow_lossy:
    if loss not in LOSSES:
      rule = f"must be among {', '.join(LOSSES)}"
      raise InputError("allow_lossy", loss, rule, "correct it")
  path = pathlib.Path(output)
  if path.exists() and not (path / publish.CERTIFICATE).is_file():
    rule = "must be a new folder, or an earlier conversion"
    raise InputError("output", output, rule, "name another folder")


def _as_asked(record: Record, unit_decoder: bool, k: int | None) -> Record:
  if unit_decoder:
    if record.prep.kind == "affine":  # whose scale the rows would get later
      record = folds.prep(record)
    record = folds.decoder_norms(record)
  if k is not None and isinstance(record.kind, kinds.Threshold):
    kind = dataclasses.replace(record.kind, k=k)  # what chose the thresholds
    record = record.replace(kind=kind)
  return record


def _factor(before: Record, after: Record) -> Any:
  """What latents were multiplied by: the norms that decoder rows lost."""
  norms = [
    np.linalg.norm(np.float64(record.W_dec), axis=1) * record.prep.scale
    for record in (before, after)
  ]
  factor = norms[0] / np.where(norms[1] > 0, norms[1], 1)
  factor = np.where(factor > 0, factor, 1)
  return 1.0 if np.allclose(factor, 1, rtol=1e-4) else factor


def _write(
  record: Record,
  format: str,
  allow_lossy: Collection[str],
  rows: Rows | None,
  draft: pathlib.Path,
) -> list[str]:
  """Writes the files, and returns what was lost."""
  lost = []
  while True:
    try:
      _save(record, format, draft)
      return lost
    except Lossy as error:
      if error.loss not in allow_lossy:
        raise
      record = _LOSE[error.loss](record, rows)
      lost.append(error.loss)


def _without_ranks(record: Record, rows: Rows | None) -> Record:
  if rows is None:
    rule = "needs rows of the site, from which thresholds are estimated"
    raise InputError("rows", "", rule, "pass a store or .npy file of rows")
  sae = sae_convert.to_jumprelu(record.to_sae(), jnp.asarray(rows.x))
  return records.from_sae(sae, site=record.site, name=record.source.name)


def _without_eps(record: Record, rows: Rows | None) -> Record:
  del rows
  return record.replace(prep=dataclasses.replace(record.prep, undo_eps=0.0))


_LOSE = {"threshold": _without_ranks, "layer_norm_eps": _without_eps}


# --- files -------------------------------------------------------------------


@contextlib.contextmanager
def _draft(output: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder that takes the output's name if all goes well."""
  draft = output.with_name(f".{output.name}.draft")
  before = output.with_name(f".{output.name}.before")
  with durable.disk_errors(output.parent, field="output", what=output.name):
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
      yield draft
      for path in draft.rglob("*"):
        if path.is_file():
          durable.sync_file(path)
      shutil.rmtree(before, ignore_errors=True)
      if output.exists():
        output.rename(before)
      draft.rename(output)
      durable.sync_folder(output.parent)
    finally:
      shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)


def _save(record: Record, format: str, folder: pathlib.Path) -> None:
  if format == names.NATIVE:
    native.save(record, folder)
    return
  for name, content in formats.get(format).write(record).items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    _WRITERS[path.suffix](path, content)


def _json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  text = json.dumps(content, indent=2, allow_nan=False) + "\n"
  path.write_text(text)


def _safetensors(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  arrays = {name: np.asarray(a, order="C") for name, a in content.items()}
  safetensors.save_file(arrays, path)


def _npz(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  np.savez(path, **content)


_WRITERS = {
  ".json": _json,
  ".safetensors": _safetensors,
  ".npz": _npz,
  ".pt": torch_writer.write,
}
