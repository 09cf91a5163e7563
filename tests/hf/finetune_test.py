"""Published classifiers, taggers and encoder–decoders as runs: import, score, export; and their losses against transformers'."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import convert, evaluate
from research.core import config as configs
from research.core.types import Vocab
from research.hf import files, loading
from research.hf.bert import BERT, _head
from research.hf.config import HfConfig
from research.model import transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.inputs import HeadConfig
from research.model.position import bias, learned
from research.objectives.base import Example
from research.training.restore import restore
from tests import drawn
from tests.hf import encoders

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh")]
pytestmark = pytest.mark.usefixtures("one_device")


def write_bert(folder, head, labels):
  """A published BERT with one head, whose classes have names."""
  cfg = transformer.Config(
      layers=1, width=12, attention=grouped.Config(heads=3, bias=True), ffn=dense.Config(hidden=16, activation="gelu", bias=True),
      position=learned.Config(length=16), norm="layer", norm_place="post", norm_bias=True, epsilon=1e-12, embed_norm=True, token_types=2, residual_init="same",
  )  # fmt: skip
  names = {str(i): label for i, label in enumerate(labels)}
  heads = {head: _head(BERT, head, "gelu", HfConfig({"id2label": names}, ""))}
  model = transformer.make(cfg, len(WORDS), heads, 16)
  loading.export(str(folder), model, drawn.parameters(model), "bert", more={"id2label": names, "label2id": {label: int(i) for i, label in names.items()}})
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


@pytest.mark.parametrize("head, labels", [("class", ("good", "bad", "so")), ("class", ("LABEL_0", "LABEL_1")), ("class", ("LABEL_0",)), ("tags", ("O", "I-x", "B-x"))])
def test_a_published_classifier_becomes_a_run(tmp_path, head, labels):
  folder, workdir, said = tmp_path / "published", tmp_path / "run", []
  folder.mkdir()
  write_bert(folder, head, labels)
  convert.import_folder(str(folder), str(workdir), say=said.append)
  run = restore(str(workdir))
  named = () if "LABEL_0" in labels else labels
  assert run.labels == run.cfg.data.labels == named and "--config.data.train=FILE" in said[-1]
  data, kind = tmp_path / "data", "tagging" if head == "tags" else "classification"
  if head == "tags":
    data = data.with_suffix(".conll")
    data.write_text("".join(f"{word}\t{tag}\n" for word, tag in zip(["ab", "cd", "e"], labels)))
  elif len(labels) == 1:
    data = data.with_suffix(".tsv")
    data.write_text("a b\tc\t0.5\nd\te\t1.5\nf f\tg\t1\n")
  else:
    data = data.with_suffix(".tsv")
    data.write_text("".join(f"a {chr(97 + i)}\t{label}\n" for i, label in enumerate(labels)))
  if not named and len(labels) > 1:
    with pytest.raises(Exception, match="none of the classes"):
      evaluate.evaluate(str(workdir), None, str(data), None, 4)
  else:
    scores = evaluate.evaluate(str(workdir), None, str(data), None, 4)[kind]["scores"]
    assert scores.keys() >= ({"pearson", "spearman"} if len(labels) == 1 else {"accuracy"})
  convert.export_folder(str(workdir), str(tmp_path / "out"), say=said.append)
  before, after = files.Folder(str(folder)), files.Folder(str(tmp_path / "out"))
  assert before.tensors == after.tensors and all(before.read(name).tobytes() == after.read(name).tobytes() for name in before.tensors)
  assert after.config["id2label"] == {str(i): label for i, label in enumerate(labels)} and after.config["architectures"] == before.config["architectures"]


def test_a_published_encoder_decoder_becomes_a_run(tmp_path):
  from tokenizers import Tokenizer, models, pre_tokenizers, processors

  folder, workdir, said = tmp_path / "published", tmp_path / "run", []
  folder.mkdir()
  words = ["<pad>", "</s>", "<unk>", *"abcdefgh"]
  cfg = transformer.Config(
      layers=1, encoder_layers=1, width=12, attention=grouped.Config(heads=3, head_dim=4, scale=1.0), ffn=dense.Config(hidden=16, activation="relu"),
      position=bias.Config(kind="buckets"), tie_head=False, deviation=0.3,
  )  # fmt: skip
  model = transformer.make(cfg, len(words), {"lm": HeadConfig()}, 16)
  loading.export(str(folder), model, drawn.parameters(model), "t5")
  vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
  vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
  vocabulary.add_special_tokens(words[:3])
  vocabulary.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
  vocabulary.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}))
  (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 0, "eos_token_id": 1}))
  convert.import_folder(str(folder), str(workdir), say=said.append)
  run = restore(str(workdir))
  assert run.objective.causal and run.objective.start == 0 and run.cfg.objective.start == "pad"
  (tmp_path / "pairs.tsv").write_text("a b c\td e\ng\th\n")
  found = evaluate.evaluate(str(workdir), None, str(tmp_path / "pairs.tsv"), None, 4)["likelihood"]
  rows = configs.module(run.cfg.data).file_rows(run.tokenizer, run.cfg.data, str(tmp_path / "pairs.tsv"), run.objective.element_spec, ())
  assert rows[0]["tokens"][:4].tolist() == [6, 7, 1, 0] and rows[0]["source"][:5].tolist() == [3, 4, 5, 1, 0]
  assert found["scores"]["loss"]["value"] > 0 and found["settings"]["rows"] == 2


def test_the_start_token_of_config_json_counts():
  special = {"eos": 2, "bos": 0, "<de>": 9}
  tokenizer = type("Tokens", (), {"special": special})
  assert convert._start({}, tokenizer, "pad") == "pad" and convert._start({"decoder_start_token_id": 2}, tokenizer, "pad") == "eos"
  assert convert._start({"decoder_start_token_id": 9}, tokenizer, "eos") == "<de>"
  with pytest.raises(Exception, match="decoder_start_token_id in config.json is 5"):
    convert._start({"decoder_start_token_id": 5}, tokenizer, "eos")


# --- losses ------------------------------------------------------------------------------------------------------------------


def _objective(loaded, length):
  described = loaded.described
  size = described.vocab_size
  vocab = Vocab(size, {"pad": 0, "eos": 1}, np.ones(size, bool), np.ones(size, np.int32))
  return configs.make(configs.typed(configs.use(described.objective, **described.objective_keys)), vocab, length)


def _loss(loaded, objective, rows):
  example: Example = jax.vmap(lambda row: objective.corrupt(None, row, 0))(rows)
  terms, _ = jax.jit(lambda params: objective.loss(transformer.bind(loaded.model), params, example, None, False), compiler_options=encoders.QUICK)(loaded.params)
  return float(next(iter(terms.values())).value())


@pytest.mark.parametrize("head, labels", [("SequenceClassification", 3), ("SequenceClassification", 1), ("TokenClassification", 4)])
def test_the_loss_is_that_of_transformers(tmp_path, head, labels):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  torch.manual_seed(0)
  config = transformers.BertConfig(vocab_size=30, hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=16, max_position_embeddings=16,
                                   num_labels=labels, initializer_range=0.5)  # fmt: skip
  theirs = getattr(transformers, f"BertFor{head}")(config).eval()
  theirs.save_pretrained(tmp_path)
  loaded = loading.load_model(str(tmp_path))
  objective = _objective(loaded, 11)
  given = encoders.rows(config)
  rng = np.random.default_rng(0)
  if head == "TokenClassification":
    labelled = np.where((rng.random(given.tokens.shape) < 0.5) & (given.mask > 0), rng.integers(0, labels, given.tokens.shape), -1).astype(np.int32)
    given = given._replace(types=np.zeros_like(given.types))  # an objective of single texts
    mine, wanted = dict(tags=labelled), torch.tensor(np.where(labelled < 0, -100, labelled), dtype=torch.long)
  else:
    labelled = rng.normal(size=3).astype(np.float32) if labels == 1 else rng.integers(0, labels, 3).astype(np.int32)
    mine, wanted = dict(label=labelled, types=given.types), torch.tensor(labelled, dtype=torch.float32 if labels == 1 else torch.long)
  with torch.no_grad():
    expected = float(theirs(**encoders.their_arguments(theirs, given), labels=wanted).loss)
  rows = jax.tree.map(jnp.asarray, dict(tokens=given.tokens, segments=given.mask, **mine))
  assert _loss(loaded, objective, rows) == pytest.approx(expected, abs=1e-4)


def test_the_loss_of_sequences_is_that_of_transformers(tmp_path):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  torch.manual_seed(0)
  config = transformers.T5Config(vocab_size=30, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=3, decoder_start_token_id=0, pad_token_id=0)
  theirs = transformers.T5ForConditionalGeneration(config).eval()
  theirs.save_pretrained(tmp_path)
  loaded = loading.load_model(str(tmp_path))
  objective = _objective(loaded, 7)
  rng = np.random.default_rng(1)
  tokens, source = rng.integers(2, 30, (3, 7)).astype(np.int32), rng.integers(2, 30, (3, 7)).astype(np.int32)
  segments, source_segments = ((np.arange(7) < np.array(ends)[:, None]).astype(np.int32) for ends in ([7, 4, 2], [3, 7, 5]))
  long = lambda array: torch.tensor(array, dtype=torch.long)
  with torch.no_grad():
    expected = float(theirs(input_ids=long(source), attention_mask=long(source_segments), labels=long(np.where(segments > 0, tokens, -100))).loss)
  rows = jax.tree.map(jnp.asarray, dict(tokens=tokens, segments=segments, source=source, source_segments=source_segments))
  assert _loss(loaded, objective, rows) == pytest.approx(expected, abs=1e-4)
