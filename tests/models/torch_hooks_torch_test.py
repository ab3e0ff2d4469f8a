"""Hooks on PyTorch models: against our families, by hand, and what is refused."""

import numpy as np
import torch
import transformers
from absl.testing import absltest, parameterized
from jax import numpy as jnp

from saejax import errors
from saejax.models import model as model_lib
from saejax.models import sites, taps, torch_hooks, torch_models
from tests.golden import make_models

TOLERANCE = 1e-5  # of the largest entry


class Net(torch.nn.Module):
  """A linear map, a block that is called twice, and a picture's map."""

  def __init__(self, inplace=False):
    super().__init__()
    torch.manual_seed(0)
    self.inner = torch.nn.Linear(4, 4)
    self.act = torch.nn.ReLU(inplace=inplace)
    self.conv = torch.nn.Conv2d(3, 5, 1)
    self.pair = Pair()
    self.unused = torch.nn.Linear(1, 1)
    self.fails = False

  def forward(self, x, picture=None):
    h = self.act(self.inner(x))
    h = self.act(self.inner(h) - 0.1)
    if self.fails:
      raise RuntimeError("out of memory")
    h = self.pair(hidden=h)[1]["b"]
    if picture is not None:
      h = h + self.conv(picture).sum()
    return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=h)


class Pair(torch.nn.Module):
  def forward(self, *, hidden):
    return hidden.sum(), {"a": hidden, "b": 2 * hidden}


def inputs():
  torch.manual_seed(1)
  return torch.randn(2, 3, 4), torch.randn(2, 3, 2, 6)


def hooks(model) -> int:
  return sum(
    len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
  )


class FamiliesTest(parameterized.TestCase):
  """Site for site what our own families give."""

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path

  def run_of(self, model, ids, mask):
    ids, mask = torch.tensor(ids).long(), torch.tensor(mask).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return lambda: model(ids, attention_mask=mask, position_ids=positions)

  @parameterized.parameters(
    "bert", "gpt2", "gpt2_bare", "llama_gqa_tied", "gpt_neox_parallel",
    "phi3_windows_part_rotated", "gemma2_caps_windows",
  )  # fmt: skip
  def test_every_site_has_the_same_activations(self, case):
    theirs = make_models.build(case)
    theirs.save_pretrained(self.folder)
    ours = model_lib.load(self.folder)
    ids, mask = make_models.batch(ours.vocabulary, 13)
    wanted = make_models.sites_of(ours.config)
    found = torch_hooks.read(theirs, wanted, self.run_of(theirs, ids, mask))
    device = jnp.asarray(ids), jnp.asarray(mask)
    want = taps.read(ours, *device, [site.name for site in wanted])
    self.assertEqual(list(found), list(want))
    for name, h in want.items():
      h = np.asarray(h).reshape(*ids.shape, -1)[mask]
      error = np.abs(np.asarray(found[name])[mask] - h).max()
      self.assertLessEqual(error, TOLERANCE * np.abs(h).max(), name)

  @parameterized.parameters("gpt2", "llama_gqa_tied", "gpt_neox_parallel")
  def test_an_edit_changes_the_output_as_in_ours(self, case):
    theirs = make_models.build(case)
    theirs.save_pretrained(self.folder)
    ours = model_lib.load(self.folder)
    ids, mask = make_models.batch(ours.vocabulary, 9)
    run = self.run_of(theirs, ids, mask)
    device = jnp.asarray(ids), jnp.asarray(mask)
    plain = ours(*device)
    for point in ("q", "v", "z", "attn_out", "mlp_hidden", "resid_post"):
      site = taps.resolve(ours, 0, point)
      got = torch_hooks.write(theirs, {site: lambda h: h * 0.5}, run)
      self.assertIsInstance(got, transformers.utils.ModelOutput)
      want = taps.write(ours, *device, {site.name: lambda h: h * 0.5})
      self.assertGreater(float(jnp.abs(want - plain)[mask].max()), 1e-3)
      want = np.asarray(want)[mask]
      error = np.abs(got.logits.numpy()[mask] - want).max()
      self.assertLessEqual(error, 3 * TOLERANCE * np.abs(want).max(), point)

  def test_an_edit_that_changes_nothing_leaves_every_bit(self):
    theirs = make_models.build("gpt2")
    ids, mask = make_models.batch(40, 9)
    run = self.run_of(theirs, ids, mask)
    with torch.no_grad():
      want = run().logits
    edits = {
      "transformer.h.0": lambda h: h,
      "transformer.h.1.mlp:diff": lambda h: h,
      "transformer.h.1:in": lambda h: h,
    }
    for framework in torch_hooks.FRAMEWORKS:
      got = torch_hooks.write(theirs, edits, run, framework=framework).logits
      self.assertTrue(torch.equal(got.detach(), want))


class ReadTest(parameterized.TestCase):
  def test_memory_is_shared_with_jax(self):
    net, (x, _) = Net(), inputs()
    kept = []
    net.inner.register_forward_hook(lambda m, i, o: kept.append(o))
    found = torch_hooks.read(net, ["inner"], lambda: net(x))["inner"]
    self.assertEqual(found.unsafe_buffer_pointer(), kept[-1].data_ptr())
    for dtype in (torch.bfloat16, torch.float16):
      t = torch.randn(3, 4).to(dtype)
      self.assertEqual(
        torch_models.to_jax(t).unsafe_buffer_pointer(), t.data_ptr()
      )
    self.assertEqual(torch_models.to_jax(t.double()).dtype, jnp.float32)

  def test_calls(self):
    net, (x, _) = Net(), inputs()
    first = torch.relu(net.inner(x)).detach()
    last = (torch.relu(net.inner(first) - 0.1)).detach()
    at = lambda call: taps.Site(str(call), "act", call=call)
    wanted = [at(0), at(1), at(-1), at("all")]
    reader = torch_hooks.Reader(net, wanted)
    for _ in range(2):  # to the end, then stopped early
      found = reader(lambda: net(x))
      np.testing.assert_array_equal(found["0"], first)
      np.testing.assert_array_equal(found["1"], last)
      np.testing.assert_array_equal(found["-1"], last)
      np.testing.assert_array_equal(found["all"], torch.stack([first, last]))
    with self.assertRaisesRegex(errors.InputError, "act.*3 times.*2 times"):
      torch_hooks.read(net, [at(2)], lambda: net(x))

  def test_a_tensor_that_the_model_changes_in_place_is_read_before(self):
    net, (x, _) = Net(inplace=True), inputs()
    want = net.inner(x).detach()
    site = taps.Site("first", "inner", call=0)
    diff = taps.Site("diff", "act", call=0, port="diff")
    pair = taps.Site("pair", "act", call=0, port="pair")
    for _ in range(2):
      found = torch_hooks.read(net, [site, diff, pair], lambda: net(x))
      np.testing.assert_array_equal(found["first"], want)
      np.testing.assert_array_equal(found["diff"], torch.relu(want) - want)
      np.testing.assert_array_equal(found["pair"][0], want)
      np.testing.assert_array_equal(found["pair"][1], torch.relu(want))

  def test_the_model_is_stopped_after_the_last_site(self):
    net, (x, _) = Net(), inputs()
    reader = torch_hooks.Reader(net, ["inner"])
    want = reader(lambda: net(x))["inner"]
    ran = []
    net.pair.register_forward_hook(lambda m, i, o: ran.append(1))
    np.testing.assert_array_equal(reader(lambda: net(x))["inner"], want)
    self.assertEmpty(ran)
    torch_hooks.Reader(net, ["inner"], stop=False)(lambda: net(x))
    self.assertEqual(ran, [1])

  def test_elements_inputs_and_pictures(self):
    net, (x, picture) = Net(), inputs()
    wanted = [
      taps.Site("sum", "pair", index=0, layout="B(D)"),
      taps.Site("in", "pair", port="in"),
      taps.Site("conv", "conv", layout="BCHW"),
      taps.Site("mean", "conv", layout="BCHW", pool="mean"),
    ]
    run = lambda: net(x, picture=picture)
    found = torch_hooks.read(net, wanted[1:], run)
    conv = net.conv(picture).detach().numpy()
    np.testing.assert_allclose(found["conv"], np.moveaxis(conv, 1, -1))
    self.assertEqual(found["conv"].shape, (2, 2, 6, 5))
    mean = conv.mean(axis=(2, 3))
    np.testing.assert_allclose(found["mean"], mean, atol=1e-6)
    rows = sites.table(found["conv"], wanted[2])
    place = int(np.flatnonzero((rows["doc"] == 1) & (rows["pos"] == 8))[0])
    np.testing.assert_array_equal(rows["x"][place], conv[1, :, 1, 2])
    with self.assertRaisesRegex(errors.InputError, "site.layout=B.D.*pair"):
      torch_hooks.read(net, wanted[:1], run)


class WriteTest(parameterized.TestCase):
  @parameterized.parameters("jax", "torch")
  def test_elements_keep_their_container(self, framework):
    net, (x, _) = Net(), inputs()
    kept = []
    net.pair.register_forward_hook(lambda m, i, o: kept.append(o))
    site = taps.Site("sum", "pair", index=0, layout="BD")
    with self.assertRaisesRegex(errors.InputError, "site.layout=BD"):
      torch_hooks.write(net, {site: lambda h: h}, lambda: net(x))
    act = taps.Site("act", "act", call=1)
    got = torch_hooks.write(
      net, {act: lambda h: h * 0}, lambda: net(x), framework=framework
    )
    self.assertIsInstance(got, transformers.modeling_outputs.BaseModelOutput)
    self.assertEqual(float(got.last_hidden_state.detach().abs().max()), 0)

  def test_a_call_a_branch_and_pictures_are_changed_alone(self):
    net, (x, picture) = Net(), inputs()
    plain = net(x, picture=picture).last_hidden_state.detach()
    run = lambda: net(x, picture=picture)
    conv = net.conv(picture).detach()
    one = taps.Site(
      "c", "conv", layout="BCHW", branch="cond", columns=(1, 1, 3)
    )
    seen = []

    def edit(h):
      seen.append(h)
      return h * 0

    got = torch_hooks.write(net, {one: edit}, run).last_hidden_state
    np.testing.assert_allclose(seen[0], conv[1:, 1:3].permute(0, 2, 3, 1))
    want = plain - conv[1:, 1:3].sum()
    np.testing.assert_allclose(got, want, atol=1e-4)
    with self.assertRaisesRegex(errors.InputError, "site.call=-1.*several"):
      torch_hooks.write(net, {"act": lambda h: h}, run)

  def test_a_difference_of_0_skips_the_block(self):
    net, (x, _) = Net(), inputs()
    site = taps.Site("d", "act", call="all", port="diff")
    got = torch_hooks.write(net, {site: lambda h: h * 0}, lambda: net(x))
    want = 2 * (net.inner(net.inner(x)) - 0.1)
    np.testing.assert_array_equal(got.last_hidden_state, want.detach())

  def test_gradients_pass_through_an_edit_in_torch(self):
    net, (x, _) = Net(), inputs()
    v = torch.ones(4, requires_grad=True)
    site = taps.Site("a", "act", call=1)
    out = torch_hooks.write(
      net, {site: lambda h: h + v}, lambda: net(x), framework="torch"
    )
    out.last_hidden_state.sum().backward()
    np.testing.assert_array_equal(v.grad, torch.full((4,), 12.0))

  @parameterized.parameters(
    (lambda h: h[:, :1], "jax"),
    (lambda h: h.astype(jnp.bfloat16), "jax"),
    (lambda h: h.detach().numpy(), "torch"),
    (lambda h: h.double(), "torch"),
    (lambda h: None, "jax"),
  )
  def test_an_edit_of_another_shape_or_dtype_is_refused(self, edit, framework):
    net, (x, _) = Net(), inputs()
    site = taps.Site("mine", "act", call=0)
    with self.assertRaisesRegex(ValueError, "edit of mine must return"):
      torch_hooks.write(net, {site: edit}, lambda: net(x), framework=framework)
    self.assertEqual(hooks(net), 0)

  def test_what_jax_keeps_is_not_changed_in_place(self):
    net, (x, _) = Net(inplace=True), inputs()
    mine = -jnp.ones((2, 3, 4))
    site = taps.Site("a", "inner", call="all")
    torch_hooks.write(net, {site: lambda h: mine}, lambda: net(x))
    self.assertEqual(float(mine.max()), -1)


class RefusedTest(parameterized.TestCase):
  def test_no_hook_is_left_behind_by_an_exception(self):
    net, (x, _) = Net(), inputs()
    net.fails = True
    with self.assertRaisesRegex(RuntimeError, "out of memory"):
      torch_hooks.read(net, ["inner", "act:diff"], lambda: net(x))
    self.assertEqual(hooks(net), 0)
    with self.assertRaisesRegex(RuntimeError, "out of memory"):
      site = taps.Site("a", "act", call=0)
      torch_hooks.write(net, {site: lambda h: h}, lambda: net(x))
    self.assertEqual(hooks(net), 0)

  def test_a_path_that_is_not_there_lists_some_that_are(self):
    with self.assertRaisesRegex(
      errors.InputError, "site.module=iner: .*such as inner"
    ):
      torch_hooks.read(Net(), ["iner"], lambda: None)
    model = make_models.build("llama_gqa_tied")
    with self.assertRaisesRegex(errors.InputError, r"model\.layers\.1\b"):
      torch_hooks.read(model, ["model.layer.1"], lambda: None)

  def test_a_module_that_is_not_called_is_refused(self):
    net, (x, _) = Net(), inputs()
    with self.assertRaisesRegex(errors.InputError, "unused.*called 0 times"):
      torch_hooks.read(net, ["unused"], lambda: net(x))
    with self.assertRaisesRegex(errors.InputError, "unused.*called 0 times"):
      torch_hooks.write(net, {"unused": lambda h: h}, lambda: net(x))

  def test_modules_without_hooks_are_refused(self):
    compiled = torch.compile(Net(), backend="eager")
    with self.assertRaisesRegex(errors.InputError, "hooks run.*inside"):
      torch_hooks.read(compiled, ["inner"], lambda: None)
    parallel = torch.nn.DataParallel(Net())
    with self.assertRaisesRegex(errors.InputError, "DataParallel"):
      torch_hooks.read(parallel, ["inner"], lambda: None)

  def test_a_layout_of_other_axes_is_refused(self):
    net, (x, _) = Net(), inputs()
    site = taps.Site("a", "inner", layout="BCHW")
    with self.assertRaisesRegex(
      errors.InputError, r"site.layout=BCHW.*inner.*\(2, 3, 4\)"
    ):
      torch_hooks.read(net, [site], lambda: net(x))

  def test_the_digest_follows_weights_and_settings(self):
    first = torch_models.digest(Net())
    self.assertEqual(torch_models.digest(Net()), first)
    other = Net()
    with torch.no_grad():
      other.inner.bias[0] += 1
    self.assertNotEqual(torch_models.digest(other), first)
    model = make_models.build("llama_gqa_tied")
    before = torch_models.digest(model)
    model.config.rms_norm_eps = 0.5
    self.assertNotEqual(torch_models.digest(model), before)


if __name__ == "__main__":
  absltest.main()
