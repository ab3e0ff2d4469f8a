"""Strict modes, and which tests need what.

Warnings are errors by setup.cfg. Files called *_devices_test.py need eight
devices and run in a process of their own; *_torch_test.py compare with
PyTorch and are left out where it is not installed.
"""

import importlib.util
import pathlib
import tempfile

import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_dtype_promotion", "strict")

# Many tests compile the same small programs anew: once a session is enough.
_cache = tempfile.TemporaryDirectory(prefix="saejax-compiled-")
jax.config.update("jax_compilation_cache_dir", _cache.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

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
