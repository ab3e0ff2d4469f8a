"""The windows that explain a latent and those that test its explanation.

Active windows are sorted by their largest value and divided into rank-quantiles of
equal counts. Each quantile is first divided at random into windows to train and to
test with, and the samples are drawn from these: no window explains and tests. delphi
draws both from one list with one seed, so that half of the windows that explain a
latent with 200 test it too; `compat="delphi"` does so.

Silent windows, on which the latent is nowhere active, are random ones; those on which
a neighbouring latent is active; or hard ones, whose sentence embeddings are nearest
to the strongest active windows. They are drawn without replacement, and where a dense
latent has few, there are few.

References:
  Paulo et al., Automatically Interpreting Millions of Features in Large Language
  Models, 2024, arXiv:2410.13928; github.com/EleutherAI/delphi, latents/samplers.py,
  constructors.py, neighbours.py.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError
from saejax.evals.autointerp.judge_embedding import Embed, unit
from saejax.evals.autointerp.windows import Window
from saejax.features.activity import Activity

LEAST = 200  # active windows; latents with fewer are skipped
HOW = ("quantiles", "top", "random", "mix")
_MIX_TOP = 0.2  # share of the strongest in a mix


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Windows by their places in the list that was divided.

  Attributes:
    train: those to explain with, the strongest first.
    test: those to test with, as many of each quantile as there are.
    quantile: quantile of each window of the list [N], 0 the strongest.
  """

  train: Int[np.ndarray, "t"]
  test: Int[np.ndarray, "s"]
  quantile: Int[np.ndarray, "N"]


def split(
  value: Float[np.ndarray, "N"],
  *,
  train: int = 40,
  test: int = 50,
  quantiles: int = 10,
  how: str = "quantiles",
  seed: int = 0,
  sampled: Bool[np.ndarray, "N"] | None = None,
  compat: str = "",
) -> Split:
  """Divides the active windows of a latent, then samples from each part.

  Args:
    value: largest value of each window.
    train, test: numbers of windows; fewer where a part has fewer.
    quantiles: number of rank-quantiles.
    how: how train is sampled: equal counts of each "quantiles", "top", "random",
      or "mix": a fifth from the top and the rest by quantiles.
    seed: of the division and the samples.
    sampled: windows of a uniform sample, whose ranks make the quantiles, and of
      which alone test consists; all by default. See `window_search.Found`.
    compat: "delphi" samples both from all windows with one seed.

  Raises:
    InputError: a number is below 1, `how` or `compat` is none of those, or there
      are fewer windows than quantiles.
  """
  value = np.asarray(value)
  sampled = np.ones(len(value), bool) if sampled is None else sampled
  _check(value[sampled], train=train, test=test, quantiles=quantiles, how=how)
  if compat not in ("", "delphi"):
    raise InputError(
      "compat", compat, "must be delphi or empty", "leave it out"
    )
  quantile = ranked(value, quantiles, sampled)
  rng = np.random.default_rng(seed)
  if compat:
    rngs = np.random.default_rng(seed), np.random.default_rng(seed)
    ours = theirs = np.ones(len(value), bool)
  else:
    rngs = rng, rng
    ours = _divided(quantile, train / (train + test), rng)
    theirs = ~ours
  first = _sample(value, quantile, ours, train, how, rngs[0])
  rest = _sample(value, quantile, theirs & sampled, test, "quantiles", rngs[1])
  return Split(first, rest, quantile)


def ranked(
  value: Float[np.ndarray, "N"],
  quantiles: int,
  sampled: Bool[np.ndarray, "N"],
) -> Int[np.ndarray, "N"]:
  """The rank-quantile of each window; those not sampled are placed by value.

  Args:
    value: largest value of each window.
    quantiles: number of quantiles, of equal counts among those sampled.
    sampled: the windows that are ranked.
  """
  (own,) = np.nonzero(sampled)
  order = own[np.argsort(-value[own], kind="stable")]
  found = np.zeros(len(value), np.int64)
  for number, part in enumerate(np.array_split(order, quantiles)):
    found[part] = number
  (others,) = np.nonzero(~sampled)
  at = np.searchsorted(-value[order], -value[others], side="left")
  found[others] = found[order[np.minimum(at, len(order) - 1)]]
  return found


def _divided(
  quantile: Int[np.ndarray, "N"], share: float, rng: np.random.Generator
) -> Bool[np.ndarray, "N"]:
  """A random part of each quantile, of about a share of it."""
  ours = np.zeros(len(quantile), bool)
  for number in np.unique(quantile):
    (own,) = np.nonzero(quantile == number)
    count = int(np.floor(share * len(own) + rng.random()))
    ours[rng.permutation(own)[:count]] = True
  return ours


def _sample(
  value: Float[np.ndarray, "N"],
  quantile: Int[np.ndarray, "N"],
  use: Bool[np.ndarray, "N"],
  count: int,
  how: str,
  rng: np.random.Generator,
) -> Int[np.ndarray, "m"]:
  """Some of the windows that may be used, the strongest first."""
  (own,) = np.nonzero(use)
  own = own[np.argsort(-value[own], kind="stable")]
  if how == "top":
    return own[:count]
  if how == "random":
    return own[np.sort(rng.permutation(len(own))[:count])]
  taken = own[: int(_MIX_TOP * count)] if how == "mix" else own[:0]
  left = np.setdiff1d(own, taken)
  groups = [
    rng.permutation(left[quantile[left] == q])
    for q in range(int(quantile.max(initial=-1)) + 1)
  ]
  # In turn, so that counts are equal as long as each quantile has any.
  turn = np.concatenate([np.arange(len(g)) for g in groups])
  flat = np.concatenate(groups)
  picked = flat[np.argsort(turn, kind="stable")][: count - len(taken)]
  found = np.concatenate([taken, picked])
  return found[np.argsort(-value[found], kind="stable")]


def _check(value: np.ndarray, *, how: str, **counts: int) -> None:
  for name, count in counts.items():
    if count < 1:
      raise InputError(name, count, "must be at least 1", "raise it")
  if how not in HOW:
    rule = f"must be one of {', '.join(HOW)}"
    raise InputError("how", how, rule, "choose one")
  if len(value) < counts["quantiles"]:
    rule = f"must be at least the number of quantiles, {counts['quantiles']}"
    raise InputError("windows", len(value), rule, "skip this latent")
  if not np.isfinite(value).all():
    rule, remedy = "must be finite", "leave out windows without a value"
    raise InputError("value", "NaN or infinite", rule, remedy)


# --- silent windows ----------------------------------------------------------


def silent(
  windows: Sequence[Window],
  count: int,
  *,
  seed: int = 0,
  without: Sequence[Window] = (),
) -> list[Window]:
  """Draws windows on which the latent is silent, without replacement.

  Args:
    windows: candidates, with the latent on them.
    count: number of windows; fewer where there are fewer.
    seed: of the draw.
    without: windows that are not drawn, such as those drawn before.
  """
  taken = {w.key for w in without if w.key != (-1, -1)}
  quiet = [w for w in windows if not w.active.any() and w.key not in taken]
  order = np.random.default_rng(seed).permutation(len(quiet))[:count]
  return [dataclasses.replace(quiet[i], quantile=-1) for i in order]


def hard(
  active: Sequence[Window],
  windows: Sequence[Window],
  count: int,
  embed: Embed,
  *,
  top: int = 10,
) -> list[Window]:
  """Returns the silent windows whose text is nearest to that of active ones.

  Args:
    active: active windows; the `top` strongest are compared with.
    windows: candidates, with the latent on them.
    count: number of windows; fewer where there are fewer.
    embed: function of texts.
    top: number of active windows.
  """
  quiet = [w for w in windows if not w.active.any()]
  strong = sorted(active, key=lambda w: -float(w.values.max(initial=0)))[:top]
  if not quiet or not strong:
    return []
  E = unit(embed([w.text for w in [*strong, *quiet]]))
  nearest = (E[len(strong) :] @ E[: len(strong)].T).max(axis=1)
  order = np.argsort(-nearest, kind="stable")[:count]
  return [dataclasses.replace(quiet[i], quantile=-1) for i in order]


def jaccard(found: Activity, place: int) -> Float[np.ndarray, "n"]:
  """The share of rows where both are active of those where either is.

    J_ij = c_ij / (c_i + c_j - c_ij)

  Args:
    found: latents over a store, with the rows of pairs.
    place: place of latent i among them.
  """
  if found.together.shape[1] != len(found.count):
    rule, remedy = "must have the rows of pairs", "observe with together=True"
    raise InputError("found.together", found.together.shape, rule, remedy)
  both = found.together[place].astype(np.float64)
  either = found.count + float(found.summary.count[place]) - both
  score = np.where(either > 0, both / np.where(either > 0, either, 1), 0)
  score[found.latents[place]] = 0
  return score


def cosine(W: Float[np.ndarray, "n d"], latent: int) -> Float[np.ndarray, "n"]:
  """The cosines of a latent's row with all others; 0 with itself.

  Args:
    W: rows of the decoder or the encoder.
    latent: number of the latent.
  """
  U = unit(W)
  score = U @ U[latent]
  score[latent] = 0
  return score


def nearest(score: Float[np.ndarray, "n"], count: int) -> Int[np.ndarray, "m"]:
  """The latents of the largest positive scores, the largest first.

  Args:
    score: of each latent, from `jaccard` or `cosine`.
    count: number of latents at most.
  """
  order = np.argsort(-score, kind="stable")[:count]
  return order[score[order] > 0]
