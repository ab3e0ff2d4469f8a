"""Opens stores."""

import hashlib
from collections.abc import Mapping
from typing import Any

from saejax import durable
from saejax.data.store import arrays, ledger, manifest
from saejax.data.store import place as places
from saejax.data.store.columns import from_json
from saejax.data.store.stored import Store as Store
from saejax.errors import InputError


def open(  # pylint: disable=redefined-builtin
  path: places.Path,
  *,
  expect: Mapping[str, Any] | None = None,
  growing: bool = False,
) -> Store:
  """Opens a store.

  Sizes of all files and the contents of small ones are compared with the
  manifest here; rows are compared with their checksums when they are read.

  Args:
    path: folder of the store, or its URL, see `place.at`.
    expect: required metadata: model, layer, point, d, split or any entry.
    growing: whether to open one that is being written, with the buckets that
      are there now.

  Raises:
    InputError: the store is missing, incomplete, damaged or unlike `expect`.
  """
  place = places.at(path)
  arrays.check_process(place)
  try:
    found = place.read([manifest.META, manifest.NAME])
    if manifest.META not in found:
      raise InputError(
        "path",
        str(place),
        f"must be a store ({manifest.META} is missing)",
        "harvest first, or give the path of the folder store-...",
      )
    if manifest.NAME not in found and not growing:
      raise InputError(
        "path",
        str(place),
        f"must be complete ({manifest.NAME}, which is written last, is missing)",
        "repeat the command that wrote it; it resumes where it stopped",
      )
    if manifest.NAME in found:
      store = _complete(place)
    else:
      where = str(place / manifest.META)
      store = _growing(place, durable.parse_json(found[manifest.META], where))
  except OSError as error:
    raise manifest.broken(
      error.filename or place, f"cannot be read ({error.strerror})"
    ) from error
  except InputError:
    raise
  except (LookupError, TypeError, ValueError, AttributeError) as error:
    raise manifest.broken(
      place,
      f"meta.json, stats.json, ledger or manifest is not valid "
      f"({type(error).__name__}: {error})",
    ) from error
  for field, wanted in (expect or {}).items():
    found = described(store, field)
    if found != wanted:
      raise InputError(
        "expect",
        f"{field}={wanted}",
        f"the store {place.name} has {field}={found}",
        "open another store, or harvest one with these settings",
      )
  return store


def described(store: Store, field: str) -> Any:
  """Looks up a property of a store; None where it is not recorded.

  Args:
    store: the store.
    field: "model", "layer", "point", "d" or an entry of the metadata.
  """
  if field == "d":
    return store.d
  if field == "model":
    return (store.meta.get("model") or {}).get("name")
  if field in ("layer", "point"):
    return (store.meta.get("site") or {}).get(field)
  return store.meta.get(field)


def _complete(place: places.Place) -> Store:
  """Reads a store that has a manifest.

  Args:
    place: where it is.

  Raises:
    InputError: it is damaged; names the file.
  """
  _, found, content = manifest.read(place)
  names = sorted(n for n in found if n.startswith(ledger.FOLDER + "/"))
  entries = [ledger.parse(place, name, found[name]) for name in names]
  meta, stats = (
    durable.parse_json(found[name], str(place / name), remedy=manifest.REMEDY)
    for name in (manifest.META, manifest.STATS)
  )
  store = Store(place, meta, entries, stats, content)
  own = {manifest.META, manifest.STATS, manifest.CALIBRATION, *names}
  own |= {f"{name}/zarr.json" for name in store.columns}
  store.small = tuple(name for name in found if name not in own)
  return store


def _growing(place: places.Place, meta: dict[str, Any]) -> Store:
  """Reads what is there of a store that is being written.

  Args:
    place: where it is.
    meta: its metadata.

  Raises:
    InputError: it is damaged, or no bucket is there; names the file.
  """
  entries = list(ledger.read(place).values())
  if not ledger.rows(entries):
    raise InputError(
      "path",
      str(place),
      "must have a finished bucket",
      "wait for it, or repeat the command that wrote it",
    )
  return of_entries(place, meta, entries)


def of_entries(
  place: places.Place,
  meta: dict[str, Any],
  entries: list[dict[str, Any]],
) -> Store:
  """The store that has these buckets.

  Args:
    place: where it is.
    meta: its metadata.
    entries: entries of the buckets, in order.
  """
  stats = ledger.stats(entries, from_json(meta["columns"]))
  stats |= {"calibration": manifest.calibration(place)}
  marks = "".join(entry[durable.SUM] for entry in entries)
  content = hashlib.sha256(marks.encode()).hexdigest()
  return Store(place, meta, entries, stats, content)
