"""Reads the examples of latents from a store: active and silent windows.

One pass finds the active windows, see `window_search.find`; then the few that were chosen
are read. Silent windows are drawn from a pool of random ones that all latents share,
or from the windows of each latent's neighbours, or are the hard ones of the pool.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.evals.autointerp import autointerp_examples, window_search, windows
from saejax.evals.autointerp.autointerp import Examples
from saejax.evals.autointerp.judge_embedding import Embed
from saejax.evals.autointerp.windows import Text, Window
from saejax.features import parts
from saejax.sae.sae import SAE

_OF_A_NEIGHBOUR = 10  # windows
_BLOCK = 64  # latents that are computed at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """Numbers of windows, and how they are cut and drawn.

  Attributes:
    train, test: active windows to explain with, and to test with.
    silent: silent windows to test with.
    contrast: further silent windows, shown beside those of `train`.
    quantiles: rank-quantiles of the active windows.
    how: how `train` is sampled, see `autointerp_examples.split`.
    length: tokens of a window.
    centred: whether active windows have their largest value at 3/4.
    least: active windows below which a latent is skipped.
    pool: random windows that silent ones are drawn from.
  """

  train: int = 40
  test: int = 50
  silent: int = 50
  contrast: int = 0
  quantiles: int = 10
  how: str = "quantiles"
  length: int = windows.LENGTH
  centred: bool = False
  least: int = autointerp_examples.LEAST
  pool: int = 500


def read(
  sae: SAE,
  store: Store,
  latents: Sequence[int] | Int[np.ndarray, "L"],
  *,
  sizes: Sizes = Sizes(),
  near: Mapping[int, Sequence[int]] | None = None,
  embed: Embed | None = None,
  density: Float[np.ndarray, "n"] | None = None,
  seed: int = 0,
  batch_rows: int = 4096,
  compat: str = "",
  kept: parts.Pass | None = None,
) -> dict[int, Examples]:
  """Reads the examples of latents; those with too few active windows have none.

  Args:
    sae: the SAE, in the inference form.
    store: store with provenance and a tokenizer.
    latents: numbers of the latents.
    sizes: numbers of windows.
    near: neighbours of each latent, such as `autointerp_examples.nearest` of
      Jaccard indices or cosines; silent windows are then strong ones of theirs.
    embed: function of texts; silent windows are then hard ones.
    density: share of rows where each latent is active, such as of
      `features.summary`, for the rates of the examples.
    seed: of all draws.
    batch_rows: largest number of rows on the device at once.
    compat: "delphi" draws train and test from one list, and centres windows where
      they shall not be.
    kept: folder in which a stopped pass is resumed; None for none.

  Raises:
    InputError: both `near` and `embed` are given, there is no such latent, or the
      store has no text.
    parts.Unfinished: other processes are not done.
  """
  if near is not None and embed is not None:
    rule = "must not be given beside embed"
    raise InputError("near", "neighbours", rule, "choose one kind")
  own = np.unique(np.asarray(latents, np.int64))
  others = [i for mine in (near or {}).values() for i in mine]
  every = np.union1d(own, np.array(others, np.int64))
  found = window_search.find(
    *(sae, store, every),
    length=sizes.length,
    seed=seed,
    batch_rows=batch_rows,
    kept=kept,
  )
  pool = window_search.draw_rows(
    store, sizes.pool, length=sizes.length, seed=seed
  )
  reader = _Reader(sae, store, sizes, seed, batch_rows, compat)
  shared = reader.texts(pool, centred=False)
  chosen = []
  for latent in own.tolist():
    mine = found.only(int(np.searchsorted(every, latent)))
    mine = mine.apart(sizes.length) if sizes.centred else mine
    if mine.sampled.sum() < max(sizes.least, sizes.quantiles):
      continue
    quiet = shared
    if near is not None:
      rows = _of_neighbours(found, every, near.get(latent, ()))
      quiet = reader.texts(rows, centred=False)
    chosen.append(reader.chosen(latent, mine, quiet))
  examples = {}
  for start in range(0, len(chosen), _BLOCK):
    examples |= reader.examples(chosen[start : start + _BLOCK], embed)
  if density is None:
    return examples
  return {
    latent: dataclasses.replace(one, rate=float(density[latent]))
    for latent, one in examples.items()
  }


def _of_neighbours(
  found: window_search.Found, every: np.ndarray, near: Sequence[int]
) -> Int[np.ndarray, "m"]:
  """Rows of the strongest windows of the neighbours, each window once."""
  rows: dict[tuple[int, int], int] = {}
  for other in near:
    strong = found.only(int(np.searchsorted(every, other)))
    for i in range(min(_OF_A_NEIGHBOUR, len(strong.row))):
      key = int(strong.doc[i]), int(strong.cut[i])
      rows.setdefault(key, int(strong.row[i]))
  return np.array(list(rows.values()), np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class _Chosen:
  """The windows of one latent, before the latent is computed on them."""

  latent: int
  largest: float
  train: tuple[list[Text], Int[np.ndarray, "t"]]  # windows and their quantiles
  test: tuple[list[Text], Int[np.ndarray, "s"]]
  quiet: list[Text]

  @property
  def all(self) -> list[tuple[Text, int]]:
    """Every window, with its quantile."""
    parts_ = [
      pair
      for part in (self.train, self.test)
      for pair in zip(part[0], part[1].tolist(), strict=True)
    ]
    return parts_ + [(text, -1) for text in self.quiet]


@dataclasses.dataclass(frozen=True, eq=False)
class _Reader:
  """Chooses and reads the windows of latents."""

  sae: SAE
  store: Store
  sizes: Sizes
  seed: int
  batch_rows: int
  compat: str

  def texts(
    self, rows: Int[np.ndarray, "m"], *, centred: bool, compat: str = ""
  ) -> list[Text]:
    """Windows as text.

    Args:
      rows: a row of each.
      centred, compat: as for `windows.texts`.
    """
    if not len(rows):
      return []
    length = self.sizes.length
    return windows.texts(
      self.store, rows, length=length, centred=centred, compat=compat
    )

  def chosen(
    self, latent: int, found: window_search.Found, quiet: list[Text]
  ) -> _Chosen:
    """The windows of a latent.

    Args:
      latent: its number.
      found: its active windows, the strongest first.
      quiet: candidates of silent windows.
    """
    s = self.sizes
    split = autointerp_examples.split(
      found.value,
      train=s.train,
      test=s.test,
      quantiles=s.quantiles,
      how=s.how,
      seed=self.seed,
      sampled=found.sampled,
      compat=self.compat,
    )
    train, test = (
      (
        self.texts(found.row[at], centred=s.centred, compat=self.compat),
        split.quantile[at],
      )
      for at in (split.train, split.test)
    )
    return _Chosen(latent, float(found.value[0]), train, test, quiet)

  def examples(
    self, some: Sequence[_Chosen], embed: Embed | None
  ) -> dict[int, Examples]:
    """The examples of some latents.

    Args:
      some: their windows.
      embed: function of texts for hard silent windows.
    """
    wanted = [(c.latent, text) for c in some for text, _ in c.all]
    on = iter(
      windows.values(self.sae, self.store, wanted, batch_rows=self.batch_rows)
    )
    found = {}
    for c in some:
      made = [
        text.window(next(on), largest=c.largest, quantile=quantile)
        for text, quantile in c.all
      ]
      train, rest = made[: len(c.train[0])], made[len(c.train[0]) :]
      test, quiet = rest[: len(c.test[0])], rest[len(c.test[0]) :]
      found[c.latent] = self._divided(train, test, quiet, embed)
    return found

  def _divided(
    self,
    train: list[Window],
    test: list[Window],
    quiet: list[Window],
    embed: Embed | None,
  ) -> Examples:
    s = self.sizes
    if embed is None:
      silent = autointerp_examples.silent(quiet, s.silent, seed=self.seed)
    else:
      silent = autointerp_examples.hard(test, quiet, s.silent, embed)
    contrast = autointerp_examples.silent(
      quiet, s.contrast, seed=self.seed + 1, without=silent
    )
    return Examples(train=train, test=test, silent=silent, contrast=contrast)
