"""Supervised dictionaries of known attributes, the yardstick for SAEs.

On a task whose prompts have known attributes, an activation is approximated by a
code for the value of each attribute,

  x_hat = m + sum_attribute u_attribute[value],  m = E[x]

Mean codes:  u[v] = E[x | value v] - m
MSE codes:   least squares of x - m on all one-hot values at once, each attribute's
             codes with mean 0 over rows (and of least norm where not unique)

Both are equal where attributes are independent and balanced; mean codes of an
attribute contain those of others that are correlated with it. An edit from value v
to v' is x + u[v'] - u[v].

An SAE is compared on three axes:

  approximation  with LD a number per prompt, such as a logit difference, of the
                 model with an activation in place of x, as means over prompts,
                   sufficiency = |LD(x_hat) - LD(m)| / |LD(x) - LD(m)|
                   necessity   = |LD(x) - LD(x - x_hat + m)| / |LD(x) - LD(m)|
                   remaining   = |LD(x - x_hat + m) - LD(m)| / |LD(x) - LD(m)|
                 Sufficiency and necessity are 1 for x_hat = x, and 0 for x_hat = m.
                 `remaining` is what the paper's text calls necessity.
  control        `latent_edits`: edits of few latents
  interpretation precision, recall and F1 of z > 0 as a test for a value, or for a
                 union of the values with the largest F1

References:
  Makelov et al., Towards Principled Evaluations of Sparse Autoencoders for
  Interpretability and Control, 2024, arXiv:2405.08366.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError

Labels = Mapping[str, Int[np.ndarray, "N"]]
UNION = 10  # largest number of values in a union


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
  """A supervised dictionary.

  Attributes:
    mean: m.
    codes: codes of each attribute's values [V, d], by name; 0 for a value that no
      row has.
  """

  mean: Float[np.ndarray, "d"]
  codes: Mapping[str, Float[np.ndarray, "V d"]]

  def reconstruct(self, labels: Labels) -> Float[np.ndarray, "N d"]:
    """Computes m + sum u[value].

    Args:
      labels: value of each attribute, per row.
    """
    return self.mean + sum(self.codes[k][labels[k]] for k in self.codes)

  def edit(
    self,
    x: Float[np.ndarray, "N d"],
    attribute: str,
    old: Int[np.ndarray, "N"],
    new: Int[np.ndarray, "N"],
  ) -> Float[np.ndarray, "N d"]:
    """Computes x + u[new] - u[old].

    Args:
      x: activations.
      attribute: name of the attribute.
      old, new: its values, per row.
    """
    u = self.codes[attribute]
    return x + u[new] - u[old]

  def ablate(
    self,
    x: Float[np.ndarray, "N d"],
    attribute: str,
    *,
    to: Literal["mean", "zero"] = "mean",
  ) -> Float[np.ndarray, "N d"]:
    """Removes what x has in the span of an attribute's codes.

    Args:
      x: activations.
      attribute: name of the attribute.
      to: the point whose part in the span is put there: the mean, or 0.
    """
    u = self.codes[attribute]
    _, size, rows = np.linalg.svd(u, full_matrices=False)
    span = rows[size > 1e-6 * max(float(size.max()), 1e-30)]
    from_ = self.mean if to == "mean" else np.zeros_like(self.mean)
    return x - (x - from_) @ span.T @ span


def mean_codes(
  x: Float[np.ndarray, "N d"], labels: Labels, values: Mapping[str, int]
) -> Codes:
  """Computes mean codes; see the module.

  Args:
    x: activations.
    labels: value of each attribute, per row, from 0.
    values: number of values of each attribute.

  Raises:
    InputError: labels are of other rows or outside the values.
  """
  hot = _one_hot(x, labels, values)
  x = np.asarray(x, np.float64)
  mean = x.mean(axis=0)
  codes = {
    name: on.T @ (x - mean) / np.maximum(on.sum(axis=0), 1)[:, None]
    for name, on in hot.items()
  }
  return Codes(mean, codes)


def mse_codes(
  x: Float[np.ndarray, "N d"], labels: Labels, values: Mapping[str, int]
) -> Codes:
  """Computes codes of least squared error; see the module.

  Args:
    x, labels, values: as for `mean_codes`.

  Raises:
    InputError: as `mean_codes`.
  """
  hot = _one_hot(x, labels, values)
  x = np.asarray(x, np.float64)
  mean = x.mean(axis=0)
  design = np.concatenate(list(hot.values()), axis=1)
  share = design.mean(axis=0)
  u = np.linalg.lstsq(design - share, x - mean, rcond=None)[0]
  codes, start = {}, 0
  for name, on in hot.items():
    part = slice(start, start + on.shape[1])
    own = u[part] - share[part] @ u[part]
    codes[name] = np.where(share[part][:, None] > 0, own, 0)
    start = part.stop
  return Codes(mean, codes)


def _one_hot(x, labels: Labels, values: Mapping[str, int]):
  found = {}
  for name, count in values.items():
    label = np.asarray(labels[name])
    if label.shape != (len(x),) or not (
      np.issubdtype(label.dtype, np.integer)
      and ((label >= 0) & (label < count)).all()
    ):
      raise InputError(
        f"labels.{name}",
        f"{label.dtype} {label.shape}",
        f"must be an integer in [0, {count}) for each of the {len(x)} rows",
        "number the values from 0",
      )
    found[name] = np.eye(count)[label]
  return found


# --- approximation ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Approximation:
  """Effect of a reconstruction on the model; see the module.

  Attributes:
    sufficiency, necessity, remaining: of the module's docstring; NaN where the
      mean has the effect of the activations.
    clean, mean, reconstructed, removed: mean effect of x, m, x_hat and
      x - x_hat + m.
  """

  sufficiency: float
  necessity: float
  remaining: float
  clean: float
  mean: float
  reconstructed: float
  removed: float

  def record(self) -> dict[str, float]:
    """Returns the numbers, for results.json."""
    return dataclasses.asdict(self)


def approximation(
  effect: Callable[[Float[np.ndarray, "N d"]], Float[np.ndarray, "N"]],
  x: Float[np.ndarray, "N d"],
  x_hat: Float[np.ndarray, "N d"],
  mean: Float[np.ndarray, "d"],
) -> Approximation:
  """Computes sufficiency and necessity of a reconstruction.

  Args:
    effect: a number per prompt, of activations in place of x.
    x: activations.
    x_hat: their reconstruction, in the units of the model.
    mean: the mean activation, which is put where activations are ablated.
  """
  ablated = np.broadcast_to(mean, x.shape)
  points = (x, ablated, x_hat, x - x_hat + mean)
  clean, low, kept, removed = (float(np.mean(effect(p))) for p in points)
  gap = abs(clean - low)
  share = lambda part: abs(part) / gap if gap > 0 else float("nan")
  return Approximation(
    sufficiency=share(kept - low),
    necessity=share(clean - removed),
    remaining=share(removed - low),
    clean=clean,
    mean=low,
    reconstructed=kept,
    removed=removed,
  )


# --- interpretation --------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Patterns:
  """Counts of latents that are active together with values of an attribute.

  Counts of parts of the rows add up: `a + b`.

  Attributes:
    both: rows where a latent is active and the value is the row's.
    active: rows where a latent is active.
    holds: rows of each value.
  """

  both: Int[np.ndarray, "n V"]
  active: Int[np.ndarray, "n"]
  holds: Int[np.ndarray, "V"]

  def __add__(self, other: "Patterns") -> "Patterns":
    return Patterns(
      self.both + other.both,
      self.active + other.active,
      self.holds + other.holds,
    )

  @property
  def precision(self) -> Float[np.ndarray, "n V"]:
    """Share of the rows with the latent active that have the value; 0 if none."""
    return self.both / np.maximum(self.active, 1)[:, None]

  @property
  def recall(self) -> Float[np.ndarray, "n V"]:
    """Share of the rows of the value with the latent active; 0 if none."""
    return self.both / np.maximum(self.holds, 1)

  @property
  def f1(self) -> Float[np.ndarray, "n V"]:
    """F1; -inf for a latent that is never active, which ranks last."""
    return _f1(self.both, self.active[:, None], self.holds)

  def unions(self, largest: int = UNION) -> Float[np.ndarray, "n size"]:
    """F1 of the union of the values of largest F1, by the number of values.

    Args:
      largest: largest number of values.
    """
    order = np.argsort(-self.f1, axis=1, kind="stable")[:, :largest]
    both = np.take_along_axis(self.both, order, axis=1).cumsum(axis=1)
    return _f1(both, self.active[:, None], self.holds[order].cumsum(axis=1))

  @property
  def best_latent(self) -> Float[np.ndarray, "V"]:
    """Largest F1 of a latent, for each value.

    Low values of an attribute that the model uses, beside high ones of another,
    are feature occlusion.
    """
    return self.f1.max(axis=0)


def patterns(
  z: Float[np.ndarray, "N n"], label: Int[np.ndarray, "N"], values: int
) -> Patterns:
  """Counts where z > 0 and each value meet.

  Args:
    z: latents.
    label: value of each row, from 0.
    values: number of values.

  Raises:
    InputError: labels are of other rows or outside the values.
  """
  (hot,) = _one_hot(z, {"label": label}, {"label": values}).values()
  on = np.asarray(z) > 0
  both = np.rint(on.T.astype(np.float64) @ hot).astype(np.int64)
  return Patterns(both, on.sum(axis=0), hot.sum(axis=0).astype(np.int64))


def _f1(both, active, holds) -> np.ndarray:
  total = np.maximum(active + holds, 1)
  return np.where(active > 0, 2 * both / total, -np.inf)


def agreement(
  answer: Int[np.ndarray, "N"], wanted: Int[np.ndarray, "N"]
) -> float:
  """Share of prompts with the answer of the patched counterfactual activation.

  Args:
    answer: largest logit of the model with the edited activation.
    wanted: that with the whole activation of the counterfactual prompt.
  """
  return float(np.mean(np.asarray(answer) == np.asarray(wanted)))


def occluded(
  patterns: Mapping[str, Patterns], *, below: float = 0.5
) -> dict[str, Bool[np.ndarray, "V"]]:
  """Tells the values that no latent finds while others' are found.

  Args:
    patterns: counts by attribute.
    below: a value is occluded if the largest F1 of a latent for it is below this
      share of the largest one of any value of any attribute.
  """
  best = {name: found.best_latent for name, found in patterns.items()}
  most = max(float(one.max()) for one in best.values())
  return {name: one < below * most for name, one in best.items()}
