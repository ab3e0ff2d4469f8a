"""The section about the fitted law on the page of a scaling run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax.evals import scaling_law
from saejax.report import drawing, page

_SYMBOLS = {
  "alpha": "α",
  "beta_k": "β_k",
  "beta_n": "β_n",
  "gamma": "γ",
  "zeta": "ζ",
  "eta": "η",
}
EQUATION = (
  "L(n, k) = exp(α + β_k log k + β_n log n + γ log n log k) + exp(ζ + η log k)"
)


def headline(fit: scaling_law.Fit) -> tuple[str, str]:
  """Returns the main number of a law, its extrapolation error, with its label.

  Args:
    fit: the law.
  """
  if fit.holdout is None:
    return "–", f"extrapolation error not measured: {fit.holdout_reason}"
  return (
    f"{100 * fit.holdout.error:.1f} %",
    f"extrapolation error: mean error in predicting n = {fit.holdout.n:,} from"
    " smaller n",
  )


def blocks(
  found: Mapping[str, Any],
  fit: scaling_law.Fit | None,
  drawn: Mapping[str, drawing.Plot],
) -> list[page.Block]:
  """Returns the section about the law, or a note on why there is none.

  Args:
    found: content of results.json.
    fit: the law, or None.
    drawn: plots by name.
  """
  if fit is None:
    reason = found.get("fit_reason") or "no fit was requested"
    return [page.Note(f"No law was fitted: {reason}.")]
  return [
    *_extrapolation(fit),
    page.Heading("Comparison with polynomials"),
    _comparison(fit),
    page.Heading("Parameters"),
    *_parameters(fit, found["fit"]["intervals"]),
    _residuals(fit, drawn["residuals"]),
    *_single(fit),
    *_dropped(fit),
  ]


def _extrapolation(fit) -> list[page.Block]:
  heading = page.Heading("Extrapolation")
  if fit.holdout is None:
    return [heading, page.Prose(f"Not measured: {fit.holdout_reason}.")]
  rows = [
    (
      f"{c['k']:,}",
      f"{c['loss']:.4f}",
      f"{c['predicted']:.4f}",
      page.signed(f"{100 * np.expm1(c['error']):+.2f}"),
    )
    for c in fit.holdout.cells
  ]
  columns = [
    page.Column("k"),
    page.Column("Measured", "nmse"),
    page.Column("Predicted", "nmse"),
    page.Column("Error", "%"),
  ]
  caption = (
    f"Loss at n = {fit.holdout.n:,}, predicted by the law fitted to smaller n."
    f" The mean of |log(predicted / measured)| is {fit.holdout.error:.4f}."
  )
  return [heading, page.Table(columns, rows, caption)]


def _comparison(fit) -> page.Table:
  rows = [
    (
      score.law,
      str(score.parameters),
      "–"
      if score.holdout_error is None
      else f"{100 * score.holdout_error:.2f}",
      "–" if score.r2 is None else f"{score.r2:.4f}",
    )
    for score in fit.comparison()
  ]
  columns = [
    page.Column("Law", right=False),
    page.Column("Parameters"),
    page.Column("Extrapolation error", "%"),
    page.Column("R²", "on log L"),
  ]
  return page.Table(
    columns,
    rows,
    "The scaling law and polynomials in log n and log k of first and second"
    " degree, fitted to the same points. Polynomials fit any smooth surface with"
    " few sizes, so a high R² alone does not support the form of a law.",
  )


def _parameters(fit, intervals) -> list[page.Block]:
  rows = [
    (
      _SYMBOLS[name],
      _fixed(value),
      _interval(*intervals[name]),
      "yes" if _contains_zero(*intervals[name]) else "no",
    )
    for name, value in zip(scaling_law.PARAMETERS, fit.parameters, strict=True)
  ]
  cells = len(fit.grid.cells()[0].n)
  return [
    page.Equation(EQUATION),
    page.Prose(
      f"""L is the held-out normalised MSE; the second term is the irreducible
      loss, which does not depend on n. The fit is by robust least squares on
      log L over {len(fit.grid.loss):,} SAEs in {cells:,} cells (n, k);
      logarithms are natural. On small grids many values of the six parameters
      give nearly equal surfaces: rely on the curves and their bands instead of
      single parameters. {_floor(fit)}"""
    ),
    page.Table(
      [
        page.Column("Parameter", right=False),
        page.Column("Value"),
        page.Column("95 % interval"),
        page.Column("Contains 0", right=False),
      ],
      rows,
      "Parameters. The interval contains the values at which the best fit is not"
      f" significantly worse (profile of the cost, Student's t, {cells - 6:,}"
      " degrees of freedom); ∞ marks an end that the points do not bound. Where"
      " it contains 0, not even the sign of the parameter is known.",
    ),
  ]


def _contains_zero(low: float | None, high: float | None) -> bool:
  return (low is None or low <= 0) and (high is None or high >= 0)


def _interval(low: float | None, high: float | None) -> str:
  ends = (
    ("−∞" if low is None else _fixed(low)),
    ("∞" if high is None else _fixed(high)),
  )
  return " to ".join(ends)


def _residuals(fit, plot: drawing.Plot) -> page.Figure:
  percent = 100 * np.expm1(fit.residuals)
  root = f"{np.sqrt(np.mean(percent**2)):.2f} %"
  largest = f"{np.abs(percent).max():.2f} %"
  return page.figure(
    plot,
    "Residuals of the fit in per cent against n and against k; the largest"
    f" is {largest}, the root mean square {root}.",
    f"Residuals, (measured − fitted) / fitted loss. Root mean square {root},"
    f" largest {largest}. Points are shifted horizontally to remain visible.",
  )


def _fixed(value: float) -> str:
  return page.signed(f"{value:.4f}")


def _floor(fit) -> str:
  """Describes the share of the second term in the loss at the largest n."""
  n = fit.grid.n.max()
  ks = np.unique(fit.grid.k)
  floor = np.exp(fit.parameters[4] + fit.parameters[5] * np.log(ks))
  share = floor / fit.predict(n, ks)
  if share.max() < 0.01:
    return "On this grid the irreducible loss is indistinguishable from zero."
  low, high = (f"{100 * v:.0f}" for v in (share.min(), share.max()))
  return (
    f"At n = {int(n):,} the second term is"
    f" {low if low == high else f'{low} to {high}'} % of the fitted loss."
  )


def _single(fit) -> list[page.Block]:
  blocks: list[page.Block] = []
  for laws, v, o in ((fit.over_n, "n", "k"), (fit.over_k, "k", "n")):
    if not laws:
      continue
    floor = any(law.c is not None for law in laws)
    columns = [
      page.Column(o),
      page.Column("a"),
      page.Column("b", f"exponent of {v}"),
      *([page.Column("exp(c)", "nmse")] if floor else []),
      page.Column("R²", "on log L"),
    ]
    rows = [
      (
        f"{law.at:,}",
        _fixed(law.a),
        _fixed(law.b),
        *([_irreducible(law)] if floor else []),
        "–" if law.r2 is None else f"{law.r2:.5f}",
      )
      for law in laws
    ]
    form = f"exp(a + b log {v})" + (" + exp(c)" if floor else "")
    counts = sorted({law.points for law in laws})
    few = " to ".join(f"{c:,}" for c in dict.fromkeys((counts[0], counts[-1])))
    caption = (
      f"L against {v} at fixed {o}: {form}, {2 + floor} parameters fitted to"
      f" {few} points per law."
    )
    blocks.append(page.Table(columns, rows, caption))
  return [page.Heading("Laws of one variable"), *blocks] if blocks else []


def _irreducible(law) -> str:
  if law.c is None:
    return "not fitted"
  return f"{np.exp(law.c):.4f}" if np.exp(law.c) >= 5e-5 else "≈ 0"


def _dropped(fit) -> list[page.Block]:
  if not fit.grid.dropped:
    return []
  rows = [
    (f"{d['n']:,}", f"{d['k']:,}", str(d["seed"]), d["reason"])
    for d in fit.grid.dropped
  ]
  columns = [page.Column(c) for c in ("n", "k", "Seed")]
  columns.append(page.Column("Reason", right=False))
  return [page.Table(columns, rows, "SAEs left out of the fit.")]
