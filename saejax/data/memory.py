"""Memory of the host and the device, for refusing work that cannot fit."""

import os
import pathlib
import resource

import jax

# Memory limits of a container, for control groups version 2 and version 1.
_GROUPS = (
  "/sys/fs/cgroup/memory.max",
  "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def host() -> int:
  """Returns the bytes that this process may use.

  This is the memory of the machine, or the limit of the process or its
  container where that is smaller.
  """
  limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  if limit != resource.RLIM_INFINITY:
    limits.append(limit)
  for name in _GROUPS:
    try:
      limits.append(int(pathlib.Path(name).read_text()))
    except (OSError, ValueError):  # no such file, or "max"
      continue
  return min(limits)


def device() -> int:
  """Returns the bytes of the default device, or of the host if it has none."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return int(stats.get("bytes_limit") or host())
