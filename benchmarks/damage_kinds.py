"""Kinds of folders that damage.py damages: how each is made, and read."""

import contextlib
import dataclasses
import io
import json
import pathlib
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

ROWS, D = 300, 4
IGNORED = (".lock", "made")  # files and folders that decide nothing
FINGERPRINT = {"recipe": "topk", "environment": {"cores": 2}}


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
    if self.entries:
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
