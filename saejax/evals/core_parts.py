"""Parts of a core evaluation on disk: resumed after a kill, merged at the end.

folder/
  training.npz             facts of training rows: those of the process that had
                           them first
  part-00000-of-00004/
    .lock identity.json    what the numbers depend on
    training.npz           facts that this process computed
    sums.npz               its sums, saved about every `seconds`

Process p of P reads the forward batches p, p + P, ... of the text. Sums are added
batch by batch, in order, and a file replaces the one before: what a killed process
has saved is what it had computed, and it continues with the next batch. Numbers
are those of an undisturbed run bit for bit, and those of other numbers of processes
but for the order of additions in float64.
"""

import contextlib
import io
import json
import os
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from saejax import durable
from saejax.data.store.share import Share
from saejax.errors import InputError
from saejax.evals import core, core_controls, embeddings, in_model, splices
from saejax.training import lock

FIELD = "dir"
IDENTITY, TRAINING, SUMS = "identity.json", "training.npz", "sums.npz"
_REMEDY = "remove it, and repeat the command"


def folder(root: str, identity: Mapping[str, Any]) -> pathlib.Path:
  """Returns the folder of an evaluation, which is named by its identity.

  Args:
    root: folder of evaluations.
    identity: what the numbers depend on, JSON-serialisable.
  """
  return pathlib.Path(root).expanduser() / durable.digest(identity)[:16]


@contextlib.contextmanager
def locked(
  path: pathlib.Path, share: Share, identity: Mapping[str, Any]
) -> Iterator[None]:
  """Holds the place of one process, where it writes.

  Args:
    path: the folder.
    share: which process this is, of how many.
    identity: what the numbers depend on, which is written there.

  Raises:
    InputError: another process has this place, or it cannot be written.
  """
  own = _place(path, share)
  with lock.RunLock(own, field=FIELD):
    text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
    durable.write_file(own / IDENTITY, text.encode(), field=FIELD)
    yield


def training(
  path: pathlib.Path,
  share: Share,
  names: Iterable[str],
  make: Callable[[], core_controls.Training],
) -> core_controls.Training:
  """Returns the facts of training rows, which are the same in all processes.

  Args:
    path: the folder.
    share: which process this is, of how many; it holds its place.
    names: names of the SAEs; files have their order alone.
    make: computes them.

  Raises:
    InputError: the file is damaged.
  """
  file = path / TRAINING
  if not file.exists():
    facts = make()
    arrays = {
      name: np.asarray(value)
      for name, value in vars(facts).items()
      if name != "k"
    }
    own = _place(path, share) / TRAINING
    _write(own, arrays, {"k": list(facts.k.values())})
    first = contextlib.suppress(FileExistsError)  # another one was first
    with durable.disk_errors(path, field=FIELD, what=TRAINING), first:
      os.link(own, file)
  arrays, about = _read(file)
  for name in ("square_in", "square", "limit"):
    arrays[name] = float(arrays[name])
  return core_controls.Training(
    **arrays, k=dict(zip(names, about["k"], strict=True))
  )


def run(
  path: pathlib.Path,
  share: Share,
  evaluation: core.Core,
  batches: Iterable[splices.Tokens],
  *,
  seconds: float = 20.0,
  progress: Callable[[int], None] = lambda number: None,
) -> None:
  """Computes or continues the sums of one process.

  Args:
    path: the folder.
    share: which process this is, of how many; it holds its place.
    evaluation: what is computed of each batch.
    batches: all batches of the text, in order; those of others are passed over.
    seconds: time between saves.
    progress: called with the number of each batch before it is computed.

  Raises:
    InputError: its file is damaged, or the disk is full. What was saved is kept.
  """
  file = _place(path, share) / SUMS
  total, next_, done = _saved(file, evaluation)
  if done:
    return
  saved, first = time.monotonic(), 0
  for number, batch in enumerate(batches):
    if number >= next_ and share.owns(number):
      progress(number)
      total = total.merged(evaluation.part(batch, first))
      next_ = number + 1
      if time.monotonic() - saved >= seconds:
        _save(file, total, next_, done=False)
        saved = time.monotonic()
    first += len(batch.ids)
  _save(file, total, next_, done=True)


def merged(
  path: pathlib.Path, processes: int, evaluation: core.Core
) -> core.Sums | None:
  """Returns the sums of all processes, or None where one is not done.

  Args:
    path: the folder.
    processes: number of processes.
    evaluation: what was computed.

  Raises:
    InputError: a file is damaged.
  """
  total = evaluation.nothing()
  for process in range(processes):
    file = _place(path, Share(process, processes)) / SUMS
    part, _, done = _saved(file, evaluation)
    if not done:
      return None
    total = total.merged(part)
  return total


def _place(path: pathlib.Path, share: Share) -> pathlib.Path:
  return path / f"part-{share.process:05d}-of-{share.processes:05d}"


# --- files -------------------------------------------------------------------


def _save(file: pathlib.Path, sums: core.Sums, next_: int, done: bool) -> None:
  arrays = {"error": sums.error}
  for sae, rows in enumerate(sums.rows.values()):
    for number, leaf in enumerate(jax.tree.leaves(rows)):
      arrays[f"rows/{sae}/{number}"] = np.asarray(leaf)
  for field, value in vars(sums.model).items():
    if field == "by_position":
      arrays |= {f"by_position/{k}": v for k, v in value.items()}
    elif field != "names":
      arrays[f"model/{field}"] = value
  _write(file, arrays, {"next": next_, "done": done})


def _saved(
  file: pathlib.Path, evaluation: core.Core
) -> tuple[core.Sums, int, bool]:
  """The sums so far, the number of the next batch, and whether that is all."""
  nothing = evaluation.nothing()
  if not file.exists():
    return nothing, 0, False
  arrays, about = _read(file)
  try:
    rows = {}
    for sae, (name, empty) in enumerate(nothing.rows.items()):
      leaves, tree = jax.tree.flatten(empty)
      found = [arrays[f"rows/{sae}/{i}"] for i in range(len(leaves))]
      rows[name] = jax.tree.unflatten(tree, [a[()] for a in found])
    given = {
      name.removeprefix("model/"): value
      for name, value in arrays.items()
      if name.startswith("model/")
    }
    names = nothing.model.names
    if isinstance(nothing.model, embeddings.Embeddings):
      model = embeddings.Embeddings(names, **given)
    else:
      by_position = {
        name: arrays[f"by_position/{name}"]
        for name in nothing.model.by_position
      }
      model = in_model.InModel(names, by_position=by_position, **given)
    sums = core.Sums(rows, arrays["error"], model)
    return sums, about["next"], about["done"]
  except (KeyError, TypeError) as error:
    rule = f"must be sums of this evaluation ({error})"
    raise InputError(FIELD, file, rule, _REMEDY) from error


def _write(
  file: pathlib.Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
  content = io.BytesIO()
  text = np.frombuffer(durable.canonical(about).encode(), np.uint8)
  np.savez(content, about=text, **arrays)  # pyright: ignore[reportArgumentType]
  durable.write_file(file, content.getvalue(), field=FIELD)


def _read(
  file: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Arrays and facts; the format has checksums."""
  try:
    with np.load(file) as found:
      arrays = dict(found)
    return arrays, json.loads(arrays.pop("about").tobytes())
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    rule = f"must be a file that this command wrote ({error})"
    raise InputError(FIELD, file, rule, _REMEDY) from error
