"""What a compiled program holds, read from its text."""

import contextlib
import re

import jax

ARRAY = re.compile(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]*)\]")


def arrays(text: str) -> set[tuple[int, ...]]:
  """The shapes of all arrays that the text names."""
  return {_shape(dims) for dims in ARRAY.findall(text)}


def sorts(text: str) -> list[tuple[int, ...]]:
  """The shapes that are sorted, one for each sort."""
  found = []
  for line in text.splitlines():
    if " sort(" in line:
      found.append(_shape(ARRAY.search(line.split("=", 1)[1])[1]))
  return found


@contextlib.contextmanager
def nothing(test):
  """Fails where anything is compiled inside."""
  heard = []

  def listen(name: str, seconds: float, **_) -> None:
    if name.endswith("backend_compile_duration"):
      heard.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  test.assertEmpty(heard)


def _shape(dims: str) -> tuple[int, ...]:
  return tuple(int(size) for size in dims.split(",") if size)
