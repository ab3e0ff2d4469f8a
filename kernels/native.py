"""Compiles and loads native.cc, the C++ form of some ops on a CPU.

Nothing needs it: it is compiled by the system's C++ compiler when it is first
asked for, against the headers that come with jaxlib, and kept in the user's
cache folder:

  $XDG_CACHE_HOME/saejax/native/<digest>.so   (~/.cache by default)

The digest is that of the source, the command, the compiler and the versions. The
machine code has a version for each instruction set, chosen when it is loaded, so
that machines that share a home folder share the file.
"""

import ctypes
import functools
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import jax

from saejax import durable
from saejax.errors import InputError

SOURCE = pathlib.Path(__file__).with_suffix(".cc")
COMPILERS = ("c++", "g++", "clang++")  # in this order, after $CXX
OPTIONS = ("-std=c++17", "-O3", "-fopenmp-simd", "-fPIC", "-shared")
CALLS = ("Select", "Largest", "AddEntries", "EntryGradients")
FLAG = "train.native"
INSTEAD = f"or leave {FLAG} off"


def call(
  name: str, results: Sequence[jax.ShapeDtypeStruct], *args: jax.Array, **kwargs
) -> tuple[jax.Array, ...]:
  """Calls one of `CALLS`; under vmap its arrays get leading axes.

  Args:
    name: name of the call.
    results: shapes and dtypes of the results.
    *args: arrays.
    **kwargs: attributes.
  """
  run = jax.ffi.ffi_call(_target(name), results, vmap_method="broadcast_all")
  return tuple(run(*args, **kwargs))


@functools.cache
def load() -> None:
  """Compiles the library if it has not been, loads it and registers its calls.

  Raises:
    InputError: the device is no CPU, there is no compiler, it fails, or its
      result cannot be kept or loaded.
  """
  if jax.default_backend() != "cpu":
    rule = f"is for CPUs, and this is a {jax.default_backend()}"
    raise InputError(FLAG, True, rule, f"leave it off, {INSTEAD[3:]}")
  path = _compiled()
  try:
    library = ctypes.CDLL(str(path))
  except OSError as error:
    rule = f"{path} cannot be loaded ({error})"
    raise InputError(FLAG, True, rule, f"remove the file, {INSTEAD}") from error
  for name in CALLS:
    handler = jax.ffi.pycapsule(getattr(library, f"saejax{name}"))
    jax.ffi.register_ffi_target(_target(name), handler, platform="cpu")


def _target(name: str) -> str:
  """The name that compiled programs hold, also those kept on disk."""
  return f"saejax.{name}.{_digest()[:16]}"


@functools.cache
def _digest() -> str:
  return durable.digest(
    [
      SOURCE.read_text(),
      OPTIONS,
      _compiler(),
      platform.platform(),
      jax.__version__,
      importlib.metadata.version("jaxlib"),
    ]
  )


@functools.cache
def _compiler() -> list[str]:
  """Path and version of the compiler.

  Raises:
    InputError: there is none, or it does not run.
  """
  given = os.environ.get("CXX", "")
  for name in [given] if given else COMPILERS:
    if path := shutil.which(name):
      version = _run([path, "--version"]).splitlines()
      return [path, *version[:1]]
  raise InputError(
    FLAG,
    True,
    f"needs a C++ compiler, and there is no {given or ', '.join(COMPILERS)}",
    f"install one or name it in CXX, {INSTEAD}",
  )


def _compiled() -> pathlib.Path:
  """The library on disk; compiled now if this source has not been."""
  digest = _digest()
  try:
    folder = _folder()
    path = folder / f"{digest}.so"
    if path.exists():
      return path
    with tempfile.TemporaryDirectory(dir=folder) as where:
      made = pathlib.Path(where) / path.name
      # macOS resolves what the interpreter offers only when told so.
      extra = ["-undefined", "dynamic_lookup"] * (sys.platform == "darwin")
      include = ["-isystem", jax.ffi.include_dir()]
      command = [_compiler()[0], *OPTIONS, *extra, *include]
      _run([*command, "-o", str(made), str(SOURCE)])
      made.replace(path)  # whole or not at all, whoever else compiles it
  except OSError as error:
    raise InputError(
      FLAG,
      True,
      f"cannot keep the compiled library ({error})",
      f"name a folder that can be written in XDG_CACHE_HOME, {INSTEAD}",
    ) from error
  return path


def _folder() -> pathlib.Path:
  base = os.environ.get("XDG_CACHE_HOME")
  root = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
  folder = root / "saejax" / "native"
  # Whoever can write there can run code here.
  folder.mkdir(parents=True, exist_ok=True, mode=0o700)
  return folder


def _run(command: Sequence[str]) -> str:
  """Output of a command of the compiler.

  Raises:
    InputError: it fails.
  """
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    said = [line for line in done.stderr.splitlines() if "error" in line]
    reason = (said or [f"exit code {done.returncode}"])[0].strip()
    raise InputError(
      FLAG,
      True,
      f"{command[0]} failed ({reason})",
      f"name another C++17 compiler in CXX, {INSTEAD}",
    )
  return done.stdout
