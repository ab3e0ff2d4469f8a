"""Named folds: exact changes of a record's parameters, computed in float64.

    prep           an affine prep into the weights: latents keep their values
    scales         x s_in at the input and 1 / s_out at the output, likewise
    raw_units      the same with latents in the units of x: 1 / s_in times
    decoder_norms  decoder rows to unit norm: latents are |w| times as large
    subtract       whether b_dec is subtracted before encoding
    gate           a gate as thresholds
    threshold      ReLU as thresholds 0

Each returns a new record and raises an InputError, `fold=...`, where it would
not be exact.
"""

import dataclasses

import numpy as np

from saejax.errors import InputError
from saejax.interop import kinds
from saejax.interop.record import Prep, Record

NORM_EPS = 1e-8  # smallest norm of a decoder row, as in SAELens


def prep(record: Record) -> Record:
  """Folds an affine prep, so that the record takes raw rows.

  With u = (x - m) / s: W_enc / s, s W_dec, s b_dec + m; without b_dec
  subtracted also b_enc - (m / s) W_enc^T.

  Args:
    record: the record.

  Raises:
    InputError: the prep depends on each row.
  """
  if record.prep.kind == "none":
    return record
  if record.prep.kind != "affine":
    raise InputError(
      "fold",
      record.prep.kind,
      "depends on each row and cannot be folded into weights",
      "choose a format that keeps it: saelens",
    )
  m, s = np.asarray(record.prep.centre, np.float64), record.prep.scale
  shift = 0.0 if record.subtract_b_dec else _wide(record.W_enc) @ (m / s)
  centred = record.replace(
    b_enc=kinds.float32(_wide(record.b_enc) - shift), prep=Prep()
  )
  if np.any(shift) and isinstance(record.kind, kinds.Gate):
    centred = _shifted_gate(centred, record, shift)
  found = scales(centred, 1 / s, 1 / s)
  return found.replace(b_dec=kinds.float32(_wide(found.b_dec) + m))


def _shifted_gate(centred: Record, record: Record, shift) -> Record:
  kind = record.kind
  assert isinstance(kind, kinds.Gate)
  b_mag = _wide(record.b_enc) - np.exp(_wide(kind.r_mag)) * shift
  gate = kinds.Gate(kinds.float32(_wide(kind.b_gate) - shift), kind.r_mag)
  return centred.replace(b_enc=kinds.float32(b_mag), kind=gate)


def scales(record: Record, s_in: float, s_out: float) -> Record:
  """Folds a factor of the input and one of the output's target.

  W_enc s_in, W_dec / s_out, b_dec / s_out, W_skip s_in / s_out; b_enc and
  thresholds stay.

  Args:
    record: the record, of rows s_in x and a target of s_out y.
    s_in, s_out: the factors; equal unless it is a transcoder.

  Raises:
    InputError: b_dec is subtracted and the factors differ, or the activation
      depends on the scale.
  """
  if record.subtract_b_dec and s_in != s_out:
    rule = "must be one factor where b_dec is subtracted from the input"
    raise InputError("fold", f"{s_in}, {s_out}", rule, "correct the scales")
  if isinstance(record.kind, kinds.Pursuit) and s_in != 1:
    record.kind.scaled(np.full((record.n,), s_in))
  skip = record.W_skip
  return record.replace(
    W_enc=kinds.float32(_wide(record.W_enc) * s_in),
    W_dec=kinds.float32(_wide(record.W_dec) / s_out),
    b_dec=kinds.float32(_wide(record.b_dec) / s_out),
    W_skip=None if skip is None else kinds.float32(_wide(skip) * s_in / s_out),
  )


def decoder_norms(record: Record) -> Record:
  """Folds the norms c of decoder rows: c W_enc, c b_enc, c theta, W_dec / c.

  Reconstructions stay; latents are c times as large.

  Args:
    record: the record.

  Raises:
    InputError: latents are ranked by a alone, so that others would be kept.
  """
  c = np.maximum(np.linalg.norm(_wide(record.W_dec), axis=1), NORM_EPS)
  if not isinstance(record.kind, kinds.TopK) or record.kind.rank != "norm":
    return latents(record, c)
  kind = dataclasses.replace(record.kind, rank="value")
  return latents(record.replace(kind=kinds.Relu()), c).replace(kind=kind)


def latents(record: Record, c: np.ndarray) -> Record:
  """Multiplies latents by factors: c W_enc, c b_enc, c theta, W_dec / c.

  Args:
    record: the record.
    c: positive factors [n].

  Raises:
    InputError: latents are ranked by a alone, and the factors differ.
  """
  return record.replace(
    W_enc=kinds.float32(_wide(record.W_enc) * c[:, None]),
    b_enc=kinds.float32(_wide(record.b_enc) * c),
    W_dec=kinds.float32(_wide(record.W_dec) / c[:, None]),
    kind=record.kind.scaled(c),
  )


def raw_units(record: Record, s_in: float, s_out: float) -> Record:
  """Folds factors of input and target, and gives latents the units of x.

  As Llama Scope does on loading: b_enc / s_in, b_dec / s_out,
  W_dec s_in / s_out, theta / s_in.

  Args:
    record: the record, of rows s_in x and a target of s_out y.
    s_in, s_out: the factors.

  Raises:
    InputError: as for `scales`.
  """
  return latents(scales(record, s_in, s_out), np.full((record.n,), 1 / s_in))


def subtract(record: Record, on: bool) -> Record:
  """Sets whether b_dec is subtracted: b_enc +- W_enc b_dec.

  Args:
    record: the record.
    on: whether it is to be subtracted.

  Raises:
    InputError: the record is a transcoder, or a matching pursuit.
  """
  if record.subtract_b_dec == on:
    return record
  if isinstance(record.kind, kinds.Pursuit) and np.any(record.b_dec):
    rule = "subtracts b_dec or has none"
    raise InputError("fold", "matching pursuit", rule, "keep it")
  sign = 1.0 if on else -1.0
  shift = sign * (_wide(record.W_enc) @ _wide(record.b_dec))
  moved = record.replace(subtract_b_dec=on)
  if isinstance(record.kind, kinds.Gate):
    return _shifted_gate(moved, record, -shift)
  return moved.replace(b_enc=kinds.float32(_wide(record.b_enc) + shift))


def gate(record: Record) -> Record:
  """Turns a gate into thresholds.

  exp(r_mag) W_enc, b_mag, theta = b_mag - exp(r_mag) b_gate.

  Args:
    record: the record; returned unchanged unless it has a gate.
  """
  kind = record.kind
  if not isinstance(kind, kinds.Gate):
    return record
  r = np.exp(_wide(kind.r_mag))
  theta = _wide(record.b_enc) - r * _wide(kind.b_gate)
  return record.replace(
    W_enc=kinds.float32(_wide(record.W_enc) * r[:, None]),
    kind=kinds.Threshold(kinds.float32(theta)),
  )


def threshold(record: Record) -> Record:
  """Gives the record strict thresholds: of a gate, or 0 for ReLU.

  Args:
    record: the record; a kind without such a form stays.
  """
  record = gate(record)
  if isinstance(record.kind, kinds.Relu):
    return record.replace(kind=kinds.Threshold(np.zeros_like(record.b_enc)))
  if isinstance(record.kind, kinds.Threshold):
    return record.replace(kind=record.kind.strictly())
  return record


def _wide(values: np.ndarray) -> np.ndarray:
  return np.asarray(values, np.float64)
