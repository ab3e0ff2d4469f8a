"""Strict modes, and which tests need what.

Warnings are errors by setup.cfg. Files called *_devices_test.py need eight
devices and run in a process of their own; *_torch_test.py compare with
PyTorch and are left out where it is not installed.
"""

import gc
import importlib.util
import os
import pathlib
import tempfile
import threading
from importlib import metadata

from packaging import version

# Before JAX is imported; processes that tests start inherit it.

# Compiling is most of what tests do, and code that runs for a second need not be
# good. XLA_FLAGS with a level of its own are left as they are.
LEVEL = "--xla_backend_optimization_level"
BEFORE_0_11 = version.Version(metadata.version("jax")) < version.Version("0.11")
if LEVEL not in os.environ.get("XLA_FLAGS", ""):
  quick = [os.environ.get("XLA_FLAGS", ""), f"{LEVEL}=0"]
  if BEFORE_0_11:
    quick.append("--xla_cpu_use_fusion_emitters=false")  # later: no other way
  os.environ["XLA_FLAGS"] = " ".join(quick)

# Many tests compile the same programs anew: once a session is enough.
_cache = tempfile.TemporaryDirectory(prefix="saejax-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")


def reusing(make_ir_context, times: int = 10):
  """MLIR contexts of a thread, each for ten programs, as JAX 0.11 has them.

  Making one takes longer than lowering a program of one operation, and the more
  so the more there were.
  """
  local = threading.local()

  def ir_context():
    if getattr(local, "left", 0) == 0:
      local.context, local.left = make_ir_context(), times
    local.left -= 1
    return local.context

  return ir_context


if BEFORE_0_11:
  mlir.make_ir_context = reusing(mlir.make_ir_context)

# Tracing makes objects by the million: fewer looks for cycles among all that a
# process has compiled.
gc.set_threshold(200_000, 20, 100)

# Each compiled program takes memory maps, of which a process may have 65,530 on
# Linux; the compiler crashes beyond that.
MOST_MAPS = 20_000
MAPS = pathlib.Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def few_maps():
  """Forgets compiled programs after a file, where there are many."""
  yield
  if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
    jax.clear_caches()
    gc.collect()


HAS_TORCH = importlib.util.find_spec("torch") is not None
DEVICES = 8


def pytest_configure():
  flags.FLAGS.mark_as_parsed()  # absltest reads its flags without a main


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
  if collection_path.name.endswith("_torch_test.py") and not HAS_TORCH:
    return True
  return None


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  for item in items:
    if item.path.name.endswith("_devices_test.py"):
      item.add_marker(pytest.mark.devices)
    if item.path.name.endswith("_torch_test.py"):
      item.add_marker(pytest.mark.torch)


def pytest_runtest_setup(item: pytest.Item) -> None:
  if item.get_closest_marker("devices") and jax.device_count() < DEVICES:
    pytest.fail(
      f"needs {DEVICES} devices, found {jax.device_count()}: start pytest "
      f"with XLA_FLAGS=--xla_force_host_platform_device_count={DEVICES}"
    )
