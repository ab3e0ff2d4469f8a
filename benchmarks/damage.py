"""Damages files at random and asks whether anyone could be misled.

  python benchmarks/damage.py
  python benchmarks/damage.py --trials=2000 --seed=1 --out=damage.md

Each trial copies a small folder, changes one file in it and calls the function
that a command reads it with. The outcomes:

  refused    an InputError that names a file or folder
  named      another result, and a line that says what is damaged: an earlier
             checkpoint is restored, a record of metrics is left out
  harmless   the result of the undamaged folder, bit for bit
  crashed    another exception, a traceback for a user
  silent     another result without a word

Prints a table and exits with 1 where anything crashed or was silent.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import pickle
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags as absl_flags

from saejax import config as flags
from saejax import durable
from saejax.data.store import create, reader, writer
from saejax.errors import InputError
from saejax.runs import folder as run_folder
from saejax.runs.config import SAEConfig
from saejax.sae import activations, files, initial
from saejax.training import checkpoint, log, loop

OUTCOMES = ("refused", "named", "harmless", "crashed", "silent")
DAMAGES = (
  "flip",
  "digit",
  "truncate",
  "zero",
  "delete",
  "duplicate",
  "swap",
  "append",
)
ROWS, D = 300, 4
FINGERPRINT = {"recipe": "topk", "environment": {"cores": 2}}
IGNORED = (".lock", "made.jsonl")  # decide nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class DamageConfig:
  """How many files are damaged."""

  trials: int = 1000  # over all kinds of files
  seed: int = 0  # of the damages
  out: str = ""  # file that the table is written to as well; empty: none
  show: int = 5  # silent and crashed trials that are printed in full

  def __post_init__(self):
    if self.trials < 1:
      raise InputError("trials", self.trials, "must be at least 1", "give more")


class Kind(NamedTuple):
  """A kind of folder: how it is made, and how it is read.

  Attributes:
    name: shown in the table.
    share: its part of the trials.
    make: writes the folder.
    read: reads it; gives what was read and the lines that were said.
  """

  name: str
  share: float
  make: Callable[[pathlib.Path], None]
  read: Callable[[pathlib.Path], tuple[Any, list[str]]]


def _rows() -> np.ndarray:
  return np.random.default_rng(0).normal(size=(ROWS, D)).astype(np.float32)


def _write_store(folder: pathlib.Path) -> None:
  create.write_store(
    folder / "store",
    {"x": _rows(), "doc": np.arange(ROWS) // 10, "pos": np.arange(ROWS)},
    about={"model": {"name": "tiny"}},
    bucket_rows=128,
    shard_rows=64,
    chunk_rows=32,
  )


def _write_part(folder: pathlib.Path) -> None:
  """A store whose writer was killed after its first bucket."""
  write = writer.Writer.write

  def once(self, *arguments, **keywords):
    if self.lines:
      raise KeyboardInterrupt
    return write(self, *arguments, **keywords)

  patched = mock.patch.object(writer.Writer, "write", once)
  with patched, contextlib.suppress(KeyboardInterrupt):
    _write_store(folder)


def _read_store(folder: pathlib.Path) -> tuple[Any, list[str]]:
  store = reader.open(folder / "store")
  found = store.whole(*store.columns)
  columns = {name: found[name].tobytes() for name in sorted(found)}
  return (columns, _text(store.stats), _text(store.meta)), []


def _text(record: Any) -> str:
  """A record as text that is equal for equal records."""
  return json.dumps(record, sort_keys=True, default=np.ndarray.tolist)


def _finish_store(folder: pathlib.Path) -> tuple[Any, list[str]]:
  """The same command again, and then what it wrote."""
  _write_store(folder)
  return _read_store(folder)


class _Position:
  """An iterator of rows, as a checkpoint sees it."""

  at: Any = 0

  def get_state(self) -> Any:
    return {"at": self.at, "epoch": 3}

  def set_state(self, state: Any) -> None:
    self.at = state["at"], state["epoch"]


def _state(step: int) -> dict[str, jax.Array]:
  return {"W": jnp.arange(60.0).reshape(15, 4) + step, "step": jnp.int32(step)}


def _write_checkpoints(folder: pathlib.Path) -> None:
  with checkpoint.Checkpoints(
    folder / "checkpoints", fingerprint=FINGERPRINT
  ) as opened:
    for step in (5, 10):
      position = _Position()
      position.at = step
      opened.save(step, _state(step), position, metric=float(step))


def _read_checkpoints(folder: pathlib.Path) -> tuple[Any, list[str]]:
  said: list[str] = []
  position = _Position()
  with checkpoint.Checkpoints(
    folder / "checkpoints", fingerprint=FINGERPRINT, say=said.append
  ) as opened:
    restored = opened.restore(_state(0), position)
  step, state = restored or (0, {})
  arrays = {name: np.asarray(leaf).tobytes() for name, leaf in state.items()}
  return (step, arrays, position.at), said


def _write_sae(folder: pathlib.Path) -> None:
  sae = initial.init(
    jax.random.key(0), d=D, n=8, activation=activations.TopK(2)
  )
  files.save(sae, folder / "sae", about={"nmse": 0.25, "k": 2, "layer": 3})


def _read_sae(folder: pathlib.Path) -> tuple[Any, list[str]]:
  sae = files.load(folder / "sae")
  leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(sae)]
  structure = str(jax.tree.structure(sae))
  return (leaves, structure, files.about(folder / "sae")), []


def _write_metrics(folder: pathlib.Path) -> None:
  with log.RunLog(folder, total_steps=12, stream=io.StringIO()) as opened:
    for step in range(1, 13):
      opened.record(step, 64 * step, {"k8": {"loss": 1 / step, "l0": 8.0}})


def _read_metrics(folder: pathlib.Path) -> tuple[Any, list[str]]:
  said: list[str] = []
  return _text(log.read(folder, say=said.append)), said


def _write_points(folder: pathlib.Path) -> None:
  points = [{"n": 8, "k": k, "nmse": 1 / k, "status": "ok"} for k in (1, 2, 4)]
  durable.write_sealed(folder / "points.json", {"points": points})


def _read_points(folder: pathlib.Path) -> tuple[Any, list[str]]:
  return _text(durable.read_sealed(folder / "points.json")), []


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Flags:
  """Flags like those of a run."""

  sae: SAEConfig = SAEConfig(n=(64, 128))
  train: loop.TrainConfig = loop.TrainConfig()


def _write_flags(folder: pathlib.Path) -> None:
  flags.write(folder / "run.flags", _Flags())


def _read_flags(folder: pathlib.Path) -> tuple[Any, list[str]]:
  values = absl_flags.FlagValues()
  absl_flags.DEFINE_string("flagfile", "", "", flag_values=values)
  flags.define(_Flags, values)
  flags.parse(["run", f"--flagfile={folder / 'run.flags'}"], values)
  return flags.from_flags(_Flags, values), []


def _write_run(folder: pathlib.Path) -> None:
  with run_folder.opened(folder / "run", _Flags()):
    pass


def _read_run(folder: pathlib.Path) -> tuple[Any, list[str]]:
  """The same command again, after another one that must be refused."""
  other = _Flags(train=loop.TrainConfig(learning_rate=0.5))
  with (
    contextlib.suppress(InputError),
    run_folder.opened(folder / "run", other),
  ):
    return "another run goes on in the folder", []
  with run_folder.opened(folder / "run", _Flags()) as path:
    written = path / run_folder.IDENTITY, path / run_folder.FLAGS
    return [file.read_bytes() for file in written], []


KINDS = (
  Kind("store", 0.2, _write_store, _read_store),
  Kind("unfinished store", 0.125, _write_part, _finish_store),
  Kind("checkpoint", 0.2, _write_checkpoints, _read_checkpoints),
  Kind("saved SAE", 0.15, _write_sae, _read_sae),
  Kind("metrics.jsonl", 0.1, _write_metrics, _read_metrics),
  Kind("points.json", 0.075, _write_points, _read_points),
  Kind("run.flags", 0.075, _write_flags, _read_flags),
  Kind("run folder", 0.075, _write_run, _read_run),
)


def damage(rng: random.Random, how: str, path: pathlib.Path) -> str:
  """Damages a file.

  Args:
    rng: of the place.
    how: one of DAMAGES.
    path: the file.

  Returns:
    What was done; "" where it changes nothing.
  """
  before = path.read_bytes()
  if how == "delete" and rng.random() < 0.3:
    path.unlink()
    return "the file is deleted"
  if how == "swap" and rng.random() < 0.5:
    others = [p for p in _files(path.parent) if p != path]
    if not others:
      return ""
    other = rng.choice(others)
    there = other.read_bytes()
    other.write_bytes(before)
    path.write_bytes(there)
    return f"contents exchanged with {other.name}" * (before != there)
  after = _changed(rng, how, before)
  path.write_bytes(after)
  return f"{len(before)} bytes became {len(after)}" * (before != after)


def _changed(rng: random.Random, how: str, content: bytes) -> bytes:
  size = len(content)
  if how == "append" or not size:
    lines = content.splitlines(keepends=True)
    return content + (
      rng.choice(lines) if lines and rng.random() < 0.5 else rng.randbytes(8)
    )
  if how == "truncate":
    return content[: rng.randrange(size)]
  if how == "digit":
    digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    if digits:
      at = rng.choice(digits)
      return content[:at] + str(rng.randrange(10)).encode() + content[at + 1 :]
  if how in ("delete", "duplicate", "swap", "zero"):
    lines = content.splitlines(keepends=True)
    if len(lines) > 1 and how != "zero" and rng.random() < 0.7:
      return b"".join(_moved(rng, how, lines))
    start = rng.randrange(size)
    span = content[start : start + rng.randint(1, 32)]
    head, tail = content[:start], content[start + len(span) :]
    middle = {
      "delete": b"",
      "duplicate": span * 2,
      "swap": span[::-1],
      "zero": bytes(len(span)),
    }[how]
    return head + middle + tail
  at = rng.randrange(size)
  flipped = content[at] ^ 1 << rng.randrange(8)
  return content[:at] + bytes([flipped]) + content[at + 1 :]


def _moved(rng: random.Random, how: str, lines: list[bytes]) -> list[bytes]:
  i, j = sorted(rng.sample(range(len(lines)), 2))
  if how == "delete":
    return lines[:i] + lines[i + 1 :]
  if how == "duplicate":
    return lines[:j] + [lines[i]] + lines[j:]
  return lines[:i] + [lines[j]] + lines[i + 1 : j] + [lines[i]] + lines[j + 1 :]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(
    p for p in folder.rglob("*") if p.is_file() and p.name not in IGNORED
  )


def trial(
  rng: random.Random, kind: Kind, whole: pathlib.Path, expected: bytes
) -> tuple[str, str]:
  """Damages a copy of a folder and reads it.

  Returns the outcome, and what was done and came of it in words.
  """
  folder = whole.with_name("trial")
  done = ""
  while not done:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    path = rng.choice(_files(folder))
    how = rng.choice(DAMAGES)
    name = path.relative_to(folder)
    done = damage(rng, how, path)
  what = f"{kind.name}: {how} in {name}: {done}"
  try:
    found, said = kind.read(folder)
  except InputError as error:
    return "refused", f"{what}: {error}"
  except Exception:
    return "crashed", f"{what}:\n{traceback.format_exc()}"
  if pickle.dumps(found) == expected:
    return "harmless", what
  return ("named" if said else "silent"), f"{what}: {said}"


def measure(config: DamageConfig) -> dict[str, Counter]:
  """Outcomes by kind."""
  rng = random.Random(config.seed)
  counts: dict[str, Counter] = {}
  left = config.show
  for kind in KINDS:
    counts[kind.name] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
      whole = pathlib.Path(temporary, "whole")
      whole.mkdir()
      kind.make(whole)
      copy = whole.with_name("trial")
      shutil.copytree(whole, copy)
      expected = pickle.dumps(kind.read(copy)[0])
      for _ in range(max(1, round(config.trials * kind.share))):
        outcome, what = trial(rng, kind, whole, expected)
        counts[kind.name][outcome] += 1
        if outcome in ("crashed", "silent") and left:
          left -= 1
          print(f"{outcome}: {what}", file=sys.stderr, flush=True)
  return counts


def table(counts: dict[str, Counter], seed: int) -> str:
  """The outcomes as a table in Markdown."""
  total = sum(counts.values(), Counter())
  lines = [
    "| files | trials | " + " | ".join(OUTCOMES) + " |",
    "|---|" + "---:|" * (1 + len(OUTCOMES)),
  ]
  for name, found in {**counts, "all": total}.items():
    numbers = [sum(found.values()), *(found[o] for o in OUTCOMES)]
    lines.append(f"| {name} | " + " | ".join(map(str, numbers)) + " |")
  bad = f"{total['silent']} silent, {total['crashed']} tracebacks"
  lines += ["", f"{sum(total.values())} damages (seed {seed}): {bad}"]
  return "\n".join(lines)


def main(config: DamageConfig) -> int:
  counts = measure(config)
  text = table(counts, config.seed)
  print(text)
  if config.out:
    head = "# Damaged files\n\nWritten by `python benchmarks/damage.py"
    head += f" --trials={config.trials} --seed={config.seed}`.\n\n"
    durable.write_file(config.out, (head + text + "\n").encode(), field="out")
  total = sum(counts.values(), Counter())
  return 1 if total["silent"] or total["crashed"] else 0


if __name__ == "__main__":
  flags.run(main, DamageConfig)
