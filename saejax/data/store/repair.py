"""Finds and removes what is damaged in a store, so that it is written again.

Only a writer calls this, which holds the store's lock.

What is sound stays as it is, and what is written again must be equal to what
the ledger and the manifest have of it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from saejax import durable
from saejax.data.store import arrays, ledger, manifest, reader
from saejax.data.store.columns import Column, from_json
from saejax.data.store.place import Place
from saejax.data.store.share import Share
from saejax.errors import InputError


def discard(
  place: Place, meta: Mapping[str, Any], share: Share = Share()
) -> set[int]:
  """Reads a store and removes what is damaged or half written.

  Args:
    place: the store.
    meta: its metadata, as they should be.
    share: the buckets that are read.

  Returns:
    Buckets with an entry whose shards have to be written again.

  Raises:
    InputError: the place has another store, of which nothing is removed.
  """
  columns = from_json(dict(meta)["columns"])
  _discard_small(place, meta, columns)
  entries = {}
  for name, content in place.read(place.names(ledger.FOLDER)).items():
    try:
      entry = ledger.parse(place, name, content)
      ledger.check(place, [entry], meta, columns)
    except InputError:
      place.remove(name)
      continue
    entries[entry["bucket"]] = entry
  if not entries:
    return set()
  store = reader.of_entries(place, dict(meta), list(entries.values()))
  again = set()
  for bucket, entry in sorted(entries.items()):
    if not share.owns(bucket):
      continue
    try:
      store.verify_bucket(entry)
    except InputError:
      again.add(bucket)
      for shard in entry["shards"]:  # a part of one cannot be written over
        place.remove(shard)
  return again


def _discard_small(
  place: Place, meta: Mapping[str, Any], columns: Mapping[str, Column]
) -> None:
  """Removes small files that are not what was written."""
  wanted = durable.canonical(meta).encode()
  found = place.read([manifest.META, manifest.NAME, manifest.CALIBRATION])
  if found.get(manifest.META) != wanted:
    # The folder of a harvest is named by its metadata.
    if durable.digest(meta)[:16] not in place.name:
      raise manifest.broken(
        place / manifest.META, "differs from the settings of this harvest"
      )
    place.write(manifest.META, wanted)
  recorded: Mapping[str, Any] = {}
  if manifest.NAME in found:
    try:
      recorded = manifest.parse(place, found[manifest.NAME])["files"]
    except InputError:
      place.remove(manifest.NAME)
  try:
    manifest.calibration(place)
  except InputError:
    place.remove(manifest.CALIBRATION)
  for name, content in place.read(recorded).items():
    digest = hashlib.sha256(content).hexdigest()
    if [len(content), digest] != recorded[name]:
      place.remove(name)
  for name in columns:
    try:
      arrays.create(place, meta, {name: columns[name]})
    except InputError:
      place.remove(f"{name}/zarr.json")
