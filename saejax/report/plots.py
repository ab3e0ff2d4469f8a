"""Plots of a scaling run, each a matplotlib figure.

Points are the records of results.json. Points whose status is not "ok", or that
lack the plotted value, are left out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax.evals import frontier, scaling_law
from saejax.report import axes as look
from saejax.report import naming

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
  made = _loss(points, fit, across="n", each="k", names=_NAMES)
  return look.titled(made, "Held-out loss against the number of latents n")


@look.styled
def loss_against_k(points: Points, fit: scaling_law.Fit | None) -> Any:
  """Draws held-out loss against k, one curve per n, with fit and band.

  Args:
    points: records of SAEs.
    fit: the law, or None.
  """
  made = _loss(points, fit, across="k", each="n", names=_NAMES)
  return look.titled(made, "Held-out loss against active latents per token k")


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
      (line,) = axes.plot(x[order], y[order], "-", label=label, **style)
      look.named(line, f"{each} = {label}, measured")
      continue
    where = {across: fine, each: np.full_like(fine, value)}
    low, high = fit.band(where["n"], where["k"])
    axes.fill_between(fine, low, high, color=style["color"], alpha=0.16, lw=0)
    centre = fit.predict(where["n"], where["k"])
    axes.plot(fine, centre, "-", color=style["color"], lw=1.4)
    (marks,) = axes.plot(
      x, y, label=label, linestyle="none", mec="white", mew=0.6, **style
    )
    look.named(marks, f"{each} = {label}, measured")
    # The limits include the band, unless it would flatten the curves.
    shown += [
      max(low.min(), centre.min() / _WIDEST),
      min(high.max(), centre.max() * _WIDEST),
    ]
  look.log_scale(axes.xaxis, x_low, x_high, at=look.sizes(xs))
  look.log_scale(axes.yaxis, *look.padded(shown))
  axes.set_xlabel(names[across])
  axes.set_ylabel(f"held-out {LOSS}")
  look.explained(
    axes,
    "Marks: measured SAEs. Lines join them; no law was fitted."
    if fit is None
    else "Marks: measured SAEs. Lines: the fitted law. Shaded: where 95 % of new "
    "SAEs are expected.",
  )
  look.legend(made, row, each)
  return made


def _falls(points) -> bool:
  """Returns whether the loss falls with n, so that the largest n is lowest."""
  ns = sorted({p["n"] for p in points})
  mean = [np.mean([p["nmse"] for p in points if p["n"] == n]) for n in ns]
  return not mean[-1] <= mean[0]


@look.styled
def loss_against_l0(points: Points) -> Any:
  """Draws held-out loss against measured L0, with the frontier.

  Args:
    points: records of SAEs.
  """
  points = [p for p in good(points) if p.get("l0")]
  made, (row,) = look.figure(3.9)
  axes = row[0]
  l0, loss = ([p[name] for p in points] for name in ("l0", "nmse"))
  best = frontier.pareto(l0, loss)
  axes.plot(
    [l0[i] for i in best],
    [loss[i] for i in best],
    "-",
    color="#e69f00",
    lw=6,
    alpha=0.35,
    solid_capstyle="round",
  )
  for n, style in look.styles([p["n"] for p in points]).items():
    mine = sorted((p["l0"], p["nmse"]) for p in points if p["n"] == n)
    (line,) = axes.plot(*zip(*mine, strict=True), label=f"{n:,}", **style)
    look.named(line, f"n = {n:,}")
  look.log_scale(axes.xaxis, *look.padded(l0))
  look.log_scale(axes.yaxis, *look.padded(loss))
  axes.set_xlabel("L0 (active latents per token, measured on held-out rows)")
  if look.is_narrow():
    axes.set_xlabel("held-out L0 (active latents per token)")
  axes.set_ylabel(f"held-out {LOSS}")
  look.explained(
    axes,
    "Wide line: the frontier, SAEs that no other has both a smaller L0 and a "
    "smaller loss than.",
  )
  look.legend(made, row, "n")
  return look.titled(made, "Held-out loss against L0, and the frontier")


@look.styled
def residuals(fit: scaling_law.Fit) -> Any:
  """Draws residuals of the fit in per cent, against n and against k.

  Args:
    fit: the law.
  """
  made, (left, right) = look.panels(2, height=3.0, sharey=True)
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
      (marks,) = axes.plot(
        x[mine] * 2.0**shift,
        percent[mine],
        linestyle="none",
        label=f"{value:,}",
        mec="white",
        mew=0.5,
        **style,
      )
      look.named(marks, f"{each} = {value:,}")
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
  return look.titled(made, "Residuals of the fitted law")


@look.styled
def training_curves(
  curves: Mapping[int, Mapping[tuple[Any, int], Curve]],
  *,
  label: str,
  title: str = "Loss of training batches",
) -> Any:
  """Draws a loss against training tokens, one panel per n and a curve per k.

  Args:
    curves: curves by (k or name of the setting, seed), by n.
    label: label of the values, with their unit.
    title: title of the figure.
  """
  made, panels = _panels(len(curves))
  ks = {k for of in curves.values() for k, _ in of}
  named_by = "k" if all(isinstance(k, int) for k in ks) else "setting"
  if named_by == "setting":
    curves = {
      n: {(naming.full(k), seed): c for (k, seed), c in of.items()}
      for n, of in curves.items()
    }
  styles = look.styles([k for of in curves.values() for k, _ in of])
  values = _finite(c[1] for of in curves.values() for c in of.values())
  tokens = _finite(c[0] for of in curves.values() for c in of.values())
  for axes, (n, members) in zip(panels, sorted(curves.items()), strict=False):
    for (k, seed), (x, y) in sorted(members.items()):
      first = seed == min(s for j, s in members if j == k)
      named = naming.short(k) if first else None
      marked = {"markevery": 0.15} if named else {"markevery": []}
      (line,) = axes.plot(
        x, y, lw=1.1, ms=4, label=named, **marked, **styles[k]
      )
      look.named(line, naming.full(k) + (f", seed {seed}" if seed else ""))
    axes.set_title(f"n = {n:,}")
    low, high = np.quantile(values, [0.0, 0.995])
    look.log_scale(axes.yaxis, *look.padded([low, max(high, low)]))
    axes.set_xlim(0, tokens.max())
    _token_ticks(axes.xaxis)
  _outer_labels(made, panels, "training tokens", label)
  look.legend(made, panels, named_by)
  return look.titled(made, title)


@look.styled
def density(points: Points) -> Any:
  """Draws histograms of density, one panel per n and one line per k.

  Bins differ in width, since counts of rows are whole numbers: heights are per
  quarter of a decade. Dead latents, which a log axis has no place for, are bars
  at the left.

  Args:
    points: records of SAEs.
  """
  points = [p for p in good(points) if p.get("density")]
  points = [
    {**p, "of": of}
    for p, of in zip(points, naming.settings(points), strict=True)
  ]
  ns = sorted({p["n"] for p in points})
  made, panels = _panels(len(ns))
  styles = look.styles([p["of"] for p in points])
  used = [
    edge
    for p in points
    for a, b, c in _bins(p["density"])
    if c
    for edge in (a, b)
  ]
  low, high = (min(used), max(used)) if used else (-1.0, 0.0)
  ticks = range(math.ceil(low - 0.01), math.floor(high + 0.01) + 1)
  at = [10.0 ** (low - 0.75), *(10.0**t for t in ticks)]
  labels = ["dead", *(f"10{str(t).translate(_RAISED)}" for t in ticks)]
  for axes, n in zip(panels, ns, strict=False):
    for i, (of, style) in enumerate(styles.items()):
      mine = [p for p in points if (p["n"], p["of"]) == (n, of)]
      if mine:
        dashes = look.DASHES[i % len(look.DASHES)]
        _histogram(axes, mine, (low, high), dashes, style["color"])
        # The bars of dead latents take 0.9 decades together.
        _dead(axes, mine, low - 1.2 + 0.9 * i / len(styles), 0.9 / len(styles))
        axes.patches[-1].set_color(style["color"])
    axes.set_title(f"n = {n:,}")
    ends = 10.0 ** (low - 1.35), 10.0 ** (high + 0.05)
    look.log_scale(axes.xaxis, *ends, at=at)
    axes.set_xticks(at, labels)
    axes.axvline(10.0 ** (low - 0.15), color=look.EDGE, lw=0.8, ls=":")
  panels[0].set_ylim(bottom=0)  # shared, after all are drawn
  _outer_labels(
    made,
    panels,
    "density (share of held-out rows)"
    if look.is_narrow()
    else "density (share of held-out rows on which a latent fires)",
    "latents (%; live ones per ¼ decade)",
  )
  is_k = all(isinstance(of, int) for of in styles)
  look.legend(made, panels, "k" if is_k else "setting")
  return look.titled(made, "How often latents fire, and how many never do")


def _histogram(axes, mine, ends, dashes, colour) -> None:
  """Draws the mean histogram of some SAEs of equal n and k."""
  n, of = mine[0]["n"], mine[0]["of"]
  edges = np.asarray(mine[0]["density"]["log10_edges"], float)
  counts = np.mean([p["density"]["counts"] for p in mine], axis=0)
  height = 100 * counts / n / (4 * np.diff(edges))
  first, last = np.searchsorted(edges, [ends[0] - 1e-9, ends[1] - 1e-9])
  steps = axes.stairs(
    height[first:last],
    10.0 ** edges[first : last + 1],
    color=colour,
    lw=1.4,
    ls=dashes,
    label=naming.short(of),
  )
  look.named(steps, naming.full(of))


def _dead(axes, mine, start: float, width: float) -> None:
  """Draws the mean share of dead latents as a bar, `width` decades wide."""
  share = 100 * float(np.mean([p.get("dead") or 0 for p in mine]))
  left, right = 10.0**start, 10.0 ** (start + 0.8 * width)
  (bar,) = axes.bar(left, share, right - left, align="edge")
  look.named(bar, f"{naming.full(mine[0]['of'])}, dead|0")


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _bins(histogram):
  edges = histogram["log10_edges"]
  return zip(edges[:-1], edges[1:], histogram["counts"], strict=True)


def _panels(count: int):
  most = 2 if count <= 4 else 3
  return look.panels(
    count, height=2.35, most=most, more=0.6, sharex=True, sharey=True
  )


def _outer_labels(made, panels, x: str, y: str) -> None:
  if look.is_narrow():  # a label of the figure would be under the legend
    panels[-1].set_xlabel(x)
  else:
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
