"""Two SAEs compared: plain values for a page, or for JSON.

Entries are latents of one SAE with latents of the other: matched pairs, split
families, absorbed and unmatched latents, see `evals.families`. Beside them are a
summary of both SAEs on the same rows, the overlap, and the examples of the latents.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from saejax.data.store.reader import Store
from saejax.data.text import neighbours
from saejax.errors import InputError
from saejax.evals import families, matching, pairs
from saejax.evals.families import Overlap, Rules
from saejax.evals.pairs import Pairs
from saejax.features import cards, parts
from saejax.sae.sae import SAE

FORMAT = 1  # of the data
SIDES = ("a", "b")
_NEAREST = 2  # latents shown with an unmatched one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """Numbers of what the page shows.

  Attributes:
    show: latents of each kind, drawn at random.
    top: examples of a latent.
    before, after: tokens around the token of an example.
    near: latents of the other SAE that are looked at for each latent.
  """

  show: int = 60
  top: int = 5
  before: int = 14
  after: int = 10
  near: int = pairs.NEAR


def check(a: SAE, b: SAE, store: Store) -> None:
  """Refuses SAEs that cannot be compared on a store, before it is read.

  Args:
    a, b: the SAEs.
    store: the store.

  Raises:
    InputError: a width differs, an SAE is a transcoder or its latents have no
      direction in x, or the store has no text.
  """
  if a.d != b.d:
    raise InputError(
      "b",
      f"width {b.d}",
      f"must be of the site of a, which has width {a.d}",
      "give two SAEs of one site",
    )
  if store.d != a.d:
    raise InputError(
      "store",
      str(store.place),
      f"must have rows of the width of the SAEs, {a.d}, not {store.d}",
      "give a store of their site",
    )
  for side, sae in zip(SIDES, (a, b), strict=True):
    if sae.target_prep is not None:
      rule = "must reconstruct its own input, and is a transcoder"
      raise InputError(side, "transcoder", rule, "give an SAE of the store")
    try:
      pairs.directions(sae)
    except NotImplementedError as error:
      rule = f"its latents must each have one direction in x ({error})"
      remedy = "give an SAE with another prep"
      raise InputError(side, type(sae.prep).__name__, rule, remedy) from error
  neighbours.tokenizer_of(store)


def make(
  a: SAE,
  b: SAE,
  store: Store,
  *,
  names: tuple[str, str] = ("A", "B"),
  rules: Rules = Rules(),
  method: str = families.AUTO,
  seed: int = 0,
  sizes: Sizes = Sizes(),
  progress: Callable[[int], None] = lambda rows: None,
  say: Callable[[str], None] = lambda text: None,
  kept: parts.Pass | None = None,
) -> dict[str, Any]:
  """Compares two SAEs over a store, which is read once.

  The rows around examples are read once more, to show the latents on them.

  Args:
    a, b: SAEs of the site of the store, in the inference form.
    store: store with provenance and a tokenizer.
    names: names of the SAEs.
    rules: thresholds, see `evals.families`.
    method: of the assignment: "exact", "mnn" or "auto".
    seed: of the draw of latents, and of the shuffled decoder.
    sizes: numbers of what the page shows.
    progress: called with the number of rows read.
    say: called with a line about each stage.
    kept: folder in which a stopped pass is resumed; None for none.

  Returns:
    Plain values for JSON, see `report.compare_page.schema`.

  Raises:
    InputError: as `check`, there are too many latents for the exact assignment,
      or the rows of the store do not vary.
    parts.Unfinished: other processes are not done.
  """
  check(a, b, store)
  if method == families.EXACT and max(a.n, b.n) > matching.EXACT_LIMIT:
    rule = f"needs at most {matching.EXACT_LIMIT} latents, got {max(a.n, b.n)}"
    raise InputError("match", method, rule, "use auto or mnn")
  say(f"compare: reading {store.rows:,} rows")
  found = pairs.observe(
    *(a, b, store),
    near=sizes.near,
    top=sizes.top,
    progress=progress,
    kept=kept,
  )
  if not found.about_mean.sum() > 0:
    rule = "must have finite rows that vary"
    raise InputError("store", str(store.place), rule, "give another store")
  live = [int(mask.sum()) for mask in found.live]
  say(f"compare: matching {live[0]:,} and {live[1]:,} live latents")
  over = families.overlap(
    found, _encoders(a, b), method=method, tau=rules.tau, seed=seed
  )
  items, counts = entries(found, over, rules)
  shown = _drawn(items, sizes.show, seed)
  say(f"compare: examples of {len(shown):,} of {len(items):,} entries")
  return {
    "format": FORMAT,
    "rules": dataclasses.asdict(rules) | {"near": sizes.near},
    "store": cards.described(store),
    "rows": found.summaries[0].rows,
    "documents": len(found.documents),
    "saes": {
      side: _about(found, i, sae, names[i], counts[i])
      for i, (side, sae) in enumerate(zip(SIDES, (a, b), strict=True))
    },
    "fvu_difference": _difference(found),
    "match": _match(over, rules.tau, live),
    "items": shown,
    "latents": {
      side: _latents(found, i, sae, store, shown, sizes)
      for i, (side, sae) in enumerate(zip(SIDES, (a, b), strict=True))
    },
  }


# --- entries -----------------------------------------------------------------


def entries(
  found: Pairs, over: Overlap, rules: Rules
) -> tuple[list[dict[str, Any]], list[dict[str, int]]]:
  """The entries of all kinds, and the numbers of latents of each kind by SAE.

  Args:
    found: the SAEs over some rows.
    over: their assignment.
    rules: thresholds.
  """
  tell = [_Tell(found, side) for side in (0, 1)]
  items, kinds = [], []
  shared = over.pairs[over.cosines > rules.tau]
  for a, b in shared.tolist():
    items.append(tell[0].item(families.MATCHED, a, {"match": [b]}))
  splits = [families.split(found, side, rules) for side in (0, 1)]
  for side in (0, 1):
    near, others = found.near[side], splits[1 - side]
    split = frozenset(f.latent for f in splits[side])
    lost = families.absorbed(found, side, rules, split)
    for kind, some in (
      (families.SPLIT, splits[side]),
      (families.ABSORBED, lost),
    ):
      items += [tell[side].family(kind, family) for family in some]
    theirs = found.near[1 - side].latent
    kinds.append(
      {
        families.MATCHED: set(shared[:, side].tolist()),
        families.SPLIT: set(split),
        families.PART: {
          int(theirs[f.latent, j]) for f in others for j in f.places
        },
        families.ABSORBED: {f.latent for f in lost},
      }
    )
    live = set(np.flatnonzero(found.live[side]).tolist())
    rest = live.difference(*kinds[side].values())
    kinds[side][families.UNMATCHED] = rest
    alive = found.live[1 - side][near.latent]
    for i in sorted(rest):
      some = near.latent[i][alive[i]][:_NEAREST].tolist()
      items.append(tell[side].item(families.UNMATCHED, i, {"near": some}))
  return items, [{k: len(v) for k, v in kind.items()} for kind in kinds]


class _Tell:
  """Makes entries of the latents of one SAE."""

  def __init__(self, found: Pairs, side: int):
    self.found, self.side = found, side
    self.near = found.near[side]
    self.both, self.correlation = self.near.both(), found.correlation(side)
    self.back = found.near[1 - side].both(), found.correlation(1 - side)

  def item(
    self, kind: str, latent: int, members: Mapping[str, Sequence[int]]
  ) -> dict[str, Any]:
    """An entry of a latent with latents of the other SAE by their role."""
    return {
      "kind": kind,
      "side": SIDES[self.side],
      "latent": latent,
      "members": [
        self.member(latent, other, role)
        for role, others in members.items()
        for other in others
      ],
    }

  def family(self, kind: str, family: families.Family) -> dict[str, Any]:
    """An entry of a split or an absorbed latent."""
    other = self.near.latent[family.latent, list(family.places)].tolist()
    roles = {"part": other}
    if kind == families.ABSORBED:
      roles = {"main": other[:1], "specific": other[1:]}
    found = self.item(kind, family.latent, roles)
    for member, added in zip(found["members"], family.added, strict=True):
      member["added"] = cards.short(added)
    return found | {"covered": cards.short(family.covered)}

  def member(self, latent: int, other: int, role: str) -> dict[str, Any]:
    """A latent of the other SAE; joint activity where it was observed."""
    d = self.found.directions
    cosine = d[self.side][latent] @ d[1 - self.side][other]
    found = {
      "latent": other,
      "role": role,
      "cosine": round(float(cosine), 4),
    }
    (at,) = np.nonzero(self.near.latent[latent] == other)
    both, correlation, i = self.both, self.correlation, latent
    if not len(at):
      (at,) = np.nonzero(self.found.near[1 - self.side].latent[other] == latent)
      (both, correlation), i = self.back, other
    if not len(at):
      return found
    j = int(at[0])
    count = self.found.summaries[self.side].count[latent]
    theirs = self.found.summaries[1 - self.side].count[other]
    found |= {
      "both": int(both[i, j]),
      "covers": cards.short(both[i, j] / max(count, 1)),
      "inside": cards.short(both[i, j] / max(theirs, 1)),
    }
    if np.isfinite(correlation[i, j]):
      found["correlation"] = round(float(correlation[i, j]), 4)
    return found


def _drawn(
  items: Sequence[dict[str, Any]], count: int, seed: int
) -> list[dict[str, Any]]:
  """At most `count` entries of each kind and SAE, drawn at random."""
  rng = np.random.default_rng(seed)
  groups: dict[tuple[str, str], list[int]] = {}
  for i, item in enumerate(items):
    groups.setdefault((item["kind"], item["side"]), []).append(i)
  kept = [
    int(i)
    for group in groups.values()
    for i in np.sort(rng.permutation(group)[:count])
  ]
  return [items[i] for i in kept]


# --- numbers -----------------------------------------------------------------


def _encoders(a: SAE, b: SAE) -> tuple[np.ndarray, np.ndarray] | None:
  """Encoder rows, whose directions do not depend on the scale of a prep."""
  try:
    return np.asarray(a.W_enc), np.asarray(b.W_enc)
  except NotImplementedError:
    return None


def _about(
  found: Pairs, side: int, sae: SAE, name: str, kinds: Mapping[str, int]
) -> dict[str, Any]:
  total = found.summaries[side]
  return {
    "name": name,
    "n": sae.n,
    "d": sae.d,
    "activation": _activation(sae),
    "prep": type(sae.prep).__name__,
    "live": int(found.live[side].sum()),
    "l0": cards.short(total.count.sum() / total.rows),
    "fvu": round(found.fvu(side), 5),
    "kinds": dict(kinds),
  }


def _activation(sae: SAE) -> str:
  """The name of the activation, with the largest number of active latents."""
  name, k = type(sae.activation).__name__, sae.activation.row_k
  return name if k is None else f"{name}, k {k}"


def _difference(found: Pairs) -> dict[str, Any]:
  """The interval has no ends with one document, and is left out then."""
  d = found.fvu_difference()
  ends = {"low": d.low, "high": d.high} if d.pairs > 1 else {}
  return {k: round(v, 6) for k, v in ({"effect": d.effect} | ends).items()}


def _match(over: Overlap, tau: float, live: Sequence[int]) -> dict[str, Any]:
  edges = matching.COSINE_EDGES
  count = lambda values: np.histogram(
    np.clip(values, edges[0], edges[-1]), edges
  )[0].tolist()
  kept = over.pairs[over.cosines > tau]
  shared = len(kept)
  found: dict[str, Any] = {
    "method": over.method,
    "pairs": len(over.pairs),
    "shared": shared,
    "same_number": int((kept[:, 0] == kept[:, 1]).sum()),
    "share": {
      side: shared / max(n, 1) for side, n in zip(SIDES, live, strict=True)
    },
    "edges": np.round(edges, 4).tolist(),
    "counts": count(over.cosines),
    "null": count(over.null),
    "null_shared": int((over.null > tau).sum()),
  }
  if len(over.pairs):
    found["mean"] = round(float(over.cosines.mean()), 4)
    found["null_mean"] = round(float(over.null.mean()), 4)
  if over.both >= 0:
    found["both"] = over.both
  return found


# --- latents -----------------------------------------------------------------


def _latents(
  found: Pairs,
  side: int,
  sae: SAE,
  store: Store,
  items: Sequence[Mapping[str, Any]],
  sizes: Sizes,
) -> list[dict[str, Any]]:
  """The latents of one SAE in the entries, with their examples."""
  wanted = set()
  for item in items:
    if item["side"] == SIDES[side]:
      wanted.add(item["latent"])
    else:
      wanted.update(member["latent"] for member in item["members"])
  total, ids = found.summaries[side], sorted(wanted)
  tops = [
    [("top", float(v), int(r)) for v, r in zip(*total.top(i), strict=True)]
    for i in ids
  ]
  shown = cards.examples(
    *(sae, store, ids, tops),
    sizes=cards.Sizes(before=sizes.before, after=sizes.after),
  )
  return [
    cards.numbers(total, i) | {"examples": examples}
    for i, examples in zip(ids, shown, strict=True)
  ]
