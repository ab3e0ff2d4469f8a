"""Plots of a scaling run, each a matplotlib figure.

Points are the records of results.json. Points whose status is not "ok", or that
lack the plotted value, are left out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax.evals import scaling_law
from saejax.report import axes as look

Points = Sequence[Mapping[str, Any]]
LOSS = "normalised MSE (share of variance)"
# A training curve: (tokens [t], values [t]).
Curve = tuple[np.ndarray, np.ndarray]


def good(points: Points) -> list[Mapping[str, Any]]:
  """Selects the points that finished and have a loss.

  Args:
    points: records of SAEs.
  """
  return [
    p
    for p in points
    if (p.get("status") or "ok") == "ok"
    and p.get("nmse") is not None
    and p["nmse"] > 0
    and math.isfinite(p["nmse"])
  ]


@look.styled
def loss_against_n(points: Points, fit: scaling_law.Fit | None) -> Any:
  """Draws held-out loss against n, one curve per k, with fit and band.

  Args:
    points: records of SAEs.
    fit: the law, or None.
  """
  return _loss(points, fit, across="n", each="k", names=_NAMES)


@look.styled
def loss_against_k(points: Points, fit: scaling_law.Fit | None) -> Any:
  """Draws held-out loss against k, one curve per n, with fit and band.

  Args:
    points: records of SAEs.
    fit: the law, or None.
  """
  return _loss(points, fit, across="k", each="n", names=_NAMES)


_WIDEST = 1.3  # factor by which a band may widen the axis of the losses
_NAMES = {"n": "latents n", "k": "active latents per token k"}


def _loss(points, fit, *, across: str, each: str, names) -> Any:
  points = good(points)
  made, (row,) = look.figure(4.3)
  axes = row[0]
  xs = [p[across] for p in points]
  x_low, x_high = look.padded(xs, 0.05)
  fine = np.geomspace(x_low, x_high, 60)
  shown = [p["nmse"] for p in points]
  styles = look.styles([p[each] for p in points])
  # The legend has the order of the curves, the upper one first.
  for value in sorted(styles, reverse=each == "n" and _falls(points)):
    style = styles[value]
    mine = [p for p in points if p[each] == value]
    x = np.array([p[across] for p in mine], float)
    y = np.array([p["nmse"] for p in mine])
    label = f"{value:,}"
    if fit is None:
      order = np.argsort(x, kind="stable")
      axes.plot(x[order], y[order], "-", label=label, **style)
      continue
    where = {across: fine, each: np.full_like(fine, value)}
    low, high = fit.band(where["n"], where["k"])
    axes.fill_between(fine, low, high, color=style["color"], alpha=0.16, lw=0)
    centre = fit.predict(where["n"], where["k"])
    axes.plot(fine, centre, "-", color=style["color"], lw=1.4)
    axes.plot(
      x, y, label=label, linestyle="none", mec="white", mew=0.6, **style
    )
    # The limits include the band, unless it would flatten the curves.
    shown += [
      max(low.min(), centre.min() / _WIDEST),
      min(high.max(), centre.max() * _WIDEST),
    ]
  look.log_scale(axes.xaxis, x_low, x_high, at=look.sizes(xs))
  look.log_scale(axes.yaxis, *look.padded(shown))
  axes.set_xlabel(names[across])
  axes.set_ylabel(f"held-out {LOSS}")
  look.legend(made, row, each)
  return made


def _falls(points) -> bool:
  """Returns whether the loss falls with n, so that the largest n is lowest."""
  ns = sorted({p["n"] for p in points})
  mean = [np.mean([p["nmse"] for p in points if p["n"] == n]) for n in ns]
  return not mean[-1] <= mean[0]


@look.styled
def residuals(fit: scaling_law.Fit) -> Any:
  """Draws residuals of the fit in per cent, against n and against k.

  Args:
    fit: the law.
  """
  made, (row,) = look.figure(3.0, columns=2, sharey=True)
  left, right = row
  percent = 100 * np.expm1(fit.residuals)
  grid = fit.grid
  for axes, x, other, each in (
    (left, grid.n, grid.k, "k"),
    (right, grid.k, grid.n, "n"),
  ):
    styles = look.styles(other.astype(int).tolist())
    spread = np.linspace(-0.5, 0.5, len(styles)) * 0.22 * (len(styles) > 1)
    for shift, (value, style) in zip(spread, styles.items(), strict=True):
      mine = other == value
      # Shifted, so that equal residuals remain visible.
      axes.plot(
        x[mine] * 2.0**shift,
        percent[mine],
        linestyle="none",
        label=f"{value:,}",
        mec="white",
        mew=0.5,
        **style,
      )
    axes.axhline(0, color=look.SOFT, lw=1)
    low, high = look.padded(x.tolist(), 0.1)
    look.log_scale(axes.xaxis, low, high, at=look.sizes(x.tolist(), 7))
    axes.set_xlabel(_NAMES["n" if each == "k" else "k"])
    axes.legend(
      title=f"marker: {each}",
      ncols=min(len(styles), 4),
      loc="lower center",
      bbox_to_anchor=(0.5, 1.0),
      handletextpad=0.2,
      columnspacing=1.0,
    )
  limit = 1.25 * max(float(np.abs(percent).max()), 0.05)
  left.set_ylim(-limit, limit)
  left.set_ylabel("(measured − fitted) / fitted (%)")
  return made


@look.styled
def training_curves(
  curves: Mapping[int, Mapping[tuple[int, int], Curve]], *, label: str
) -> Any:
  """Draws training loss against tokens, one panel per n and one curve per k.

  Args:
    curves: curves by (k, seed), by n.
    label: label of the values, with their unit.
  """
  made, panels = _panels(len(curves), height=2.35)
  styles = look.styles([k for of in curves.values() for k, _ in of])
  values = _finite(c[1] for of in curves.values() for c in of.values())
  tokens = _finite(c[0] for of in curves.values() for c in of.values())
  for axes, (n, members) in zip(panels, sorted(curves.items()), strict=False):
    for (k, seed), (x, y) in sorted(members.items()):
      named = f"{k:,}" if seed == min(s for j, s in members if j == k) else None
      marked = {"markevery": 0.15} if named else {"markevery": []}
      axes.plot(x, y, lw=1.1, ms=4, label=named, **marked, **styles[k])
    axes.set_title(f"n = {n:,}")
    low, high = np.quantile(values, [0.0, 0.995])
    look.log_scale(axes.yaxis, *look.padded([low, max(high, low)]))
    axes.set_xlim(0, tokens.max())
    _token_ticks(axes.xaxis)
  _outer_labels(made, panels, "training tokens", label)
  look.legend(made, panels, "k")
  return made


@look.styled
def density(points: Points) -> Any:
  """Draws histograms of log10 density, one panel per n and one line per k.

  Args:
    points: records of SAEs.
  """
  points = [p for p in good(points) if p.get("density")]
  ns = sorted({p["n"] for p in points})
  made, panels = _panels(len(ns), height=2.35)
  styles = look.styles([p["k"] for p in points])
  used = [
    edge
    for p in points
    for a, b, c in _bins(p["density"])
    if c
    for edge in (a, b)
  ]
  cycle = look.DASHES * len(styles)
  for axes, n in zip(panels, ns, strict=False):
    for dashes, (k, style) in zip(cycle, styles.items(), strict=False):
      mine = [p["density"] for p in points if (p["n"], p["k"]) == (n, k)]
      if not mine:
        continue
      share = np.mean([m["counts"] for m in mine], axis=0) / n
      axes.stairs(
        100 * share,
        mine[0]["log10_edges"],
        color=style["color"],
        lw=1.4,
        ls=dashes,
        label=f"{k:,}",
      )
    axes.set_title(f"n = {n:,}")
    axes.set_ylim(bottom=0)
    if used:
      axes.set_xlim(math.floor(min(used)), max(used))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.set_major_formatter(lambda v, _: f"$10^{{{v:.0f}}}$")
  _outer_labels(
    made,
    panels,
    "density (share of held-out rows on which a latent fires)",
    "latents per bin of ¼ decade (%)",
  )
  look.legend(made, panels, "k")
  return made


def _bins(histogram):
  edges = histogram["log10_edges"]
  return zip(edges[:-1], edges[1:], histogram["counts"], strict=True)


def _panels(count: int, height: float):
  columns = min(count, 2) if count <= 4 else 3
  rows = -(-max(count, 1) // max(columns, 1))
  made, grid = look.figure(
    0.6 + height * rows, rows, max(columns, 1), sharex=True, sharey=True
  )
  panels = list(grid.ravel())
  for extra in panels[count:]:
    extra.set_visible(False)
  return made, panels[: max(count, 1)]


def _outer_labels(made, panels, x: str, y: str) -> None:
  made.supxlabel(x, fontsize=9.5, color=look.INK)
  made.supylabel(y, fontsize=9.5, color=look.INK)


def _token_ticks(axis) -> None:
  axis.get_major_locator().set_params(nbins=4)
  axis.set_major_formatter(
    lambda v, _: (
      f"{v / 1e9:g}G"
      if v >= 1e9
      else f"{v / 1e6:g}M"
      if v >= 1e6
      else f"{v / 1e3:g}k"
      if v >= 1e3
      else f"{v:g}"
    )
  )


def _finite(arrays) -> np.ndarray:
  joined = np.concatenate([np.asarray(a, float).ravel() for a in arrays])
  positive = joined[np.isfinite(joined) & (joined > 0)]
  return positive if len(positive) else np.ones(1)
