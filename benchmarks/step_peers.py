"""Other libraries as contenders of step.py, each in a process of its own."""

import dataclasses
import json
import os
import pathlib
import subprocess
from collections.abc import Callable
from typing import IO, Any, cast

import jax
import peers

from saejax import errors

MALLOC = {
  "MALLOC_ARENA_MAX": "1",
  "MALLOC_MMAP_THRESHOLD_": "1073741824",
  "MALLOC_TRIM_THRESHOLD_": "4294967296",
  "MALLOC_TOP_PAD_": "268435456",
}


class PeerServer:
  """peers.py in a process of its own, with one allocator setting."""

  def __init__(self, config, sizes, dtype, steps, *, tuned: bool):
    environment = {k: v for k, v in os.environ.items() if k not in MALLOC}
    if tuned:
      environment |= MALLOC
    script = pathlib.Path(__file__).parent / "peers.py"
    python = config.peers_python or os.environ["SAEJAX_PEERS_PYTHON"]
    try:
      self._process = subprocess.Popen(
        [python, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
      )
    except OSError as e:
      raise errors.InputError(
        "peers_python",
        python,
        f"must be a Python that runs ({e.strerror})",
        "name one, or none",
      ) from e
    self._asking = cast(IO[str], self._process.stdin)
    self._answers = cast(IO[str], self._process.stdout)
    found = self._ask(do="versions")
    self.versions: dict[str, str] = found["versions"]
    self.absent: dict[str, str] = found["absent"]
    self.contenders: dict[str, Callable[[], float]] = {}
    for peer in peers.BUILDERS:
      if peer in self.absent:
        continue
      answer = self._ask(
        do="build",
        peer=peer,
        sizes=dataclasses.asdict(sizes),
        dtype=dtype,
        seed=config.seed,
        steps=steps * (config.rounds + config.warmup),
        threads=config.threads,
        device="cuda" if jax.default_backend() == "gpu" else "cpu",
      )
      if "error" in answer:
        self.absent[peer] = answer["error"]
      else:
        name = peer + "+malloc" if tuned else peer
        self.contenders[name] = self._runner(peer, steps)

  def close(self) -> None:
    self._asking.close()
    self._process.wait(timeout=60)
    self._answers.close()

  def _runner(self, peer: str, steps: int) -> Callable[[], float]:
    def run() -> float:
      taken = [self._ask(do="run", peer=peer) for _ in range(steps)]
      return sum(answer["ms"] for answer in taken) / steps

    return run

  def _ask(self, **request: Any) -> dict[str, Any]:
    self._asking.write(json.dumps(request) + "\n")
    self._asking.flush()
    line = self._answers.readline()
    if not line:
      raise RuntimeError(f"peers.py ended at {request}")
    answer = json.loads(line)
    if request["do"] == "run" and "error" in answer:
      raise RuntimeError(f"{request['peer']}: {answer['error']}")
    return answer


def serve(config, sizes, dtype, steps) -> list[PeerServer]:
  """One server per allocator setting; none where no Python has the peers."""
  if not (config.peers_python or os.environ.get("SAEJAX_PEERS_PYTHON")):
    return []
  tuned = {"default": [False], "tuned": [True], "both": [False, True]}
  return [
    PeerServer(config, sizes, dtype, steps, tuned=t)
    for t in tuned[config.peers_malloc]
  ]
