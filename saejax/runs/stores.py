"""The stores of a run: harvested, sampled, described."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from saejax import processes, terminal
from saejax.data import harvest
from saejax.data.mix import Mix
from saejax.data.online import OnlineRows
from saejax.data.store import place as places
from saejax.data.store.reader import Store
from saejax.data.store.share import Share
from saejax.data.text import corpus, subject
from saejax.errors import InputError
from saejax.sae import files
from saejax.training.fingerprint import differences


def harvested(
  config: harvest.HarvestConfig, source: subject.Subject | None = None
) -> tuple[Store, Store]:
  """Returns the training and the held-out store; harvests them if needed.

  Progress is shown on standard error. Several processes each write their buckets.

  Args:
    config: settings of the harvest.
    source: the model; by default that of the settings.
  """
  with _progress() as progress:
    if jax.process_count() > 1:
      share = Share(jax.process_index(), jax.process_count())
      harvest.harvest_share(
        config, share=share, source=source, progress=progress
      )
      processes.sync()  # all buckets are there
    return harvest.harvest(config, source=source, progress=progress)


def harvested_share(
  config: harvest.HarvestConfig, *, share: Share, repair: bool
) -> list[tuple[harvest.Written, harvest.Written]]:
  """Harvests one process's buckets of the stores of each site.

  Args:
    config: settings of the harvest.
    share: which process this is, of how many.
    repair: whether what is damaged is harvested again.

  Returns:
    (training store, held-out store) of each site.
  """
  with _progress() as progress:
    return harvest.harvest_share(
      config, share=share, repair=repair, progress=progress
    )


def online(
  config: harvest.OnlineConfig,
) -> list[tuple[OnlineRows, Store]]:
  """Returns the rows of each site, computed in training, and its held-out store.

  The held-out stores are harvested if needed, with progress on standard error.

  Args:
    config: settings of the rows.
  """
  with _progress() as progress:
    return harvest.online_sites(config, progress=progress)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Mapping[str, Any]], None]]:
  """Shows the progress of a harvest on standard error."""
  screen = terminal.Screen(sys.stderr)
  shown = 0.0

  def progress(state: Mapping[str, Any]) -> None:
    nonlocal shown
    if "warning" in state:
      screen.line(f"warning: harvest {state['phase']}: {state['warning']}")
      return
    now = time.monotonic()
    pause = 0.2 if screen.is_terminal else 10.0
    if not state["complete"] and now - shown < pause:
      return
    shown = now
    rows, wanted = state["rows"], state["rows_wanted"]
    rate = state["rows_per_second"]
    left = (wanted - rows) / rate if rate else float("inf")
    screen.status(
      [
        f"harvest {state['phase']}: {rows:,}/{wanted:,} rows",
        f"{terminal.count(rate)} rows/s",
        "complete" if state["complete"] else f"ETA {terminal.duration(left)}",
        f"dropped {sum(state['dropped'].values()):,} tokens",
      ]
    )
    if state["complete"]:
      screen.end()  # the next store's status does not replace it

  try:
    yield progress
  finally:
    screen.end()


def check_held_out(store: Store, held_out: Store) -> None:
  """Checks that a held-out store belongs to a training store.

  Args:
    store: the training store.
    held_out: the held-out store.

  Raises:
    InputError: the stores have equal rows, are exchanged, or differ in width or
      in the model, site or tokenizer.
  """
  remedy = "give the held-out store of the same harvest"
  if store.d != held_out.d:
    raise InputError(
      "held_out",
      str(held_out.place),
      f"must have d={store.d} as the training store, has d={held_out.d}",
      remedy,
    )
  if store.content == held_out.content:
    raise InputError(
      "held_out",
      str(held_out.place),
      "must have other rows than the training store",
      remedy,
    )
  for field, opened, wrong in (
    ("store", store, corpus.HELD_OUT),
    ("held_out", held_out, corpus.TRAIN),
  ):
    if opened.meta.get("split") == wrong:
      raise InputError(
        field,
        str(opened.place),
        f"must not be the {wrong} split of a harvest (see its metadata)",
        "exchange store and held_out, or give another store",
      )
  for name in ("model", "site", "tokenizer"):
    theirs, ours = store.meta.get(name), held_out.meta.get(name)
    if theirs is None or ours is None:
      continue
    lines = differences(_declared(theirs, ours), _declared(ours, theirs), name)
    if lines:
      raise InputError(
        "held_out",
        str(held_out.place),
        f"the training store has {lines[0]}",
        remedy,
      )


def check_stage(store: Store, folder: str) -> None:
  """Refuses to boost on an SAE of another model or site than a store's.

  Args:
    store: the training store.
    folder: folder of the saved SAE.

  Raises:
    InputError: model or site differ, where both declare it; or there is no SAE.
  """
  try:
    about = files.about(folder)
  except InputError as error:
    raise error.renamed("residual_of") from error
  for name in ("model", "site"):
    theirs, ours = about.get(name), store.meta.get(name)
    if theirs is None or ours is None:
      continue
    found = differences(_declared(theirs, ours), _declared(ours, theirs), name)
    if found:
      raise InputError(
        "residual_of",
        folder,
        f"must have been trained on rows of the model and site of the store, "
        f"was with {found[0]}",
        "name an SAE of this site, or the store of that one",
      )


def _declared(one: Any, other: Any) -> Any:
  """Returns the entries of a mapping whose keys another has too."""
  if isinstance(one, Mapping) and isinstance(other, Mapping):
    return {k: _declared(v, other[k]) for k, v in one.items() if k in other}
  return one


def describe(
  store: Store | Mix | OnlineRows, held_out: Store
) -> dict[str, Any]:
  """Returns facts about the rows of a run, for its results.

  Args:
    store: the training rows.
    held_out: the held-out store.
  """
  target = store.meta.get("target")  # the site that transcoders write
  return {
    "model": store.meta.get("model"),
    "site": store.meta.get("site"),
    **({"target": target} if target else {}),
    "corpus": store.meta.get("corpus"),
    "train": _about(store),
    "held_out": _about(held_out),
  }


def _about(store: Store | Mix | OnlineRows) -> dict[str, Any]:
  if isinstance(store, OnlineRows):
    return store.describe()
  if isinstance(store, Mix):
    return _about_mix(store)
  return {
    "store": str(places.absolute(store.place)),
    "content": store.content,
    "rows": store.rows,
  }


def _about_mix(mix: Mix) -> dict[str, Any]:
  parts = zip(mix.stores, mix.weights, strict=True)
  return {
    "stores": [_about(store) | {"weight": weight} for store, weight in parts],
    "content": mix.content,
    "rows": mix.rows,
  }


def different_sites(
  a: Mapping[str, Any], b: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
  """Yields in what model and site differ, where both say it.

  Args:
    a, b: metadata of stores, or what was saved with SAEs.

  Yields:
    What a says and what b says, such as "site layer 3" and "site layer 4".
  """
  for part, keys in (("model", ("weights",)), ("site", ("layer", "point"))):
    ours, theirs = a.get(part) or {}, b.get(part) or {}
    for key in keys:
      if key in ours and key in theirs and ours[key] != theirs[key]:
        yield f"{part} {key} {ours[key]}", f"{part} {key} {theirs[key]}"
