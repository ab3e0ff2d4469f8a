"""saejax/models/edits.py: one pass and generation rewrite alike."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from saejax import errors
from saejax.data.text import rules
from saejax.models import decoding, edits, generate, taps
from saejax.models import model as model_lib
from tests import compiled
from tests.models import golden

CASES = ("gpt2_untied_scaled", "llama_gqa_tied", "gemma2_caps_windows")
SITE = "layers.0.resid_post"
PROMPTS = ([1, 3, 4, 2], [1], [5, 1, 6, 7, 8, 1, 2])
TOKENS = 7
BOS = 1


def add(v, h):
  return h + v


def on_generated(v, h, context):
  """Adds v where the output is a generated token."""
  return jnp.where((context.step >= -1)[..., None], h + v, h)


def scaled_by_row(h, context):
  factor = jnp.where(context.sequence % 2 == 0, -1, 2)[:, None, None]
  return h * factor.astype(h.dtype)


def steps(h, context):
  """A schedule over generated tokens, another at the second place."""
  place = (context.positions == 1) | (context.ids == 3)
  step = jnp.maximum(context.step + 1, 0) + place.astype(jnp.int32)
  return h * (1 + 0.5 * step.astype(h.dtype))[..., None]


def once_fired(v, h, context, state):
  """Adds v from the second token on at which the first entry is positive."""
  hits = state["hits"] + (h[:, 0] > 0).astype(jnp.int32)
  h = jnp.where((state["hits"] > 0)[:, None], h + v, h)
  return h, {"hits": hits, "tokens": state["tokens"] + 1}


def fired(h, context, state):
  """A gate that opens for good at a token."""
  return h, state | (context.ids == 7)


def fired_at_once(h, context, state):
  """The same for all tokens of a pass."""
  seen = state[:, None] | ((context.ids == 7) & context.mask)
  return h, jnp.cumsum(seen, axis=1) > 0


def shifted(v, h, context):
  """Adds v where the gate is open."""
  return jnp.where(context.after(SITE)[..., None], h + v, h)


def counted(v, h, context, state):
  """Adds v, and more of it the longer the gate is open."""
  state = state + context.after(SITE).astype(jnp.int32)
  return h + state.astype(h.dtype)[:, None] * v, state


START = {"hits": 0, "tokens": jnp.zeros((), jnp.float32)}


def committed(h, context, state):
  """A gate by the prompt's share of positive entries, as a block function."""
  prompt = (context.step < 0) & context.mask
  share = jnp.where(prompt, (h > 0).mean(-1), 0).sum(1)
  state = {
    "sum": state["sum"] + share,
    "count": state["count"] + prompt.sum(1),
  }
  mean = state["sum"] / jnp.maximum(state["count"], 1).astype(h.dtype)
  seen = (context.step >= 0) & (mean > 0.45)[:, None]
  return jnp.where(seen[..., None], -h, h), state


OPEN = {"sum": 0.0, "count": 0}


def made(name, d):
  v = 0.5 * jnp.sin(jnp.arange(d, dtype=jnp.float32))
  found = {
    "plain": lambda h: h * 1.5,
    "array": Partial(add, v),
    "context": edits.Edit(Partial(on_generated, v)),
    "rows": edits.Edit(scaled_by_row),
    "steps": edits.Edit(steps),
    "state": edits.by_token(Partial(once_fired, v), state=START),
    "block": edits.Edit(committed, state=OPEN),
    "shift": edits.Edit(Partial(shifted, 5 * v)),
  }
  if name.startswith("guarded "):
    own = rules.RowRules(special=frozenset({BOS}), first=1, drop_ids=(4,))
    return own.guarded(made(name.removeprefix("guarded "), d))
  return found[name]


NAMES = ("plain", "context", "rows", "steps", "state", "block")


class Base(parameterized.TestCase):
  def load(self, case="llama_gqa_tied"):
    return model_lib.load(golden.folder(self.create_tempdir(), case))


class AgreementTest(Base):
  def whole(self, model, named, tokens):
    """Logits before each generated token, by one whole pass."""
    width = max(map(len, PROMPTS)) + TOKENS
    ids, mask = np.zeros((3, width), np.int32), np.zeros((3, width), bool)
    for r, (prompt, drawn) in enumerate(zip(PROMPTS, tokens, strict=True)):
      n = len(prompt) + TOKENS
      ids[r, :n], mask[r, :n] = [*prompt, *drawn], True
    lengths = np.array([len(p) for p in PROMPTS])
    run = jax.jit(functools.partial(taps.write, edits=named))
    logits = np.asarray(run(model, ids, mask, prompt=lengths))
    return [logits[r, n - 1 : n - 1 + TOKENS] for r, n in enumerate(lengths)]

  def cached(self, model, named):
    """(tokens, logits before each) of generation, token by token."""
    seen = []
    real = decoding.sampling.choose

    def spy(keys, logits, sampling):
      jax.debug.callback(lambda a: seen.append(np.asarray(a)), logits)
      return real(keys, logits, sampling)

    with mock.patch.object(decoding.sampling, "choose", spy):
      jax.clear_caches()
      found = generate.generate(
        model, PROMPTS, max_tokens=TOKENS, temperature=0, edits=named
      )
      jax.effects_barrier()
    jax.clear_caches()
    self.assertLen(seen, TOKENS)
    return found.ids, np.stack(seen, axis=1)

  @parameterized.product(
    name=(*NAMES, "guarded plain", "guarded state", "guarded block"),
  )
  def test_generation_has_the_logits_of_a_whole_pass(self, name):
    model = self.load()
    self.assert_agree(model, {SITE: made(name, model.d)})

  def assert_agree(self, model, named, without=None):
    """One pass and generation agree, and the edits do more than `without`."""
    ids, got = self.cached(model, named)
    want = self.whole(model, named, ids)
    plain = self.whole(model, without or {}, ids)
    changed = 0.0
    for r in range(len(PROMPTS)):
      np.testing.assert_allclose(got[r], want[r], atol=5e-5, rtol=1e-4)
      changed = max(changed, float(np.abs(want[r] - plain[r]).max()))
    self.assertGreater(changed, 1e-2)
    return ids, want

  @parameterized.product(
    gate=(
      edits.by_token(fired, state=False),
      edits.Edit(fired_at_once, state=False, each=True),
    ),
    late=("shift", "guarded shift", "state"),
  )
  def test_a_gate_drives_an_edit_at_a_later_site(self, gate, late):
    model = self.load()
    shift = made("shift" if "shift" in late else late, model.d)
    if late == "state":  # one that goes over tokens itself
      shift = edits.by_token(Partial(counted, jnp.ones(model.d)), state=0)
    if late.startswith("guarded"):
      shift = rules.RowRules(first=1).guarded(shift)
      gate = rules.RowRules(first=1).guarded(gate)
    named = {"layers.1.mlp_out": shift, SITE: gate}  # in any order
    ids, want = self.assert_agree(model, named)
    # Scanned layers agree too, and an open gate is another function.
    for got, wanted in zip(
      self.whole(model.scanned(), named, ids), want, strict=True
    ):
      np.testing.assert_allclose(got, wanted, atol=5e-5, rtol=1e-4)
    always = edits.by_token(lambda h, c, s: (h, ~(s & False)), state=True)
    other = self.whole(model, named | {SITE: always}, ids)
    self.assertGreater(
      max(np.abs(a - b).max() for a, b in zip(other, want, strict=True)), 0
    )

  @parameterized.parameters(
    ({SITE: "shift"}, "which none has"),
    ({SITE: "shift", "layers.1.z": "gate"}, "must be before layers.0.resid"),
    ({SITE: "plain", "layers.1.mlp_out": "shift"}, "set each"),
  )
  def test_a_gate_that_is_not_at_an_earlier_site_is_refused(self, named, part):
    model = self.load()
    gate = edits.by_token(fired, state=False)
    named = {
      site: gate if name == "gate" else made(name, model.d)
      for site, name in named.items()
    }
    ids, mask = np.ones((1, 3), np.int32), np.ones((1, 3), bool)
    with self.assertRaisesRegex(errors.InputError, part):
      taps.write(model, ids, mask, named)

  @parameterized.parameters(*CASES)
  def test_edits_at_several_sites_agree_in_every_family(self, case):
    model = self.load(case)
    named = {
      "layers.0.mlp_out": made("state", model.d),
      "layers.1.z": lambda z: z.at[:, :, 0].set(0),
      "embed": made("steps", model.d),
      "final_norm": made("context", model.d),
    }
    found = generate.generate(
      model, PROMPTS, max_tokens=5, temperature=0, edits=named
    )
    for m in (model, model.scanned()):
      run = jax.jit(functools.partial(taps.write, edits=named))
      for prompt, drawn in zip(PROMPTS, found.ids, strict=True):
        ids = np.asarray([[*prompt, *drawn]])
        mask = np.ones(ids.shape, bool)
        logits = run(m, ids, mask, prompt=np.array([len(prompt)]))
        best = np.asarray(logits)[0, len(prompt) - 1 : -1].argmax(-1)
        np.testing.assert_array_equal(best, drawn)

  def test_the_identity_leaves_every_token(self):
    model = self.load()
    sites = {name: lambda h: h for name in golden.sites(model.config)}
    draw = functools.partial(generate.generate, model, PROMPTS, max_tokens=5)
    np.testing.assert_array_equal(draw(edits=sites).ids, draw().ids)


class StateTest(Base):
  def run_blocks(self, edit, cuts):
    """Edits a row in blocks of tokens and returns it with the last state."""
    h = jax.random.normal(jax.random.key(0), (3, 9, 4))
    mask = jnp.arange(9)[None] >= jnp.asarray([0, 2, 8])[:, None]
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    states, parts = edits.starts({"s": edit}, 3)["s"], []
    for a, b in zip(cuts, [*cuts[1:], 9], strict=True):
      context = edits.Context(
        ids=positions[:, a:b],
        mask=mask[:, a:b],
        positions=positions[:, a:b],
        step=positions[:, a:b] - 4,
        sequence=jnp.arange(3),
      )
      out, states = edit(h[:, a:b], context, states)
      if edit.each:
        states = jax.tree.map(lambda a: a[:, -1], states)
      parts.append(jnp.where(mask[:, a:b, None], out, 0))
    return jnp.concatenate(parts, axis=1), states

  @parameterized.parameters("state", "block", "guarded state")
  def test_the_division_into_passes_makes_no_difference(self, name):
    edit = made(name, 4)
    want = self.run_blocks(edits.prepared(edit), [0])
    for cuts in ([0, 4], [0, 1, 2, 5], list(range(9))):
      got = self.run_blocks(edits.prepared(edit), cuts)
      for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)

  def test_by_token_counts_real_tokens_alone(self):
    _, state = self.run_blocks(edits.prepared(made("state", 4)), [0, 3])
    self.assertEqual(state["tokens"].tolist(), [9, 7, 1])
    own = rules.RowRules(first=2)
    guarded = own.guarded(made("state", 4))
    _, state = self.run_blocks(guarded, [0, 3])
    self.assertEqual(state["tokens"].tolist(), [7, 5, 0])


class CompilationTest(Base):
  def test_arrays_of_an_edit_are_arguments(self):
    model = self.load()
    draw = functools.partial(
      generate.generate, model, PROMPTS, max_tokens=3, temperature=0
    )
    one = draw(edits={SITE: Partial(add, jnp.zeros(model.d))})
    v = 9 * jnp.cos(jnp.arange(model.d, dtype=jnp.float32))
    with compiled.nothing(self):
      two = draw(edits={"model.layers.0": Partial(add, v)})
    self.assertFalse((one.ids == two.ids).all())


class ChecksTest(Base):
  @parameterized.parameters(
    (lambda h: h[..., :-1], "must return float32"),
    (lambda h: h.astype(jnp.bfloat16), "got bfloat16"),
    (edits.Edit(lambda h, c: (h, c)), "must return float32"),
    (
      edits.Edit(lambda h, c, s: (h, s.astype(h.dtype)), state=0),
      r"a state of int32 \(3,\), got float32 \(3,\)",
    ),
    (edits.Edit(lambda h, c, s: (h, None), state=0), "a state of int32"),
  )
  def test_an_edit_may_not_change_shape_or_dtype(self, edit, message):
    with self.assertRaisesRegex(errors.InputError, message) as caught:
      generate.generate(self.load(), PROMPTS, max_tokens=2, edits={SITE: edit})
    self.assertEqual(caught.exception.field, "edits")

  def test_unknown_and_doubled_sites_are_refused(self):
    draw = functools.partial(
      generate.generate, self.load(), PROMPTS, max_tokens=2
    )
    for site in ("layers.9.resid_post", "layers.0.nowhere"):
      with self.assertRaises(errors.InputError) as caught:
        draw(edits={site: lambda h: h})
      self.assertEqual(caught.exception.field, "edits")
    with self.assertRaisesRegex(errors.InputError, "two are of layers.0.res"):
      draw(edits={SITE: jnp.zeros_like, "model.layers.0": jnp.zeros_like})


if __name__ == "__main__":
  absltest.main()
