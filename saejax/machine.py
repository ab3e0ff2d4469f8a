"""Versions and hardware, on which results depend as well as on settings."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "tensorstore", "numpy")


def environment() -> dict[str, Any]:
  """Returns versions, processor, devices and the commit.

  Returns:
    saejax, commit (None outside a git checkout; "+" marks uncommitted
    changes), python, versions of jax and related packages, backend,
    device_kind, cores (that this process may use), platform, cpu,
    memory_bytes, device_count, process_count.
  """
  return {
    "saejax": version(),
    "commit": commit(),
    "python": platform.python_version(),
    **{name: _version(name) for name in _PACKAGES},
    **_decisive(),
    "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    "cpu": cpu_model(),
    "memory_bytes": _memory_bytes(),
    "device_count": jax.device_count(),
    "process_count": jax.process_count(),
  }


def decisive(mesh: Sequence[int]) -> dict[str, Any]:
  """The part of the environment that decides the last bits of a run.

  Args:
    mesh: devices of the run: ensemble, data, latent.

  Returns:
    jax, jaxlib, backend, device_kind, cores, mesh.
  """
  versions = {name: _version(name) for name in ("jax", "jaxlib")}
  return {**versions, **_decisive(), "mesh": list(mesh)}


def _decisive() -> dict[str, Any]:
  return {
    "backend": jax.default_backend(),
    "device_kind": jax.devices()[0].device_kind,
    "cores": cores(),
  }


def version() -> str:
  """Returns the version of saejax."""
  # No module imports saejax itself, since that imports all modules.
  return sys.modules["saejax"].__version__


def cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def process_seconds() -> float:
  """Returns the seconds since this process started; 0 where it is unknown."""
  try:
    fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2]
    started = int(fields.split()[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
  except (OSError, ValueError, AttributeError):
    return 0.0


def cpu_model() -> str:
  """Returns the name of the processor, or its architecture if unknown."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  for line in lines:
    name, _, value = line.partition(":")
    if name.strip() == "model name":
      return " ".join(value.split())
  return platform.processor() or platform.machine()


def commit() -> str | None:
  """Returns the commit of the checkout of this package, or None."""
  folder = pathlib.Path(__file__).resolve().parent
  try:
    top = _git(folder, "rev-parse", "--show-toplevel")
    if pathlib.Path(top).resolve() != folder.parent:
      return None  # installed inside another repository
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return _git(folder, "rev-parse", "HEAD") + ("+" if changed else "")
  except (OSError, subprocess.SubprocessError):
    return None


def _git(folder: pathlib.Path, *arguments: str) -> str:
  result = subprocess.run(
    ["git", "-C", str(folder), *arguments],
    capture_output=True,
    text=True,
    timeout=10,
    check=True,
  )
  return result.stdout.strip()


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _memory_bytes() -> int | None:
  try:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, ValueError, OSError):
    return None
