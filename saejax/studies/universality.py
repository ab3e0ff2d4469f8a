"""Matches the latents of SAEs of two models and compares their geometry.

    python experiments/universality.py --a=SAE --b=SAE \\
      --store_a=runs/stores/store-0123456789abcdef \\
      --store_b=runs/stores/store-fedcba9876543210
    saejax universality SAE SAE --store_a=STORE --matching=hungarian

The stores are of one corpus, each of the site of its SAE; without --store_b both
SAEs read the first. Models with one tokenizer are compared token by token, others
where a word ends in both. Latents are matched by the correlation of their
activations, and pairs without concepts among their top tokens are dropped. The run
folder gets results.json, results.csv, plots and report.html; see
`evals.spaces.universality` and `evals.spaces.similarity` for the measures.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from saejax import checks, terminal
from saejax.data.store import reader
from saejax.data.store.reader import Store
from saejax.data.text import neighbours
from saejax.errors import InputError
from saejax.evals.spaces import (
  semantics,
  similarity,
  token_alignment,
  universality,
)
from saejax.evals.spaces.universality import Observed, Pairs
from saejax.features import cards
from saejax.features.summary import Summary
from saejax.interop import names
from saejax.report import extras, study, universality_page
from saejax.runs import folder as run_folder
from saejax.sae import files
from saejax.sae.sae import SAE
from saejax.studies import dashboard_sources

SIDES = ("a", "b")
POSITIONAL = SIDES  # flags that may be given without their names, in order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  a: str  # a saved or published SAE, as for saejax.load
  b: str  # another one, of another model or site or of the same
  store_a: str  # folder or URL of a store of a's site, with text
  store_b: str = ""  # one of b's site and the same text; "" for store_a
  matching: str = "many_to_one"  # many_to_one, one_to_one or hungarian
  correlation: float = universality.LEAST  # pairs up to it are dropped
  top: int = 5  # tokens of the largest activations, by which pairs are kept
  shared: bool = True  # whether pairs must have a top token in common
  inner: str = "cosine"  # similarity of decoder rows: cosine or correlation
  share: float = similarity.SHARE  # of the variance of SVCCA's directions
  compat: str = ""  # reference: SVCCA of as many directions as its code keeps
  shuffles: int = similarity.COUNT  # draws of each null
  most: int = 4000  # pairs whose geometry is compared, drawn at random
  first_position: int = 1  # tokens before it are left out
  seed: int = 0  # of the nulls and the draw
  batch_rows: int = 4096  # rows read at a time
  run_dir: str = "runs/universality"  # folder of the results

  def __post_init__(self):
    for field in (*SIDES, "store_a"):
      if not getattr(self, field):
        raise InputError(field, "", "must not be empty", "give its path")
    checks.at_least(self, 1, "top", "shuffles", "batch_rows")
    checks.at_least(self, 0, "first_position", "seed")
    checks.at_least(self, similarity.PER_DIRECTION, "most")
    checks.fraction(self, "correlation", "share")
    if not self.share:
      raise InputError("share", self.share, "must be above 0", "use 0.99")
    for field, known in (
      ("matching", universality.MATCHINGS),
      ("inner", similarity.INNERS),
      ("compat", similarity.COMPAT),
    ):
      if getattr(self, field) not in known:
        shown = ", ".join(filter(None, known))
        rule = f"must be one of {shown}" + " or empty" * ("" in known)
        raise InputError(field, getattr(self, field), rule, "choose one")


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
  """An SAE and the rows of its site."""

  name: str
  sae: SAE
  store: Store


def main(config: Config) -> None:
  """Matches latents, compares their geometry and writes the report.

  Args:
    config: settings of the command.
  """
  extras.check()
  a, b = opened(config)
  with run_folder.opened(config.run_dir, config) as folder:
    screen = terminal.Screen(sys.stderr)
    screen.line("universality: aligning tokens")
    rows, how = aligned(config, a, b)
    screen.line(f"universality: {len(rows):,} tokens ({how})")
    batches = paired(config, a, b, rows)
    seen = universality.observe(
      *(a.sae, b.sae, batches), top=config.top, batch_rows=config.batch_rows
    )
    matched = universality.match(
      seen.sums, config.matching, least=config.correlation
    )
    tops = top_tokens(a, seen.a, rows[:, 0]), top_tokens(b, seen.b, rows[:, 1])
    kept = universality.concepts(matched, *tops, shared=config.shared)
    screen.line(f"universality: {len(matched):,} pairs, {len(kept):,} kept")
    points = compared(config, a, b, matched, kept, tops)
    study.write(
      folder,
      universality_page.sections(points, examples(kept, tops)),
      config=config,
      points=points,
      data=_about(a, b, rows, how, seen),
      title="Universality: latents of two models",
      script="experiments/universality.py",
      matched=matched.record(),
      kept=kept.record(),
    )
  for point in points:
    print(_line(point))


def opened(config: Config) -> tuple[Side, Side]:
  """Opens the SAEs and stores; b is the side of the smaller dictionary.

  Args:
    config: settings of the command.

  Raises:
    InputError: one cannot be read, an SAE is of another site than its store, or
      a store has no text.
  """
  found = []
  for side in SIDES:
    given = getattr(config, side)
    field = "store_b" if side == "b" and config.store_b else "store_a"
    store = reader.open(os.path.expanduser(getattr(config, field)))
    try:
      neighbours.tokenizer_of(store)
      sae = names.load(given)
      known = os.path.expanduser(given)
      saved = os.path.exists(os.path.join(known, files.STRUCTURE))
      about = files.about(known) if saved else {}
      dashboard_sources.check_site(about, store.meta)
    except InputError as error:
      raise error.renamed(field if error.field == "store" else side) from error
    if sae.encoder.width(sae.decoder) != store.d:
      rule = f"must read rows of width {store.d}, that of its store"
      raise InputError(side, given, rule, f"give its own store as {field}")
    found.append(Side(given, sae, store))
  a, b = found
  try:
    universality.check_sizes(a.sae.n, b.sae.n)
  except InputError as error:
    raise error.renamed("b") from error
  return (a, b) if a.sae.n >= b.sae.n else (b, a)


# --- tokens ------------------------------------------------------------------


def aligned(config: Config, a: Side, b: Side) -> tuple[np.ndarray, str]:
  """Rows of the same tokens in both stores, in the order of a's.

  Args:
    config: settings of the command.
    a, b: the sides.

  Returns:
    (row numbers [m, 2], how they were aligned).

  Raises:
    InputError: the stores have no text in common.
  """
  index = [neighbours.index(side.store) for side in (a, b)]
  same = a.store.meta.get("tokenizer") == b.store.meta.get("tokenizer")
  if same:
    how = "equal tokens"
    keys = [(one.doc, one.pos) for one in index]
    pairs = token_alignment.same_tokens(*keys)
    # Another text has equal tokens at equal positions by chance alone.
    equal = index[0].tok[pairs[:, 0]] == index[1].tok[pairs[:, 1]]
    doc = np.unique(index[0].doc[pairs[:, 0]], return_inverse=True)[1]
    same_text = 2 * np.bincount(doc, equal) > np.bincount(doc)
    pairs = pairs[equal & same_text[doc]]
  else:
    how = "common ends of words"
    pairs = _word_ends(a, b, index)
  late = [
    neighbours.in_window(side.store, one.pos[pairs[:, i]])
    for i, (side, one) in enumerate(zip((a, b), index, strict=True))
  ]
  pairs = pairs[np.minimum(*late) >= config.first_position]
  if not len(pairs):
    name = "store_b" if config.store_b else "store_a"
    rule = f"must have tokens in common with the store of {a.name}"
    remedy = "harvest both stores from one corpus, in whole documents"
    raise InputError(name, getattr(config, name), rule, remedy)
  rows = np.stack([one.row[pairs[:, i]] for i, one in enumerate(index)], -1)
  return rows[np.argsort(rows[:, 0], kind="stable")], how


def _word_ends(a: Side, b: Side, index) -> np.ndarray:
  """Places in both indices of common word ends, document by document.

  A document of which the stores hold different parts is left out.
  """
  words = [neighbours.tokenizer_of(side.store) for side in (a, b)]
  found = [np.zeros((0, 2), np.int64)]
  for doc in np.intersect1d(index[0].doc, index[1].doc):
    first, texts = [], []
    for one, tokenizer in zip(index, words, strict=True):
      start, stop = np.searchsorted(one.doc, [doc, doc + 1])
      first.append(start)
      texts.append(neighbours.pieces(tokenizer, one.tok[start:stop]))
    try:
      pairs = token_alignment.common_word_ends(*texts)
    except InputError:
      continue
    found.append(pairs + np.array(first))
  return np.concatenate(found)


def paired(
  config: Config, a: Side, b: Side, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields batches of rows of the same tokens at both sites.

  Args:
    config: settings of the command.
    a, b: the sides.
    rows: row numbers in both stores [m, 2].
  """
  for start in range(0, len(rows), config.batch_rows):
    part = rows[start : start + config.batch_rows]
    x_a, x_b = (
      side.store.take(part[:, i], "x")["x"].reshape(len(part), -1)
      for i, side in enumerate((a, b))
    )
    yield x_a, x_b


def top_tokens(side: Side, seen: Summary, rows: np.ndarray) -> list[list[str]]:
  """Texts of the tokens of each latent's largest activations, without repeats.

  Args:
    side: the SAE and its store.
    seen: summary of its latents.
    rows: row number in the store of each token of the pass.
  """
  words = neighbours.tokenizer_of(side.store)
  places = np.where(seen.top_rows >= 0, seen.top_rows, 0)
  tokens = side.store.take(rows[places.reshape(-1)], "tok")["tok"]
  tokens = tokens.reshape(places.shape)
  text = functools.cache(lambda token: words.decode([token]))
  return [
    list(dict.fromkeys(text(int(t)) for t in own[used]))
    for own, used in zip(tokens, seen.top_rows >= 0, strict=True)
  ]


# --- geometry ----------------------------------------------------------------


def compared(
  config: Config,
  a: Side,
  b: Side,
  matched: Pairs,
  kept: Pairs,
  tops: tuple[list[list[str]], list[list[str]]],
) -> list[dict[str, Any]]:
  """Similarities of matched pairs, of those kept, and of each meaning.

  Args:
    config: settings of the command.
    a, b: the sides.
    matched, kept: pairs before and after the filters.
    tops: top tokens of the latents of a and of b.
  """
  scores = {
    "svcca": functools.partial(
      similarity.svcca_score, share=config.share, compat=config.compat
    ),
    "rsa": functools.partial(similarity.rsa_score, inner=config.inner),
  }
  draws = {"count": config.shuffles, "seed": config.seed}
  rng = np.random.default_rng(config.seed)
  points = []
  for name, pairs in (("all pairs", matched), ("kept pairs", kept)):
    if len(pairs) > config.most:
      pairs = pairs.where(rng.choice(len(pairs), config.most, replace=False))
    A, B = _decoders(a, b, pairs)
    point: dict[str, Any] = {"set": name, **pairs.record()}
    if len(pairs) >= similarity.PER_DIRECTION:
      for kind, score in scores.items():
        made = similarity.with_null(score(A, B), len(A), **draws)
        point[kind] = made.record()
    points.append(point)
  for meaning, keywords in semantics.KEYWORDS.items():
    chosen = universality.subspace(pairs, *tops, keywords)
    point = {"set": meaning, **pairs.where(chosen).record()}
    if len(chosen) >= similarity.PER_DIRECTION:
      for kind, score in scores.items():
        made = similarity.of_subset(A, B, chosen, score, **draws)
        point[kind] = made.record()
    points.append(point)
  return points


def _decoders(a: Side, b: Side, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
  return np.asarray(a.sae.W_dec)[pairs.a], np.asarray(b.sae.W_dec)[pairs.b]


def examples(
  pairs: Pairs, tops: tuple[list[list[str]], list[list[str]]], count: int = 30
) -> list[dict[str, Any]]:
  """The pairs of largest correlation, with their top tokens.

  Args:
    pairs: the pairs.
    tops: top tokens of the latents of a and of b.
    count: number of pairs.
  """
  best = pairs.where(np.argsort(-pairs.correlation, kind="stable")[:count])
  return [
    {
      "a": int(i),
      "b": int(j),
      "correlation": float(c),
      "tokens_a": ", ".join(universality.words(tops[0][i])),
      "tokens_b": ", ".join(universality.words(tops[1][j])),
    }
    for i, j, c in zip(best.a, best.b, best.correlation, strict=True)
  ]


def _about(
  a: Side, b: Side, rows: np.ndarray, how: str, seen: Observed
) -> dict[str, Any]:
  return {
    "tokens": len(rows),
    "finite_tokens": seen.sums.rows,
    "alignment": how,
    **{
      side: {"sae": one.name, "n": one.sae.n, **cards.described(one.store)}
      for side, one in (("a", a), ("b", b))
    },
  }


def _line(point: Mapping[str, Any]) -> str:
  text = f"{point['set']}: {point['pairs']} pairs"
  for kind in ("svcca", "rsa"):
    if kind in point:
      found = point[kind]
      text += f", {kind.upper()} {found['score']:.3f}"
      text += f" (shuffled {found['shuffled']['mean']:.3f}"
      text += f", p {found['shuffled']['p']:.3f})"
  return text
