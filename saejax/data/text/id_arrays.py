"""Documents of token ids in arrays on disk, mapped and not copied.

  ids:FILE.npy                 [documents, tokens]: a row is a document
  ids:FILE.npy:tokens=512      [tokens], in documents of 512 tokens
  ids:FILE.bin:uint16:end=2    numbers alone, as of nanoGPT; 2 ends a document
  ids:FILE.npy:starts=S.npy    starts of the documents, ascending, from 0

A glob names several files, whose documents do not continue in the next. The id
that ends documents is in none of them. The dtype of .bin is uint16, uint32, int32
or int64, little-endian.
"""

import bisect
import functools
import itertools
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from saejax.data.text import formats
from saejax.errors import InputError

SUFFIXES = (".npy", ".bin")
DTYPES = ("uint16", "uint32", "int32", "int64")
_OPTION = rf":(?:{'|'.join(DTYPES)}|end=\d+|tokens=\d+|starts=[^:]+)"
_CHUNK = 1 << 22  # tokens that are searched at once


class IdArrays:
  """Documents in files of ids; the place is the first token's, over all files.

  Args:
    name: path or glob, with options, see above; without "ids:".

  Raises:
    InputError: there are no files, one is no array of ids, or it is not said
      where documents begin.
  """

  def __init__(self, name: str):
    found = re.fullmatch(rf"(.*?)((?:{_OPTION})*)", name, re.DOTALL)
    path, options = found.groups() if found else (name, "")
    given: dict[str, str] = {}
    for option in options.split(":")[1:]:
      key, _, value = option.rpartition("=")
      given[key or "dtype"] = value
    self._name, self._dtype = name, given.pop("dtype", None)
    self.paths = formats.paths(path)
    if len(given) > 1:
      raise self._refusal("must name one of end, tokens and starts")
    self._end = int(given["end"]) if "end" in given else None
    self._tokens = int(given.get("tokens", 0))
    if "tokens" in given and self._tokens < 1:
      raise self._refusal("must have tokens of at least 1")
    if options and not self.is_binary:
      raise self._refusal(f"must have a file {' or '.join(SUFFIXES)}")
    self._starts = None
    if "starts" in given:
      if len(self.paths) > 1:
        raise self._refusal("must be one file where it has starts")
      self._starts = self._read_starts(given["starts"])

  @property
  def is_binary(self) -> bool:
    """Whether all files have a suffix of arrays."""
    return all(path.suffix in SUFFIXES for path in self.paths)

  def texts(self) -> Iterator[tuple[int, np.ndarray]]:
    """Yields every document once, as (place, ids [T] int32)."""
    for number in range(len(self.paths)):
      array, width = self._arrays[number]
      for start, stop in self._spans(array, width):
        if stop > start:
          yield self._bases[number] + start, self._ids(array, start, stop)

  def read(self, place: int) -> np.ndarray:
    """Reads a document, see `sources.Source.read`."""
    number = bisect.bisect_right(self._bases, place) - 1
    array, width = self._arrays[number]
    path = self.paths[number]
    # Reading behind the end of a mapped file ends the process.
    if not path.exists() or path.stat().st_size != self._sizes[number]:
      raise self._refusal(
        f"{path} changed while the corpus was in use",
        "do not change the corpus during a run, and run again",
      )
    start = place - self._bases[number]
    return self._ids(array, start, self._stop(array, width, start))

  def _ids(self, array: np.ndarray, start: int, stop: int) -> np.ndarray:
    ids = np.asarray(array[start:stop]).astype(np.int64)
    wrong = ids[(ids < 0) | (ids >= 2**31)]
    if len(wrong):
      raise self._refusal(
        f"must have ids in [0, 2^31), and has {wrong[0]}",
        "check the dtype: " + ", ".join(DTYPES),
      )
    return ids.astype(np.int32)

  # --- where documents are -----------------------------------------------------

  def _spans(self, array: np.ndarray, width: int) -> Iterator[tuple[int, int]]:
    if self._starts is not None:
      yield from itertools.pairwise([*self._starts.tolist(), len(array)])
    elif width:
      for start in range(0, len(array), width):
        yield start, min(start + width, len(array))
    else:
      start = 0
      for at in range(0, len(array), _CHUNK):
        ends = np.flatnonzero(array[at : at + _CHUNK] == self._end) + at
        for end in ends.tolist():
          yield start, end
          start = end + 1
      yield start, len(array)

  def _stop(self, array: np.ndarray, width: int, start: int) -> int:
    if self._starts is not None:
      after = int(np.searchsorted(self._starts, start, side="right"))
      known = after < len(self._starts)
      return int(self._starts[after]) if known else len(array)
    if width:
      return min(start + width, len(array))
    step = 1024
    while start < len(array):
      ends = np.flatnonzero(array[start : start + step] == self._end)
      if len(ends):
        return start + int(ends[0])
      if start + step >= len(array):
        break
      step *= 4
    return len(array)

  # --- files ---------------------------------------------------------------------

  @functools.cached_property
  def _arrays(self) -> list[tuple[np.ndarray, int]]:
    """Ids of each file [tokens], and tokens per document, or 0."""
    self._sizes = [path.stat().st_size for path in self.paths]
    return [self._open(path) for path in self.paths]

  @functools.cached_property
  def _bases(self) -> list[int]:
    sizes = [len(array) for array, _ in self._arrays]
    return list(itertools.accumulate(sizes, initial=0))[:-1]

  def _open(self, path: pathlib.Path) -> tuple[np.ndarray, int]:
    array = self._mapped(path)
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.integer):
      raise self._refusal(
        f"{path} must have integers [documents, tokens] or [tokens], and has "
        f"{array.dtype} {array.shape}"
      )
    says = self._tokens or self._end is not None or self._starts is not None
    if array.ndim == 2:
      if says:
        raise self._refusal(
          f"{path} has documents of {array.shape[1]} tokens already"
        )
      return array.reshape(-1), array.shape[1]
    if not says:
      raise self._refusal(
        f"must say where documents begin in {path}, whose ids are one line",
        "add :end=ID, :tokens=NUMBER or :starts=FILE.npy",
      )
    return array, self._tokens

  def _mapped(self, path: pathlib.Path) -> Any:
    try:
      if path.suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
      if self._dtype is None:
        raise self._refusal(
          f"must say the dtype of {path}", "add one of :" + ", :".join(DTYPES)
        )
      dtype = np.dtype(self._dtype).newbyteorder("<")
      size = path.stat().st_size
      if size % dtype.itemsize or not size:
        raise self._refusal(
          f"{path} must be numbers of {dtype.itemsize} bytes, and has {size} "
          "bytes"
        )
      return np.memmap(path, dtype, mode="r")
    except (OSError, EOFError) as error:
      raise formats.unreadable(path, str(error)) from error
    except ValueError as error:
      if isinstance(error, InputError):
        raise
      raise formats.unreadable(path, str(error)) from error

  def _read_starts(self, name: str) -> np.ndarray:
    starts = self._mapped(pathlib.Path(name).expanduser())
    tokens = len(self._mapped(self.paths[0]))
    ascends = starts.ndim == 1 and len(starts) and starts[0] == 0
    if not (ascends and np.all(np.diff(starts) >= 0) and starts[-1] <= tokens):
      raise self._refusal(
        f"{name} must ascend from 0 to at most {tokens}, the number of ids"
      )
    return np.asarray(starts, np.int64)

  def _refusal(self, rule: str, remedy: str = "correct it") -> InputError:
    return InputError("harvest.corpus", f"ids:{self._name}", rule, remedy)
