"""BERT, RoBERTa, DistilBERT and ELECTRA against transformers: outputs with padding, packing, gradients, round trip, training; what is refused."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from research.core import config as configs
from research.core.errors import UserError
from research.core.types import Batch, Vocab
from research.hf import files, loading
from research.hf.family import describe, families
from research.model.inputs import positions_within
from research.objectives.base import corrupted
from tests import drawn
from tests.hf import common, encoders
from tests.hf.common import Case
from tests.hf.encoders import FIRST, Rows

CLASSES = [
    *(("bert", f"Bert{name}", "BertConfig") for name in ("ForPreTraining", "ForMaskedLM", "ForMaskedLM", "Model", "ForSequenceClassification", "ForTokenClassification", "ForNextSentencePrediction")),
    *(("roberta", f"Roberta{name}", "RobertaConfig") for name in ("ForMaskedLM", "ForMaskedLM", "Model", "ForSequenceClassification")),
    *(("distilbert", f"DistilBert{name}", "DistilBertConfig") for name in ("ForMaskedLM", "ForMaskedLM", "Model", "ForSequenceClassification")),
    *(("electra", f"Electra{name}", "ElectraConfig") for name in ("ForMaskedLM", "ForMaskedLM", "ForPreTraining", "ForPreTraining", "Model", "ForSequenceClassification")),
]  # fmt: skip
UNUSED = {"bert": "cls.predictions.bias", "roberta": "lm_head.bias"}  # tensors that transformers keeps and does not read where the head is not tied


def case(number):
  family, model_class, config_class = CLASSES[number]
  sizes = common.drawn(number, heads=[1, 3, 5], layers=[1, 1, 2], head_dim=[4, 6])
  config = common.drawn(
      number + 100, intermediate_size=[20, 36], hidden_act=["gelu", "gelu_new", "relu", "silu"], layer_norm_eps=[1e-12, 1e-3], vocab_size=[61, 83],
      max_position_embeddings=[24, 31], type_vocab_size=[1, 2, 3], num_labels=[2, 3, 5],
  )  # fmt: skip
  config |= dict(hidden_size=sizes["heads"] * sizes["head_dim"], num_attention_heads=sizes["heads"], num_hidden_layers=sizes["layers"])
  first = CLASSES.index(CLASSES[number]) == number
  config["tie_word_embeddings"] = first  # the second of a class is not tied
  if family == "roberta":
    config["pad_token_id"] = common.drawn(number, pad=[1, 2, 4])["pad"]
  if family == "electra":
    config["embedding_size"] = 10 if first else config["hidden_size"]
  if not model_class.endswith("Classification"):
    del config["num_labels"]
  if family == "distilbert":
    names = families()["distilbert"].config.args[0].keys
    config = {names.get(key, key): value for key, value in config.items() if key not in ("layer_norm_eps", "type_vocab_size")}
  return Case(f"{number}-{model_class}", model_class, config_class, config)


CASES = [case(number) for number in range(len(CLASSES))]


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request, tmp_path_factory):
  return common.make_pair(request.param, tmp_path_factory.mktemp("encoder"))


def heads(pair):
  return pair.loaded.described.heads


def compare(ours, theirs, mask):
  for name, wanted in theirs.items():
    found = np.asarray(ours[name])
    if found.shape[:2] == mask.shape:
      found, wanted = found[mask > 0], wanted[mask > 0]
    common.close(found, wanted)


def test_outputs_with_padding(pair):
  given = encoders.rows(pair.theirs.config)
  compare(encoders.run(pair.loaded.model, pair.loaded.params, given), encoders.their_outputs(pair.theirs, given, heads(pair)), given.mask)


def test_padding_at_the_left(pair):
  """RoBERTa counts positions over the text alone, the others over the row."""
  given = encoders.rows(pair.theirs.config, left=True)
  positions = None if pair.loaded.family.name == "roberta" else np.broadcast_to(np.arange(given.mask.shape[1]), given.mask.shape)
  ours = encoders.run(pair.loaded.model, pair.loaded.params, given, positions)
  theirs = encoders.their_outputs(pair.theirs, given, heads(pair))
  whole = given.mask[:, 0] > 0  # what a row's first place holds is padding in the others
  for name in theirs:
    if theirs[name].shape[:2] != given.mask.shape:
      ours[name], theirs[name] = np.asarray(ours[name])[whole], theirs[name][whole]
  compare(ours, theirs, given.mask)


def test_packed(pair):
  """Our packed row against their separate documents."""
  given = encoders.rows(pair.theirs.config, count=1)
  segments = np.array([[1] * 5 + [2] * 4 + [0] * 2], np.int32)
  three = lambda part: np.repeat(part, 3, 0)  # the shapes that are compiled already
  ours = encoders.run(pair.loaded.model, pair.loaded.params, Rows(*map(three, given._replace(mask=segments))), None, three(np.array([[0, 5]], np.int32)))
  ours = {name: value[:1] for name, value in ours.items()}
  for number, (start, stop) in enumerate(((0, 5), (5, 9))):
    for name, theirs in encoders.their_outputs(pair.theirs, Rows(*(part[:, start:stop] for part in given)), heads(pair)).items():
      whole = theirs.shape[1] == stop - start and theirs.ndim > 1 and name not in ("pooler", "nsp", "class")
      np.testing.assert_allclose(ours[name][:, start:stop] if whole else ours[name][:, number], theirs, atol=common.LOGITS, rtol=0)


def labels(pair, given, seed=1):
  """Head -> what it is to give, −100 where nothing counts."""
  rng, found = np.random.default_rng(seed), {}
  for name, head in heads(pair).items():
    size = pair.loaded.described.vocab_size if name == "mlm" else 2 if name == "discriminator" else max(head.outputs, 1)
    each = name in ("mlm", "tags", "discriminator")
    found[name] = rng.integers(0, size, given.mask.shape if each else len(given.mask))
    if each:
      found[name] = np.where(given.mask > 0, found[name], -100)
  return found


def our_loss(params, model, given, wanted, probe):
  places = jnp.zeros((len(given.mask), 1), jnp.int32)
  ours, total = encoders.our_outputs(model, params, given, positions_within(jnp.asarray(given.mask)), places), 0.0
  ours = {name: value[:, 0] if name in model.heads and model.heads[name].pool == "first" else value for name, value in ours.items()}
  for name, target in wanted.items():
    if name == "pooler":
      continue
    counts = target >= 0
    if name == "discriminator":
      losses = optax.sigmoid_binary_cross_entropy(ours[name], target.astype(np.float32))
    else:
      losses = optax.softmax_cross_entropy_with_integer_labels(ours[name], np.maximum(target, 0))
    total = total + jnp.sum(losses * counts) / counts.sum()
  if not set(wanted) - {"pooler"}:  # a model without a loss of its own
    total = jnp.sum(ours["hidden"] * probe * given.mask[..., None]) + (jnp.sum(ours["pooler"] * probe[:, 0]) if "pooler" in ours else 0.0)
  return total


def their_loss(pair, given, wanted, probe):
  import torch

  names = {"nsp": "next_sentence_label"} if "mlm" in wanted else {"nsp": "labels"}
  kwargs = {names.get(name, "labels"): torch.tensor(target, dtype=torch.float if name == "discriminator" else torch.long) for name, target in wanted.items() if name != "pooler"}
  output = pair.theirs(**encoders.their_arguments(pair.theirs, given), **kwargs)
  if kwargs:
    return output.loss
  found = encoders.named(output, heads(pair))
  total = (found["hidden"] * torch.tensor(probe * given.mask[..., None], dtype=torch.float)).sum()
  return total + (found["pooler"] * torch.tensor(probe[:, 0])).sum() if "pooler" in found else total


def test_gradients(pair):
  """Of each class's own loss, tensor by tensor, through the same rules as the weights."""
  if "Classification" in pair.case.model_class or "NextSentence" in pair.case.model_class:
    pytest.skip("its blocks and its pooler are those of the other classes")
  given = encoders.rows(pair.theirs.config)
  wanted = labels(pair, given)
  probe = np.random.default_rng(2).normal(size=(*given.mask.shape, pair.loaded.model.cfg.width)).astype(np.float32) / 10
  theirs = their_loss(pair, given, wanted, probe)
  loss = jax.value_and_grad(lambda params: our_loss(params, pair.loaded.model, given, wanted, probe))
  ours, grads = jax.jit(loss, compiler_options=encoders.QUICK)(pair.loaded.params)
  assert abs(float(ours) - theirs.item()) < 1e-5 * max(1.0, abs(theirs.item()))
  common.compare_gradients(pair, grads, common.their_gradients(pair, theirs))


def test_round_trip(pair, tmp_path):
  given = encoders.rows(pair.theirs.config)
  tensors = lambda model: next(iter(encoders.named(model(**encoders.their_arguments(model, given)), heads(pair)).values()))
  family = pair.loaded.family.name
  if "mlm" in heads(pair) and not pair.loaded.model.cfg.tie_head and family in UNUSED:
    _, transformers = common.reference()
    assert list(pair.loaded.report.ignored) == [UNUSED[family]]
    loading.export(str(tmp_path), pair.loaded.model, pair.loaded.params, family)
    before, after = files.Folder(pair.folder), files.Folder(str(tmp_path))
    assert before.tensors.keys() - after.tensors.keys() == {UNUSED[family]} and not after.tensors.keys() - before.tensors.keys()
    assert all(before.read(name).tobytes() == after.read(name).tobytes() for name in after.tensors)
    again = getattr(transformers, pair.case.model_class).from_pretrained(tmp_path).eval()
    np.testing.assert_array_equal(tensors(again).detach(), tensors(pair.theirs).detach())
  else:
    common.check_round_trip(pair, tmp_path, inputs=tensors)


def test_twenty_steps_of_bert(tmp_path):
  """AdamW on the rows that objectives.masked_lm corrupts: torch's loss of the same rows at every step."""
  torch, _ = common.reference()
  config = dict(vocab_size=61, hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=48, max_position_embeddings=16,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
  pair = common.make_pair(Case("training", "BertForMaskedLM", "BertConfig", config), tmp_path)
  special = dict(pad=0, unk=1, cls=2, sep=3, mask=4)
  plain = np.arange(61) >= FIRST
  vocab = Vocab(61, special, plain, plain.astype(np.int32))
  objective = configs.make(configs.typed(configs.use(pair.loaded.described.objective)), vocab, 16)
  assert dict(objective.heads) == dict(heads(pair))
  rng, examples = np.random.default_rng(0), []
  corrupt = jax.jit(lambda batch: corrupted(objective, jax.random.key(0), batch, 0), compiler_options=encoders.QUICK)
  for k in range(20):
    segments = (np.arange(16) < rng.integers(8, 17, (4, 1))).astype(np.int32)
    tokens = np.where(segments > 0, rng.integers(FIRST, FIRST + 6, (4, 16)), 0).astype(np.int32)
    index = np.stack([np.zeros(4), 4 * k + np.arange(4)], 1).astype(np.uint32)
    examples.append(corrupt(Batch({"tokens": tokens, "segments": segments}, index, np.ones(4, bool))))

  optimizer = optax.adamw(1e-2, b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1)

  @functools.partial(jax.jit, compiler_options=encoders.QUICK)
  def step(params, state, example):
    def loss(params):
      terms, _ = objective.loss(pair.apply, params, example, None, True)
      return terms["mlm"].value()

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  ours, params, state = [], pair.loaded.params, optimizer.init(pair.loaded.params)
  for example in examples:
    params, state, value = step(params, state, example)
    ours.append(float(value))

  theirs, model = [], pair.theirs.train()
  theirs_optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
  for example in examples:
    targets = np.full((4, 16), -100)
    for row in range(4):
      chosen = np.asarray(example.weights["mlm"][row]) > 0
      targets[row, np.asarray(example.positions["mlm"][row])[chosen]] = np.asarray(example.targets["mlm"][row])[chosen]
    arrays = dict(input_ids=example.inputs.tokens, attention_mask=example.inputs.segments, labels=targets)
    loss = model(**{name: torch.tensor(np.asarray(array), dtype=torch.long) for name, array in arrays.items()}).loss
    theirs_optimizer.zero_grad()
    loss.backward()
    theirs_optimizer.step()
    theirs.append(loss.item())
  assert ours[-1] < ours[0] - 1, ours
  np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)


# --- without transformers ----------------------------------------------------------------------------------------------------

SMALL = dict(vocab_size=19, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=12, max_position_embeddings=16)
GOLDEN = [
    Case("bert", "BertForPreTraining", "BertConfig", SMALL),
    Case("roberta", "RobertaForMaskedLM", "RobertaConfig", SMALL | dict(type_vocab_size=1, pad_token_id=1)),
    Case("distilbert", "DistilBertForMaskedLM", "DistilBertConfig", dict(vocab_size=19, dim=8, n_heads=2, n_layers=1, hidden_dim=12, max_position_embeddings=16)),
    Case("electra", "ElectraForPreTraining", "ElectraConfig", SMALL | dict(embedding_size=6)),
]


def golden_arrays(model, case):
  """Rows and the outputs of their heads, under the names of ours."""
  given = encoders.rows(model.config, length=8)
  outputs = {"ForPreTraining": ("mlm", "nsp"), "ForMaskedLM": ("mlm",)}[case.model_class[case.model_class.index("For") :]]
  return given._asdict() | encoders.their_outputs(model, given, ("discriminator",) if case.name == "electra" else outputs)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra"])
def test_golden(name, tmp_path):
  folder, expected = common.golden(name)
  loaded = loading.load_model(folder)
  given = Rows(*(expected.pop(part) for part in Rows._fields))
  assert set(loaded.described.heads) <= set(expected)
  compare(encoders.run(loaded.model, loaded.params, given), expected, given.mask)
  loading.export(str(tmp_path), loaded.model, loaded.params, name)
  before, after = files.Folder(folder), files.Folder(str(tmp_path))
  assert after.tensors == before.tensors
  assert all(before.read(tensor).tobytes() == after.read(tensor).tobytes() for tensor in before.tensors)
  assert loading.load_model(str(tmp_path)).described == loaded.described


TINY = {
    "bert": dict(model_type="bert", hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=12, vocab_size=19, max_position_embeddings=9),
    "distilbert": dict(model_type="distilbert", dim=8, n_heads=2, n_layers=1, hidden_dim=12, vocab_size=19, max_position_embeddings=9),
}  # fmt: skip
TINY["roberta"] = TINY["bert"] | dict(model_type="roberta")
TINY["electra"] = TINY["bert"] | dict(model_type="electra", embedding_size=6)


def written(folder, family, architecture, seed=0):
  """A folder of a tiny model with drawn weights."""
  _, model = describe(TINY[family] | dict(architectures=[architecture]), "here")
  module = loading.build(model, "here")
  params = drawn.parameters(module, seed)
  loading.export(str(folder), module, params, family)
  return module, params


def test_old_names_and_tensors_that_are_not_needed(tmp_path):
  """As bert-base-uncased lies on the hub: gamma and beta, the pooler and the next-sentence head, a copy of the tied bias."""
  _, params = written(tmp_path, "bert", "BertForMaskedLM")
  path = tmp_path / files.SINGLE
  tensors = load_file(path)
  old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array for name, array in tensors.items()}
  assert old.keys() != tensors.keys()
  old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"]
  old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
  unneeded = {"bert.pooler.dense.weight": np.zeros((8, 8), np.float32), "bert.pooler.dense.bias": np.zeros(8, np.float32),
              "cls.seq_relationship.weight": np.zeros((2, 8), np.float32), "cls.seq_relationship.bias": np.zeros(2, np.float32),
              "bert.embeddings.position_ids": np.arange(9)[None]}  # fmt: skip
  save_file({**old, **unneeded}, path, metadata={"format": "pt"})
  loaded = loading.load_model(str(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  assert loaded.report.ignored.keys() == unneeded.keys()
  save_file({**old, "cls.predictions.decoder.bias": old["cls.predictions.bias"] + 1}, path)
  with pytest.raises(UserError, match=r"cls\.predictions\.decoder\.bias.*differ"):
    loading.load_model(str(tmp_path))
  save_file({**old, "bert.encoder.layer.1.output.dense.bias": old["cls.predictions.bias"]}, path)
  with pytest.raises(UserError, match=r"bert\.encoder\.layer\.1\.output\.dense\.bias"):
    loading.load_model(str(tmp_path))


@pytest.mark.parametrize(("family", "architecture"), [("bert", "BertModel"), ("roberta", "RobertaModel"), ("electra", "ElectraModel"), ("distilbert", "DistilBertModel")])
def test_model_without_a_head_with_and_without_the_prefix(tmp_path, family, architecture):
  _, params = written(tmp_path, family, architecture)
  path = tmp_path / files.SINGLE
  tensors = load_file(path)
  assert not any(name.startswith(family) for name in tensors)
  save_file({f"{family}.{name}": array for name, array in tensors.items()}, path)
  jax.tree.map(np.testing.assert_array_equal, loading.load_model(str(tmp_path)).params, params)


def test_roberta_s_positions_follow_the_padding_id():
  _, model = describe(TINY["roberta"] | dict(pad_token_id=3), "here")
  assert (model.cfg.position.offset, model.cfg.position.length, model.length) == (4, 5, 5)


@pytest.mark.parametrize(
    ("family", "changes", "parts"),
    [
        ("bert", dict(hidden_act="mish"), ("hidden_act", "mish")),
        ("bert", dict(position_embedding_type="relative_key"), ("position_embedding_type", "relative_key", "absolute")),
        ("bert", dict(is_decoder=True), ("is_decoder", "true")),
        ("bert", dict(add_cross_attention=True), ("add_cross_attention",)),
        ("bert", dict(pruned_heads={"0": [1]}), ("pruned_heads",)),
        ("bert", dict(hidden_size="768"), ("hidden_size",)),
        ("bert", dict(layer_norm_eps=None), ("layer_norm_eps", "null")),
        ("bert", dict(hiden_act="gelu"), ("hiden_act", "hidden_act")),
        ("bert", dict(architectures=["BertLMHeadModel"]), ("BertLMHeadModel", "BertModel")),
        ("roberta", dict(pad_token_id=None), ("pad_token_id",)),
        ("roberta", dict(pad_token_id=8), ("max_position_embeddings", "pad_token_id")),
        ("roberta", dict(is_decoder=True), ("is_decoder",)),
        ("distilbert", dict(activation="mish"), ("activation", "mish")),
        ("distilbert", dict(hidden_size=16), ("dim", "hidden_size")),
        ("distilbert", dict(layer_norm_eps=1e-5), ("layer_norm_eps",)),
        ("electra", dict(architectures=["ElectraForMaskedLM"], tie_word_embeddings=False), ("tie_word_embeddings", "embedding_size")),
        ("electra", dict(position_embedding_type="relative_key_query"), ("position_embedding_type",)),
    ],
)
def test_what_is_refused(family, changes, parts):
  with pytest.raises(UserError) as error:
    describe(TINY[family] | changes, "'x/config.json'")
  for part in ("x/config.json", *parts):
    assert part in str(error.value)


def test_harmless_keys_of_published_configs():
  more = dict(directionality="bidi", pooler_fc_size=768, pooler_type="first_token_transform", gradient_checkpointing=False, classifier_dropout=0.3, use_cache=True)
  assert describe(TINY["bert"] | more, "")[1] == describe(TINY["bert"], "")[1]
  more = dict(tie_weights_=True, qa_dropout=0.1, seq_classif_dropout=0.2, sinusoidal_pos_embds=True, output_past=True)
  assert describe(TINY["distilbert"] | more, "")[1] == describe(TINY["distilbert"], "")[1]


def test_what_trains_each_class():
  objective = lambda family, architecture, **more: describe(TINY[family] | dict(architectures=[architecture]) | more, "")[1].objective
  assert objective("bert", "BertForMaskedLM") == objective("roberta", "RobertaForMaskedLM") == "objectives.masked_lm"
  assert objective("electra", "ElectraForMaskedLM") == objective("distilbert", "DistilBertForMaskedLM") == "objectives.masked_lm"
  assert objective("bert", "BertForMaskedLM", hidden_act="relu") == objective("roberta", "RobertaForMaskedLM", hidden_act="relu") == "objectives.masked_lm"
  assert objective("bert", "BertForPreTraining") == "objectives.next_sentence" and objective("electra", "ElectraForPreTraining") is None
