"""Shows what stores hold, and what is missing of those being written.

python experiments/info.py --path=runs/stores/store-0123456789abcdef
saejax info --path=s3://bucket/stores/store-0123456789abcdef
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from saejax import durable
from saejax.data.store import ledger, manifest, quality, reader
from saejax.data.store import place as places
from saejax.data.store.place import Place
from saejax.data.store.writer import MADE
from saejax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What to show."""

  path: tuple[str, ...]  # folders or URLs of stores

  def __post_init__(self):
    if not self.path:
      rule = "must name a store"
      raise InputError("path", "", rule, "give the folder of a store")


def main(config: Config) -> None:
  """Prints some lines for each store.

  Args:
    config: the stores.
  """
  for name in config.path:
    print(name)
    for title, text in described(places.at(os.path.expanduser(name))):
      print(f"  {title:12} {text}")


def described(place: Place) -> Iterator[tuple[str, str]]:
  """What a store holds, as lines of a title and a text.

  Args:
    place: the store.

  Raises:
    InputError: there is no store, or it is damaged.
  """
  content = places.one(place, manifest.META)
  if content is None:
    rule = f"must be a store ({manifest.META} is missing)"
    raise InputError("path", str(place), rule, "name the folder of a store")
  meta = durable.parse_json(
    content, str(place / manifest.META), remedy=manifest.REMEDY
  )
  entries = ledger.read(place)
  wanted = -(-meta["rows"] // meta["bucket_rows"])
  complete = bool(place.read([manifest.NAME]))
  if complete:
    yield "state", "complete"
  else:
    missing = [bucket for bucket in range(wanted) if bucket not in entries]
    some = ", ".join(map(str, missing[:12])) + ", ..." * (len(missing) > 12)
    yield "state", f"being written, or stopped; buckets not there: {some}"
  rows = ledger.rows(entries.values())
  yield "rows", f"{rows:,} of at most {meta['rows']:,}"
  yield "buckets", f"{len(entries)} of at most {wanted}"
  shards = [size for e in entries.values() for size in e["shards"].values()]
  known = sum(size or 0 for size in shards)
  yield "shards", f"{len(shards)}, {durable.size(known)}"
  for name, column in meta["columns"].items():
    shape = "".join(f"[{n}]" for n in column["shape"])
    code = f" as {column['code']}" if column.get("code") else ""
    about = f"{column['dtype']}{shape}{code}, {column['about']}"
    yield f"column {name}", about
  for name in ("split", "model", "site", "corpus", "merged"):
    if meta.get(name):
      yield name, _text(meta[name])
  yield from _made(place)
  if rows:
    store = reader.open(place, growing=True)
    dropped = store.stats["dropped"].items()
    text = ", ".join(f"{rule} {n:,}" for rule, n in dropped if n)
    yield "dropped", text or "none"
    yield "content", store.content
    if lost := (store.stats["calibration"] or {}).get("codes"):
      yield (
        "int8",
        f"lost {lost['relative_error']:.2%} of a row's norm and {lost['fvu']:.1e} "
        "of the variance in the calibration rows",
      )
    for line in quality.warnings(store):
      yield "warning", line


def _made(place: Place) -> Iterator[tuple[str, str]]:
  """When, where and by which process the store was written."""
  for content in place.read(place.names(MADE)).values():
    record: Mapping[str, Any] = json.loads(content)
    process, processes = record["process"]
    yield (
      "written",
      f"{record['time'][:19]} on {record['host']}, process {process} of "
      f"{processes}, jax {record['versions']['jax']}",
    )


def _text(value: Any) -> str:
  text = value if isinstance(value, str) else durable.canonical(value)
  return text if len(text) <= 200 else text[:197] + "..."
