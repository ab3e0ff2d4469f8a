"""How much memory there is, so that what cannot fit is refused before work."""

import os
import pathlib
import resource

import jax

# Limits of a container: of control groups version 2, and version 1.
_GROUPS = (
  "/sys/fs/cgroup/memory.max",
  "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def host() -> int:
  """Bytes that this process may take: of the machine or less, by its limits."""
  found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  if limit != resource.RLIM_INFINITY:
    found.append(limit)
  for name in _GROUPS:
    try:
      found.append(int(pathlib.Path(name).read_text()))
    except (OSError, ValueError):  # not there, or "max"
      continue
  return min(found)


def device() -> int:
  """Bytes of the default device; those of the host where it has none itself."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return int(stats.get("bytes_limit") or host())
