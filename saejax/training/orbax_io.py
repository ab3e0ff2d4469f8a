"""Arrays and a text in one folder by Orbax: asynchronous writes, and reads.

Leaves are stored flat, by their path in the tree.
"""

import errno
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

PyTree = Any
Response = ocp.AsyncResponse[None]


def begin(
  path: pathlib.Path, arrays: Mapping[str, Any], position: str | None
) -> Response:
  """Copies arrays and starts writing them; the folder appears when complete.

  Args:
    path: the new folder.
    arrays: arrays by name; they may be donated when this returns.
    position: a text per process; None for none.

  Returns:
    A handle whose `result` waits until the write is complete.
  """
  items: dict[str, Any] = {"state": dict(arrays)}
  if position is not None:
    items["iterator"] = _Position(position)
  with _context():
    return ocp.save_checkpointables_async(str(path), items)


def load(
  path: pathlib.Path, abstract: Mapping[str, Any], *, position: bool
) -> tuple[dict[str, Any], str]:
  """Reads arrays, sharded as in `abstract`, and the text ("" if not wanted).

  Args:
    path: folder of the checkpoint.
    abstract: shapes, types and shardings by name.
    position: whether to read the text.
  """
  text = _Position(None)
  items: dict[str, Any] = {"state": dict(abstract)}
  if position:
    items["iterator"] = text
  with _context():
    arrays = ocp.load_checkpointables(str(path), items)["state"]
  return arrays, text.text or ""


def load_some(
  path: pathlib.Path, shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Any]:
  """Reads some of the arrays, on the first device.

  Args:
    path: folder of the checkpoint.
    shapes: shapes and types by name.
  """
  context = _context()
  context.pytree.loading.partial_load = True
  items = {"state": {name: abstract(leaf) for name, leaf in shapes.items()}}
  with context:
    return ocp.load_checkpointables(str(path), items)["state"]


class _Position(ocp.StatefulCheckpointable):
  """The iterator's position as text, one file per process.

  Positions are equal in all processes, so that any number of them can read it.
  """

  def __init__(self, text: str | None):
    self.text = text

  async def save(self, directory: Any) -> Any:
    async def write() -> None:
      folder = await directory.await_creation()
      (folder / self._file()).write_text(self.text)

    return write()

  async def load(self, directory: Any) -> Any:
    async def read() -> None:
      file = directory / self._file()
      if not file.exists():  # saved by another number of processes
        (file, *_) = directory.glob("process-0-of-*.json")
      self.text = file.read_text()

    return read()

  def _file(self) -> str:
    return f"process-{jax.process_index()}-of-{jax.process_count()}.json"


def flatten(tree: PyTree) -> dict[str, Any]:
  """Leaves by path, such as `0.sae.W_enc`, converted to arrays.

  Args:
    tree: the pytree.
  """
  leaves = [
    x if hasattr(x, "sharding") else jnp.asarray(x)
    for x in jax.tree.leaves(tree)
  ]
  return dict(zip(names(tree), leaves, strict=True))


def names(tree: PyTree) -> list[str]:
  """The paths of the leaves, in order.

  Args:
    tree: the pytree.
  """
  paths = [path for path, _ in jax.tree.flatten_with_path(tree)[0]]
  names = [jax.tree_util.keystr(p, simple=True, separator=".") for p in paths]
  if len(set(names)) < len(names):
    names = [jax.tree_util.keystr(p) for p in paths]
  return names


def specs(arrays: Mapping[str, Any]) -> dict[str, str]:
  """Type and shape of each array, such as "float32[64, 8]".

  Args:
    arrays: arrays by name.
  """
  return {k: f"{x.dtype}{list(x.shape)}" for k, x in arrays.items()}


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  """Shape, type and sharding of a leaf; by default on the first device.

  Args:
    leaf: the array.
  """
  sharding = leaf.sharding
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _context() -> ocp.Context:
  context = ocp.Context()
  # Weights do not compress, and a restore always gives the shardings.
  context.array.saving.use_compression = False
  context.array.saving.enable_write_sharding_file = False
  return context


def disk_full(e: BaseException | None) -> bool:
  """Whether a write failed for lack of space, a quota or a file size limit.

  Args:
    e: the error.
  """
  numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  while e is not None:
    if isinstance(e, OSError) and e.errno in numbers:
      return True
    # TensorStore gives the OS error number only in its text.
    code = re.search(r"os_error_code='(\d+)'", str(e))
    if code and int(code[1]) in numbers:
      return True
    e = e.__cause__ or e.__context__
  return False


class NotOfOrbax(logging.Filter):
  """Filters Orbax's routine log records and errors that are raised anyway."""

  def filter(self, record: logging.LogRecord) -> bool:
    """Whether a record is kept: whether it comes from outside Orbax.

    Args:
      record: the log record.
    """
    return "orbax" not in record.pathname
