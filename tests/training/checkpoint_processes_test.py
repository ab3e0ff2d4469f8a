"""Checkpoints in processes: kills, full disks, several devices."""

import os
import subprocess
import sys

from absl.testing import absltest


def run(script: str, *args: object, **env: str) -> str:
  """Runs a script in a process of its own and gives what it printed."""
  done = subprocess.run(
    [sys.executable, "-c", script, *map(str, args)],
    capture_output=True,
    text=True,
    timeout=120,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env},
  )
  if done.returncode:
    raise AssertionError(done.stdout + done.stderr)
  assert not done.stderr, done.stderr
  return done.stdout


# One parent that never starts a backend forks children that save without
# pause, kills them at random moments, and checks in another what they left.
KILL = """
import os, random, signal, sys, time
import jax, jax.numpy as jnp, numpy as np, optax, grain
from orbax.checkpoint import v1 as ocp
from saejax.training import checkpoint

folder, seed, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def value(step):
  return {"x": jnp.full((300, 1000), step, jnp.float32),
          "y": jnp.arange(1000) + step}

class Position:
  def __init__(self): self.at = None
  def get_state(self): return {"at": self.at}
  def set_state(self, s): self.at = s["at"]

def save_for_ever(saved):
  position = Position()
  c = checkpoint.Checkpoints(folder, fingerprint={"a": 1}, say=str)
  restored = c.restore(value(0), position)
  step = restored[0] if restored else 0
  while True:
    step += 1
    position.at = 3 * step
    c.save(step, value(step), position, metric=step % 7)
    os.write(saved, b"x")

def check(reached):
  position = Position()
  c = checkpoint.Checkpoints(folder, fingerprint={"a": 1}, say=str)
  restored = c.restore(value(0), position)
  if restored is None:
    return
  step, state = restored
  expected = value(step)
  assert all(np.array_equal(state[k], expected[k]) for k in expected), step
  assert position.at == 3 * step, (position.at, step)
  best = c.best()
  assert best.metric == best.step % 7, best
  restored = c.restore(value(0), position, step=best.step)
  assert np.array_equal(restored[1]["y"], value(best.step)["y"])
  assert len(os.listdir(folder)) <= 3, os.listdir(folder)
  os.write(reached, step.to_bytes(4, "little"))

def fork(work, pipe):
  pid = os.fork()
  if pid == 0:
    code = 1
    try:
      work(pipe)
      code = 0
    except BaseException:
      import traceback; traceback.print_exc()
    finally:
      os._exit(code)
  return pid

rng = random.Random(seed)
torn = done = 0
while done < rounds or not torn and done < 10 * rounds:
  done += 1
  r, w = os.pipe()
  pid = fork(save_for_ever, w)
  for _ in range(rng.randint(2, 4)):  # a save ends before the next one begins
    os.read(r, 1)
  time.sleep(rng.uniform(0.0, 0.1))
  os.kill(pid, signal.SIGKILL)
  os.waitpid(pid, 0)
  torn += any("tmp" in n or "removed" in n for n in os.listdir(folder))
  pid = fork(check, w)
  assert os.waitpid(pid, 0)[1] == 0
  os.close(r), os.close(w)
r, w = os.pipe()
pid = fork(check, w)
assert os.waitpid(pid, 0)[1] == 0
print(int.from_bytes(os.read(r, 4), "little"), torn)
"""

FULL = """
import resource, sys, logging
import jax.numpy as jnp
from saejax import errors
from saejax.training import checkpoint

c = checkpoint.Checkpoints(sys.argv[1], fingerprint={"a": 1})
x = {"x": jnp.arange(200_000.0)}
c.save(1, x, metric=1.0)
c.wait()
infinite = resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, infinite))
messages = []
c.save(2, {"x": x["x"] + 1})
try:
  c.save(3, {"x": x["x"] + 2})
except errors.InputError as e:
  messages.append(str(e))
c.save(4, {"x": x["x"] + 3})
try:
  c.close()
except errors.InputError as e:
  messages.append(str(e))
assert len(messages) == 2, messages
for m in messages:
  assert m.startswith("run_dir=") and "step 1 is intact" in m, m
  assert "free space" in m and "\\n" not in m, m
resource.setrlimit(resource.RLIMIT_FSIZE, (infinite, infinite))
c = checkpoint.Checkpoints(sys.argv[1], fingerprint={"a": 1})
step, state = c.restore(x)
assert step == 1 and bool((state["x"] == x["x"]).all())
c.save(2, {"x": x["x"] + 1})
c.close()
assert c.restore(x)[0] == 2
"""

SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from saejax.training import checkpoint

auto = (AxisType.Auto,) * 2
mesh = jax.make_mesh((2, 2), ("data", "latent"), axis_types=auto)
other = jax.make_mesh((1, 4), ("data", "latent"), axis_types=auto)

def put(tree, mesh):
  def spec(x):
    return NamedSharding(mesh, P("latent") if x.ndim else P())
  return jax.tree.map(lambda x: jax.device_put(x, spec(x)), tree)

tree = {"W": jax.random.normal(jax.random.key(0), (8, 4)),
        "key": jax.random.split(jax.random.key(1), 4), "step": jnp.int32(3)}
c = checkpoint.Checkpoints(sys.argv[1], fingerprint={"a": 1})
c.save(1, put(tree, mesh))
for m in (mesh, other):
  template = put(tree, m)
  step, back = c.restore(template)
  jax.block_until_ready(back)
  for k in tree:
    assert back[k].sharding == template[k].sharding, (k, back[k].sharding)
  assert np.array_equal(back["W"], tree["W"])
  assert np.array_equal(jax.random.key_data(back["key"]),
                        jax.random.key_data(tree["key"]))
c.close()
"""


class ProcessTest(absltest.TestCase):
  def test_a_kill_at_any_moment_leaves_a_whole_last_checkpoint(self):
    folder = self.create_tempdir().full_path
    reached, torn = map(int, run(KILL, folder, 1, 5).split())
    self.assertGreaterEqual(reached, 5)  # one in each round
    self.assertGreater(torn, 0)  # some kills met a write half-way

  def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(self):
    run(FULL, self.create_tempdir().full_path)

  def test_shards_are_restored_where_the_template_says(self):
    run(
      SHARDED,
      self.create_tempdir().full_path,
      XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )


if __name__ == "__main__":
  absltest.main()
