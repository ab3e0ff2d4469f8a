"""PyTorch models as subjects: harvests equal those of our own families."""

import numpy as np
import torch
from absl.testing import absltest

from saejax.data import harvest
from saejax.data.text import corpus as text
from saejax.data.text import own_models, subject
from saejax.errors import InputError
from saejax.models import taps
from tests.data import tiny
from tests.data.text import own_models_test
from tests.golden import make_models


class Net(torch.nn.Module):
  """A model that takes ids alone, and pools its last block."""

  def __init__(self):
    super().__init__()
    torch.manual_seed(0)
    self.table = torch.nn.Embedding(258, 8)
    self.block = torch.nn.Linear(8, 6)

  def forward(self, ids):
    return self.block(self.table(ids)).mean(dim=1)


def run(model, ids, mask):
  del mask
  return model(ids)


class OwnTorchTest(own_models_test.Harvests):
  def ids(self, vocabulary):
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, vocabulary, 70) for _ in range(60)]
    self.corpus = text.write_ids(self.folder / "ids.jsonl", documents)

  def test_rows_are_those_of_our_own_family(self):
    theirs = make_models.build("llama_gqa_tied")
    folder = str(self.folder / "model")
    theirs.save_pretrained(folder)
    self.ids(theirs.config.vocab_size)
    source = own_models.from_torch(theirs, name="t", site="model.layers.1")
    self.assertEqual(source.vocabulary, theirs.config.vocab_size)
    self.assertEqual(source.max_positions, 20)
    train, held_out = self.harvest(source)
    self.assertEqual((train.rows, train.d), (2_000, theirs.config.hidden_size))
    forward = subject._Forward(folder, ["layers.1.resid_post"], None)
    ours, _ = self.harvest(
      subject.Subject(d=source.d, encode=source.encode, forward=forward)
    )
    got, want = tiny.everything(train), tiny.everything(ours)
    for name in ("doc", "pos", "tok"):
      np.testing.assert_array_equal(got[name], want[name])
    error = np.abs(got["x"] - want["x"]).max()
    self.assertLessEqual(error, 1e-5 * np.abs(want["x"]).max())
    self.assert_trains(train, held_out)

  def test_other_weights_give_another_store(self):
    theirs = make_models.build("gpt2")
    self.ids(40)
    first = self.harvest(own_models.from_torch(theirs, name="t", site="h.0"))
    with torch.no_grad():
      theirs.transformer.wte.weight[0] += 1
    other = self.harvest(own_models.from_torch(theirs, name="t", site="h.0"))
    self.assertNotEqual(first[0].path, other[0].path)

  def test_a_pair_is_source_and_target_of_one_forward(self):
    theirs = make_models.build("llama_gqa_tied")
    self.ids(theirs.config.vocab_size)
    calls = []
    theirs.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    source, target = own_models.pair_from_torch(
      theirs, name="t", site="model.layers.0.mlp"
    )
    calls.clear()
    config = tiny.config(self.corpus, self.folder / "stores", drop_ids=())
    train, _ = harvest.harvest(config, source=source, target=target)
    x = tiny.everything(train)["x"]
    y = train.whole("target")["target"]
    with torch.no_grad():
      want = theirs.model.layers[0].mlp(torch.tensor(x))
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    of_pair = len(calls)
    one = own_models.from_torch(theirs, name="t", site="layers.0")
    calls.clear()
    self.harvest(one)
    self.assertEqual(of_pair, len(calls))

  def test_a_pooled_site_has_a_row_per_window(self):
    site = taps.Site("pooled", "block", pool="mean")
    source = own_models.from_torch(
      Net().eval(), name="n", site=site, call=run, vocabulary=258,
      words=tiny.encode,
    )  # fmt: skip
    train, _ = self.harvest(source, rows=200, calibration_rows=20)
    rows = tiny.everything(train)
    documents = text.documents(str(self.corpus))
    self.assertLen(set(zip(rows["doc"], rows["pos"], strict=True)), train.rows)
    net = Net()
    for row in range(0, train.rows, 17):
      stop = rows["pos"][row] + 1
      ids = tiny.encode(documents[int(rows["doc"][row])])
      start = (stop - 1) // 18 * 18
      self.assertTrue(stop == len(ids) or stop % 18 == 0)
      h = net.block(net.table(torch.tensor(ids[start:stop]).long()))
      want = h.mean(dim=0).detach().numpy()
      np.testing.assert_allclose(rows["x"][row], want, rtol=1e-4, atol=1e-5)

  def test_what_is_refused(self):
    net = Net().eval()
    make = lambda model=net, **changes: own_models.from_torch(
      model,
      **(
        {"name": "n", "site": "block", "call": run, "vocabulary": 258} | changes
      ),
    )
    for changes, message in (
      ({"site": "blok"}, "site.module=blok.*such as block"),
      ({"call": None}, "call=.*Net takes ids"),
      ({"model": Net()}, "model=Net.*eval"),
      ({"site": ""}, r"site.layout=BTD.*\(2, 6\)"),
      ({"site": "block:pair"}, "site.port=pair.*pair_from_torch"),
      ({"site": taps.Site("b", "block", layout="TBD")}, "site.layout=block"),
      ({"site": taps.Site("b", "block", call="all")}, "site.call=all"),
      ({"site": taps.Site("b", "block", branch="cond")}, "site.branch=cond"),
    ):
      with self.assertRaisesRegex(InputError, message):
        make(**changes)
    source = make(words=lambda s: [300])
    with self.assertRaisesRegex(InputError, "words=300.*vocabulary of n"):
      self.harvest(source)


if __name__ == "__main__":
  absltest.main()
