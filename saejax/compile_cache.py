"""JAX's persistent compilation cache, in the user's cache folder.

Small fits spend most of their time compiling, and equal programs compile to
equal machine code: a program that is found in the cache gives the bits of one
that is compiled. `SAEJAX_COMPILE_CACHE` names another folder, or is "off".

  $XDG_CACHE_HOME/saejax/compiled/<processor and cores>/   (~/.cache by default)

JAX's own key omits the number of cores, for which XLA partitions a program on
CPU; a folder per processor and number of cores keeps them apart, also where a
home folder is shared by several machines.
"""

import contextlib
import os
import pathlib
import platform
import zlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from saejax import durable, machine, terminal

VARIABLE = "SAEJAX_COMPILE_CACHE"
OFF = "off"
DIR = "jax_compilation_cache_dir"  # JAX's setting
MOST_BYTES = 2**30  # in all folders; a program takes 2 to 500 kB

_ENTRIES = "*/*-cache"  # names are JAX's
_CHECKED = ".checked"  # its time is that of the last `tidy`
_ZSTD = b"\x28\xb5\x2f\xfd"  # first bytes of a frame
_SETTINGS = {
  # Looking a program up takes less than compiling even the smallest.
  "jax_persistent_cache_min_compile_time_secs": 0.0,
  "jax_persistent_cache_min_entry_size_bytes": -1,
}


@contextlib.contextmanager
def enabled() -> Iterator[pathlib.Path | None]:
  """Uses the cache for what is compiled inside the context.

  A cache that JAX is already set to use is left alone, and so is JAX where the
  folder cannot be written. Several processes may share the folder.

  Yields:
    The folder, or None where nothing was changed.
  """
  folder = _prepared()
  if folder is None:
    yield None
    return
  wanted = {**_SETTINGS, DIR: str(folder)}
  before = {name: getattr(jax.config, name) for name in wanted}
  try:
    _update(wanted)
    yield folder
  finally:
    _update(before)


def _update(settings: dict) -> None:
  for name, value in settings.items():
    jax.config.update(name, value)
  # JAX opens a folder once and would keep it.
  compilation_cache.reset_cache()


def _prepared() -> pathlib.Path | None:
  """The folder, made and tidied; None for no cache."""
  chosen = os.environ.get(VARIABLE, "")
  if chosen == OFF or getattr(jax.config, DIR):
    return None
  try:
    root = pathlib.Path(chosen) if chosen else _default()
    folder = root / durable.digest([_processor(), machine.cores()])[:16]
    # Whoever can write there can run code here.
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    tidy(root)
  except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
    if chosen:
      terminal.say(f"warning: {VARIABLE}={chosen} is not used: {error}")
    return None
  return folder


def _default() -> pathlib.Path:
  base = os.environ.get("XDG_CACHE_HOME")
  root = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
  return root / "saejax" / "compiled"


def _processor() -> list[str]:
  """What the compiler chooses instructions by."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  sets = [s for s in lines if s.startswith(("flags", "Features"))][:1]
  return [platform.machine(), machine.cpu_model(), *sets]


def tidy(root: pathlib.Path, most_bytes: int = MOST_BYTES) -> None:
  """Removes damaged entries, and the least recently used beyond a size.

  JAX writes entries in place: a process that is killed, or a disk that is full,
  leaves a part of one, which JAX would warn of at every use. Its own limit of
  size stops working after such a kill.

  Args:
    root: folder of the folders of entries.
    most_bytes: bytes to keep.

  Raises:
    OSError: the folder cannot be written.
  """
  stamp = root / _CHECKED
  since = stamp.stat().st_mtime if stamp.exists() else 0.0
  stamp.touch()
  entries = []
  for path in root.glob(_ENTRIES):
    with contextlib.suppress(FileNotFoundError):  # another process tidies too
      found = path.stat()
      if found.st_mtime >= since and not _is_whole(path.read_bytes()):
        path.unlink()
      else:
        used = max(found.st_atime, found.st_mtime)
        entries.append((used, found.st_size, path))
  total = sum(size for _, size, _ in entries)
  for _, size, path in sorted(entries):
    if total <= most_bytes:
      break
    path.unlink(missing_ok=True)
    total -= size


def _is_whole(data: bytes) -> bool:
  """Whether an entry, which JAX compresses, is complete."""
  if data.startswith(_ZSTD):
    try:
      import zstandard
    except ImportError:  # then JAX does not read it either
      return True
    reader = zstandard.ZstdDecompressor().decompressobj()
    errors: type[Exception] = zstandard.ZstdError
  else:
    reader, errors = zlib.decompressobj(), zlib.error
  try:
    reader.decompress(data)
  except errors:
    return False
  return reader.eof
