"""Compiles several programs at the same time."""

from collections.abc import Hashable, Mapping
from concurrent import futures

import jax
from jax.stages import Compiled, Lowered

from saejax import machine, processes


def together(
  programs: Mapping[Hashable, Lowered],
) -> dict[Hashable, Compiled]:
  """Compiles programs, as many at a time as there are cores.

  A compilation of a step mostly keeps one core busy and releases Python's lock.
  Processes that share a program compile in one order, since some back ends agree
  on choices meanwhile, and then wait for each other: the first collective of a
  program waits for half a minute only. Equal programs are compiled once.

  Args:
    programs: traced and lowered programs by name.

  Returns:
    The compiled programs by name.
  """
  given = {name: _identity(program) for name, program in programs.items()}
  distinct = {given[name]: program for name, program in programs.items()}
  found = _compiled(distinct)
  return {name: found[identity] for name, identity in given.items()}


def _identity(program: Lowered) -> Hashable:
  """Equal for programs that compile to the same one and take the same trees."""
  return program.as_text(), program.in_tree, program.out_tree


def _compiled(
  programs: Mapping[Hashable, Lowered],
) -> dict[Hashable, Compiled]:
  alone = jax.process_count() == 1
  workers = min(len(programs), machine.cores()) if alone else 1
  if workers < 2:
    found = {name: program.compile() for name, program in programs.items()}
    if found and not alone:
      processes.sync()
    return found
  with futures.ThreadPoolExecutor(workers) as pool:
    compiled = pool.map(lambda program: program.compile(), programs.values())
    return dict(zip(programs, compiled, strict=True))
