"""Opens stores."""

from collections.abc import Mapping
from typing import Any

from saejax import durable
from saejax.data.store import arrays, manifest
from saejax.data.store import place as places
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
      store = Store.complete(place)
    else:
      where = str(place / manifest.META)
      store = Store.growing(
        place, durable.parse_json(found[manifest.META], where)
      )
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
