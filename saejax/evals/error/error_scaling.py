"""How the error of SAEs, and its parts, change with the number of latents.

  law        FVU(W) = c + a W^m              of SAEs at one L0
  slope      of log FVU over log W           of the error, or of its nonlinear part
  per token  |e_big| ~ 1 + |e_small|         R^2, and with |nonlinear_small| too;
             gain = 100 (R^2_new - R^2) / (1 - R^2), per cent of what is left

Intervals are from resampled documents, the same ones for every SAE. The law is
fitted to log FVU by robust least squares (`power_laws`), where the paper fits FVU
by Adam: its three parameters have one optimum on three or more widths.

References:
  Engels et al., Decomposing The Dark Matter of Sparse Autoencoders, 2024,
  arXiv:2410.14670.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.evals import power_laws
from saejax.evals.error.dark_matter import Decomposition, Reconstruct
from saejax.evals.error.document_sums import Bootstrap, Estimate, Read, Scores
from saejax.evals.error.norm_prediction import square
from saejax.evals.error.normal_equations import NormalEquations

PARTS = ("error", "nonlinear", "linear")
LAW_RESAMPLES = 200  # refits of a law


@dataclasses.dataclass(frozen=True)
class Law:
  """FVU(W) = c + a W^m.

  Attributes:
    c: what no width explains.
    a, m: factor and exponent.
  """

  c: Estimate
  a: Estimate
  m: Estimate

  def predict(self, width: Float[np.ndarray, "*b"]) -> np.ndarray:
    """Computes the FVU.

    Args:
      width: numbers of latents.
    """
    width = np.asarray(width, np.float64)
    return self.c.value + self.a.value * width**self.m.value

  def record(self) -> dict[str, Any]:
    """[value, low, high] by name, for results.json."""
    return {
      k: list(v) for k, v in (("c", self.c), ("a", self.a), ("m", self.m))
    }


@dataclasses.dataclass(frozen=True)
class PerToken:
  """Prediction of the error's norm of a wide SAE from that of a narrow one.

  Attributes:
    r2: from the norm of the narrow SAE's error.
    with_nonlinear: from it and the norm of its nonlinear part.
    gain: per cent of what r2 leaves that the nonlinear part explains.
  """

  r2: Estimate
  with_nonlinear: Estimate
  gain: float

  def record(self) -> dict[str, Any]:
    """The numbers for results.json."""
    found = {"r2": list(self.r2), "gain": self.gain}
    return found | {"with_nonlinear": list(self.with_nonlinear)}


def law(
  widths: Sequence[int],
  found: Sequence[Decomposition],
  *,
  part: str = "error",
  bootstrap: Bootstrap = Bootstrap(resamples=LAW_RESAMPLES),
) -> Law:
  """Fits FVU = c + a W^m over the widths of SAEs.

  Args:
    widths: number of latents of each.
    found: decomposition of each, on the same held-out rows.
    part: "error", "nonlinear", or "linear" for the difference.
    bootstrap: how documents are resampled.

  Raises:
    InputError: there are fewer than three widths, or as `slope`.
  """
  every = _resampled(widths, found, part, bootstrap, least=3)
  log_W = np.log(np.asarray(widths, np.float64))
  fits = np.array([_law(log_W, fvu) for fvu in every])
  return Law(*(_interval(column) for column in fits.T))


def slope(
  widths: Sequence[int],
  found: Sequence[Decomposition],
  *,
  part: str = "nonlinear",
  bootstrap: Bootstrap = Bootstrap(),
) -> Estimate:
  """Fits the slope of log FVU over log W; 0 where a part does not change.

  Args:
    widths, found, part, bootstrap: as for `law`.

  Raises:
    InputError: there are fewer than two widths, other numbers of widths and
      decompositions, the part is unknown, or is not positive.
  """
  every = np.log(_resampled(widths, found, part, bootstrap, least=2))
  log_W = np.log(np.asarray(widths, np.float64))
  about = log_W - log_W.mean()
  return _interval(every @ about / (about @ about))


def per_token(
  small: tuple[Reconstruct, Float[np.ndarray, "d d"]],
  big: Reconstruct,
  train: Read,
  held_out: Read,
  *,
  bootstrap: Bootstrap = Bootstrap(),
) -> PerToken:
  """Predicts the norm of an SAE's error, per token, from that of a smaller SAE.

  Args:
    small: the smaller SAE's reconstruction, and the map A of its linear error.
    big: the larger SAE's reconstruction.
    train: reads the rows that maps are fitted on.
    held_out: reads the rows that they are evaluated on.
    bootstrap: how documents are resampled.

  Raises:
    InputError: there are no held-out rows.
  """
  fits = {count: NormalEquations(count, 1) for count in (1, 2)}
  for of_small, of_big, _ in _norms(small, big, train):
    for count, sums in fits.items():
      sums.add(of_small[:, :count], of_big[:, None])
  maps = {count: sums.solve() for count, sums in fits.items()}
  scores, rows = Scores(), 0
  for of_small, of_big, doc in _norms(small, big, held_out):
    rows += len(doc)
    scores.target("big", doc, of_big)
    for count, fit in maps.items():
      error = of_big - fit(of_small[:, :count])[:, 0]
      scores.prediction(str(count), "big", doc, error)
  if not rows:
    rule, remedy = "must have a finite row", "give more rows"
    raise InputError("held_out", "no row", rule, remedy)
  r2 = scores.r2(bootstrap)
  before, after = r2["1", "big"], r2["2", "big"]
  gain = 100 * (after.value - before.value) / (1 - before.value)
  return PerToken(before, after, float(gain))


def _norms(small, big: Reconstruct, read: Read):
  """Yields ([|e_small|, |nonlinear_small|], |e_big|, documents) of batches."""
  reconstruct, A = small
  for rows in read():
    if not len(rows.x):
      continue
    x = np.asarray(rows.x, np.float64)
    e = x - reconstruct(rows.x)[0]
    both = np.sqrt(np.stack([square(e), square(e - x @ A)], axis=-1))
    yield both, np.sqrt(square(x - big(rows.x)[0])), rows.doc


def _resampled(
  widths: Sequence[int],
  found: Sequence[Decomposition],
  part: str,
  bootstrap: Bootstrap,
  *,
  least: int,
) -> Float[np.ndarray, "r W"]:
  """FVU of a part of each SAE; of all documents first, then of resamples."""
  if part not in PARTS:
    rule = f"must be one of {', '.join(PARTS)}"
    raise InputError("part", part, rule, f"use {PARTS[0]}")
  if len(set(widths)) < least or len(widths) != len(found):
    rule = f"must be at least {least} different widths, one per decomposition"
    remedy = "give SAEs of more widths"
    raise InputError("widths", list(widths), rule, remedy)
  above = np.stack([_sums(one, part) for one in found])
  below = np.stack([one.sums["x"] for one in found])
  used = np.flatnonzero((below > 0).all(axis=0))
  rng = np.random.default_rng(bootstrap.seed)
  share = np.full(len(used), 1 / max(len(used), 1))
  resamples = bootstrap.resamples if len(used) > 1 else 0
  drawn = rng.multinomial(len(used), share, resamples)
  drawn = np.concatenate([np.ones((1, len(used))), drawn])
  fvu = (drawn @ above[:, used].T) / (drawn @ below[:, used].T)
  if not (fvu[0] > 0).all():
    rule, remedy = "must be positive in every SAE", "use another part"
    raise InputError("part", part, rule, remedy)
  return fvu[(fvu > 0).all(axis=1)]


def _sums(found: Decomposition, part: str) -> np.ndarray:
  if part == "linear":
    return found.sums["error"] - found.sums["nonlinear"]
  return found.sums[part]


def _law(log_W: np.ndarray, fvu: np.ndarray) -> tuple[float, float, float]:
  a, m, c = power_laws.power_law(log_W, np.log(fvu), irreducible=True)
  return float(np.exp(c)) if c is not None else 0.0, float(np.exp(a)), m


def _interval(values: Float[np.ndarray, "r"]) -> Estimate:
  """The first value, with the percentiles of the others."""
  if len(values) < 3:
    return Estimate(float(values[0]), -np.inf, np.inf)
  low, high = np.quantile(values[1:], [0.025, 0.975])
  return Estimate(float(values[0]), float(low), float(high))
