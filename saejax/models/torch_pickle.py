"""Runs the pickles of `torch.save` as data: nothing is imported or called.

A pickle is a program. The interpreter here knows the instructions that make data,
and of all classes and functions those of `KNOWN`, whose work it does itself:
others are refused by name.

References:
  Python, pickletools; PyTorch, torch/_utils.py (_rebuild_tensor_v2).
"""

import math
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAX_DIMENSIONS = 32
STORAGES = {
  f"torch.{name}Storage": np.dtype(dtype)
  for name, dtype in {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
  }.items()
}
DICT = "collections.OrderedDict"
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
NAMESPACE = "argparse.Namespace"
KNOWN = frozenset({*STORAGES, DICT, TENSOR, PARAMETER})
# Finds the values of a storage: (key, dtype, number of values) -> values.
Find = Callable[[str, np.dtype, int], np.ndarray]


class Attributes(dict):
  """The attributes of an argparse.Namespace by name, as data."""


class Damaged(Exception):
  """A rule that the file violates."""


class _Global(NamedTuple):
  """The name of a class or function, which is not imported."""

  name: str


_ARGUMENTS = {  # instructions that put their argument on the stack
  "BININT",
  "BININT1",
  "BININT2",
  "LONG1",
  "LONG4",
  "BINFLOAT",
  "BINUNICODE",
  "SHORT_BINUNICODE",
  "BINUNICODE8",
  "BINSTRING",
  "SHORT_BINSTRING",
  "BINBYTES",
  "SHORT_BINBYTES",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
  "EMPTY_DICT": dict,
  "EMPTY_LIST": list,
  "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME", "STOP"}


class Machine:
  """Runs one pickle, from the place of a file to its end.

  Args:
    file: file to read from.
    known: names of classes and functions that are allowed.
    find: returns the values of a storage.
  """

  def __init__(self, file: Any, known: frozenset[str], find: Find):
    self._file, self._known, self._find = file, known, find
    self._stack: list[Any] = []
    self._below: list[list[Any]] = []  # stacks below each mark
    self._memo: dict[int, Any] = {}
    self._actions: dict[str, Callable[[Any], None]] = {
      "MARK": lambda _: self._mark(),
      "BINPUT": self._put,
      "LONG_BINPUT": self._put,
      "MEMOIZE": lambda _: self._put(len(self._memo)),
      "BINGET": self._get,
      "LONG_BINGET": self._get,
      "TUPLE": lambda _: self._push(tuple(self._marked())),
      "APPEND": lambda _: self._extend([self._stack.pop()]),
      "APPENDS": lambda _: self._extend(self._marked()),
      "SETITEM": lambda _: self._update(self._last(2)),
      "SETITEMS": lambda _: self._update(self._marked()),
      "GLOBAL": lambda name: self._global(name.replace(" ", ".")),
      "STACK_GLOBAL": lambda _: self._global(".".join(self._last(2))),
      "REDUCE": lambda _: self._call(*self._last(2)),
      "NEWOBJ": lambda _: self._new(*self._last(2)),
      "BUILD": lambda _: self._build(self._stack.pop()),
      "BINPERSID": self._refer,
    }

  def run(self) -> Any:
    """Returns the object."""
    try:
      for opcode, argument, _ in pickletools.genops(self._file):
        self._step(opcode.name, argument)
      (found,) = self._stack
    except (
      ValueError,  # of pickletools: truncated, no instruction
      IndexError,  # the stack is empty
      KeyError,  # not in the memo
      TypeError,  # other types than the instruction needs
      OverflowError,
    ) as error:
      reason = " ".join(str(error).split())[:200]
      raise Damaged(f"must have complete pickles ({reason})") from error
    return found

  def _step(self, name: str, argument: Any) -> None:
    if name in _ARGUMENTS:
      self._stack.append(argument)
    elif name in _CONSTANTS:
      self._stack.append(_CONSTANTS[name])
    elif name in _EMPTY:
      self._stack.append(_EMPTY[name]())
    elif name in _TUPLES:
      self._stack.append(tuple(self._last(_TUPLES[name])))
    elif name in self._actions:
      self._actions[name](argument)
    elif name not in _NOTHING:
      rule = f"must have pickles of data alone, and has the instruction {name}"
      raise Damaged(rule)

  def _push(self, value: Any) -> None:
    self._stack.append(value)

  def _last(self, count: int) -> list[Any]:
    """Takes items from the stack."""
    if len(self._stack) < count:
      raise IndexError("the stack is empty")
    found = self._stack[-count:]
    del self._stack[-count:]
    return found

  def _mark(self) -> None:
    self._below.append(self._stack)
    self._stack = []

  def _marked(self) -> list[Any]:
    """Takes the items after the last mark, and the mark."""
    found, self._stack = self._stack, self._below.pop()
    return found

  def _put(self, place: int) -> None:
    self._memo[place] = self._stack[-1]

  def _get(self, place: int) -> None:
    self._stack.append(self._memo[place])

  def _extend(self, items: list[Any]) -> None:
    if type(self._stack[-1]) is not list:
      raise TypeError("items of no list")
    self._stack[-1].extend(items)

  def _update(self, items: list[Any]) -> None:
    target = self._stack[-1]
    if not isinstance(target, dict):
      raise TypeError("items of no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
      # Others might take long to hash, or overflow the stack.
      if not isinstance(key, str | int | float | bool | None):
        raise TypeError("a key that is no text or number")
      target[key] = value

  def _global(self, name: str) -> None:
    if name not in self._known:
      allowed = ", ".join(sorted(self._known - STORAGES.keys()))
      raise Damaged(
        f"must have no class or function but {allowed} and torch's storages, "
        f"and has {name[:100]!r}, which was not imported"
      )
    self._stack.append(_Global(name))

  def _call(self, function: Any, arguments: Any) -> None:
    """Calls a function, which is done here."""
    match function, arguments:
      case _Global(name), () if name == DICT:
        self._stack.append({})
      case _Global(name), (list(pairs),) if name == DICT:
        self._stack.append({})
        self._update([item for key, value in pairs for item in (key, value)])
      case _Global(name), tuple() if name == TENSOR:
        self._stack.append(_tensor(arguments))
      case _Global(name), (np.ndarray() as tensor, *_) if name == PARAMETER:
        self._stack.append(tensor)
      case _:
        raise TypeError("a call that is not known")

  def _new(self, kind: Any, arguments: Any) -> None:
    """Makes an object, of which the attributes follow."""
    if kind != _Global(NAMESPACE) or arguments != ():
      raise TypeError("an object that is not known")
    self._stack.append(Attributes())

  def _build(self, state: Any) -> None:
    """Sets the attributes of an object."""
    target = self._stack[-1]
    if not isinstance(target, dict) or not isinstance(state, dict):
      raise TypeError("attributes of no object")
    if isinstance(target, Attributes):
      target.update(state)
    # Those of a dictionary (the versions of modules) are left out.

  def _refer(self, _: Any) -> None:
    self._stack.append(_storage(self._stack.pop(), self._find))


# --- tensors -----------------------------------------------------------------


class _Storage(NamedTuple):
  key: str
  values: np.ndarray


def _storage(reference: Any, find: Find) -> _Storage:
  """Returns the storage that a persistent id names."""
  match reference:
    case ("storage", _Global(kind), str(key), str(), int(count)):
      pass
    case ("storage", _Global(kind), str(key), str(), int(count), None):
      pass
    case _:
      raise Damaged("must refer to whole storages alone")
  if kind not in STORAGES or count < 0:
    raise Damaged(f"storage {key!r} must have a known type and size")
  return _Storage(key, find(key, STORAGES[kind], count))


def _tensor(arguments: tuple) -> np.ndarray:
  """Returns the view of a storage that is a tensor."""
  match arguments:
    case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
      pass
    case _:
      raise Damaged("must have tensors of a storage, offset, shape and strides")
  numbers = (offset, *shape, *strides)
  few = len(shape) == len(strides) <= MAX_DIMENSIONS
  if not few or not all(
    type(number) is int and number >= 0 for number in numbers
  ):
    raise Damaged(
      f"must have one size and stride, at least 0, for each of at most "
      f"{MAX_DIMENSIONS} dimensions of a tensor"
    )
  size = math.prod(shape)
  # An empty tensor reads nothing, wherever it is.
  last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
  stop = offset + last + 1 if size else 0
  values = storage.values
  if max(size, stop) > len(values):
    raise Damaged(
      f"a tensor {list(shape)} with strides {list(strides)} at {offset} must lie "
      f"in storage {storage.key!r} of {len(values)} values"
    )
  if not size:
    return np.zeros(shape, values.dtype)
  steps = tuple(step * values.itemsize for step in strides)
  found = np.lib.stride_tricks.as_strided(
    values[offset:stop], shape, steps, writeable=False
  )
  if not found.flags.aligned:  # JAX needs it
    found = found.copy()
    found.flags.writeable = False
  return found
