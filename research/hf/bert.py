"""The encoders of BERT's kind: BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019), DistilBERT (Sanh et al. 2019), ELECTRA (Clark et al. 2020).

All have learned positions, norms after the residual sums and one after the embeddings. They differ in names and in little else: RoBERTa counts
positions from its padding id + 1 and DistilBERT has no token types; ELECTRA's embeddings may be narrower than its layers.

Their classes put a dropout before the last projection of a classifier, which ours do not, and DistilBERT has none on the output of attention,
where ours has one: nothing that is computed with dropout off.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from research.core.config import use
from research.hf.config import EXPORTED, HfConfig
from research.hf.family import Described, Family
from research.hf.rules import FLAT, SAME, Naming, Rule, each, linear
from research.model import transformer
from research.model.attention import grouped
from research.model.ffn import dense
from research.model.inputs import EMBEDDING, HeadConfig
from research.model.position import learned


class Form(NamedTuple):
  """Where a family keeps what the families have in common."""

  prefix: str  # of the model inside the classes with a head
  base: str  # the class without a head; its tensors have no prefix
  classes: Mapping[str, tuple[str, ...]]  # the classes and their heads
  sizes: tuple[int, int, int, int, int]  # defaults of hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, vocab_size
  keys: Mapping[str, str]  # of config.json, where they are named otherwise than in BERT
  harmless: tuple[str, ...]  # keys that change nothing here
  blocks: str
  block: Mapping[str, str]  # our part of a block -> theirs
  mlm: tuple[str, str, str, str]  # the masked-LM head's dense map, norm, projection; and a second name of its bias, or ''
  vectors: Mapping[str, tuple[str, str]]  # our head -> its dense map and its projection, '' where it has none
  classifier: str  # activation before the classes


BLOCK = {
    "self_attention/query": "attention.self.query",
    "self_attention/key": "attention.self.key",
    "self_attention/value": "attention.self.value",
    "self_attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward/up": "intermediate.dense",
    "feed_forward/down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
BERT = Form(
    prefix="bert.",
    base="BertModel",
    classes={
        "BertModel": ("pooler",),
        "BertForPreTraining": ("mlm", "nsp"),
        "BertForMaskedLM": ("mlm",),
        "BertForNextSentencePrediction": ("nsp",),
        "BertForSequenceClassification": ("class",),
        "BertForTokenClassification": ("tags",),
    },
    sizes=(768, 12, 12, 3072, 30522),
    keys={},
    harmless=("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
    blocks="encoder.layer",
    block=BLOCK,
    mlm=("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder", "cls.predictions.bias"),
    vectors={
        "pooler": ("bert.pooler.dense", ""),
        "nsp": ("bert.pooler.dense", "cls.seq_relationship"),
        "class": ("bert.pooler.dense", "classifier"),
        "tags": ("", "classifier"),
    },
    classifier="tanh",
)
ROBERTA = Form(
    prefix="roberta.",
    base="RobertaModel",
    classes={
        "RobertaModel": ("pooler",),
        "RobertaForMaskedLM": ("mlm",),
        "RobertaForSequenceClassification": ("class",),
        "RobertaForTokenClassification": ("tags",),
    },
    sizes=(768, 12, 12, 3072, 50265),
    keys={},
    harmless=(),
    blocks="encoder.layer",
    block=BLOCK,
    mlm=("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"),
    vectors={"pooler": ("roberta.pooler.dense", ""), "class": ("classifier.dense", "classifier.out_proj"), "tags": ("", "classifier")},
    classifier="tanh",
)
DISTILBERT = Form(
    prefix="distilbert.",
    base="DistilBertModel",
    classes={
        "DistilBertModel": (),
        "DistilBertForMaskedLM": ("mlm",),
        "DistilBertForSequenceClassification": ("class",),
        "DistilBertForTokenClassification": ("tags",),
    },
    sizes=(768, 6, 12, 3072, 30522),
    keys={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    },
    harmless=("qa_dropout", "seq_classif_dropout", "tie_weights_", "sinusoidal_pos_embds"),  # the last: how the table was filled at first
    blocks="transformer.layer",
    block={
        "self_attention/query": "attention.q_lin",
        "self_attention/key": "attention.k_lin",
        "self_attention/value": "attention.v_lin",
        "self_attention/out": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "feed_forward/up": "ffn.lin1",
        "feed_forward/down": "ffn.lin2",
        "ffn_norm": "output_layer_norm",
    },
    mlm=("vocab_transform", "vocab_layer_norm", "vocab_projector", ""),
    vectors={"class": ("pre_classifier", "classifier"), "tags": ("", "classifier")},
    classifier="relu",
)
ELECTRA = Form(
    prefix="electra.",
    base="ElectraModel",
    classes={
        "ElectraModel": (),
        "ElectraForPreTraining": ("discriminator",),
        "ElectraForMaskedLM": ("mlm",),
        "ElectraForSequenceClassification": ("class",),
        "ElectraForTokenClassification": ("tags",),
    },
    sizes=(256, 12, 4, 1024, 30522),
    keys={},
    harmless=("summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout", "summary_last_dropout"),
    blocks="encoder.layer",
    block=BLOCK,
    mlm=("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", ""),
    vectors={
        "discriminator": ("discriminator_predictions.dense", "discriminator_predictions.dense_prediction"),
        "class": ("classifier.dense", "classifier.out_proj"),
        "tags": ("", "classifier"),
    },
    classifier="gelu",
)


# --- config.json -------------------------------------------------------------------------------------------------------------


def config(form: Form, hf: HfConfig) -> Described:
  key = lambda name: form.keys.get(name, name)
  size = lambda name, default: hf(key(name), default, also=name if name in form.keys else "")
  width, layers, heads, hidden, vocab = form.sizes
  width, layers, heads = size("hidden_size", width), size("num_hidden_layers", layers), size("num_attention_heads", heads)
  hf.only("is_encoder_decoder", False)
  hf.skip("output_past", *form.harmless)
  if form is not DISTILBERT:
    hf.only("is_decoder", False)
    hf.only("add_cross_attention", False)
    hf.only("position_embedding_type", "absolute")
    hf.skip("classifier_dropout")
  places, offset = hf("max_position_embeddings", 512), 0
  if form is ROBERTA:
    offset = hf("pad_token_id", 1) + 1
    if not 0 < offset < places:
      raise hf.unsupported("max_position_embeddings", places, f"it must be larger than pad_token_id + 1, {offset}, from which positions are counted")
  embed_width = hf("embedding_size", 128) if form is ELECTRA else width
  tied, activation = hf("tie_word_embeddings", True), hf.activation(key("hidden_act"), "gelu")
  cfg = transformer.Config(
      layers=layers, width=width, attention=grouped.Config(heads=heads, bias=True, dropout=float(hf(key("attention_probs_dropout_prob"), 0.1))),
      ffn=dense.Config(hidden=hf(key("intermediate_size"), hidden), activation=activation, bias=True),
      position=learned.Config(length=places - offset, offset=offset), norm="layer", norm_place="post", norm_bias=True,
      epsilon=1e-12 if form is DISTILBERT else float(hf("layer_norm_eps", 1e-12)), embed_width=None if embed_width == width else embed_width, embed_norm=True,
      token_types=0 if form is DISTILBERT else hf("type_vocab_size", 2), tie_head=tied, dropout=float(hf(key("hidden_dropout_prob"), 0.1)),
      deviation=float(hf("initializer_range", 0.02)), residual_init="same",
  )  # fmt: skip
  names = form.classes[hf.architecture or form.base]
  if "mlm" in names and not tied and embed_width != width:
    raise hf.unsupported("tie_word_embeddings", tied, f"it must be true where embedding_size, {embed_width}, is not hidden_size, {width}")
  found = {name: _head(form, name, activation, hf) for name in names}
  return Described(cfg, found, hf("vocab_size", vocab), places - offset, *_objective(form, found))


def _objective(form: Form, heads: Mapping[str, HeadConfig]) -> tuple[str | None, dict[str, Any]]:
  """What trains these heads, and its keys."""
  if "mlm" in heads:
    masked = {"activation": heads["mlm"].activation}
    return ("objectives.masked_lm", masked) if len(heads) == 1 else ("objectives.next_sentence", {"masked": use("objectives.masked_lm", **masked)})
  if set(heads) == {"class"}:
    return "objectives.classification", {"classes": heads["class"].outputs, "activation": form.classifier}
  if set(heads) == {"tags"} and heads["tags"].outputs > 1:
    return "objectives.tagging", {"classes": heads["tags"].outputs}
  return None, {}


def _head(form: Form, name: str, activation: str, hf: HfConfig) -> HeadConfig:
  if name == "mlm":  # RoBERTa and ELECTRA always take gelu here
    return HeadConfig(transform=True, activation="gelu" if form in (ROBERTA, ELECTRA) else activation, bias=True)
  if name == "discriminator":
    return HeadConfig(kind="vector", transform=True, activation=activation, outputs=1, bias=True)
  if name == "tags":
    return HeadConfig(kind="vector", outputs=_labels(hf), bias=True)
  first = HeadConfig(kind="vector", pool="first", transform=True, activation="tanh")
  if name == "pooler":
    return first
  if name == "nsp":
    return first._replace(outputs=2, bias=True)
  return first._replace(activation=form.classifier, outputs=_labels(hf), bias=True)


def _labels(hf: HfConfig) -> int:
  """Classes of a classifier: transformers writes them down by name, and leaves two out."""
  return len(hf("id2label", {})) or hf("num_labels", 2)


def export_config(form: Form, model: Described) -> dict[str, Any]:
  cfg, name = model.cfg, _class(form, model)
  places, offset = getattr(cfg.position, "length", 0) or model.length, getattr(cfg.position, "offset", 0)
  values = {
      "hidden_size": cfg.width,
      "num_hidden_layers": cfg.layers,
      "num_attention_heads": cfg.attention.heads,
      "intermediate_size": cfg.ffn.hidden or 4 * cfg.width,
      "hidden_act": EXPORTED[cfg.ffn.activation],
      "hidden_dropout_prob": cfg.dropout,
      "attention_probs_dropout_prob": cfg.attention.dropout,
  }
  values = {form.keys.get(key, key): value for key, value in values.items()} | {
      "architectures": [name],
      "vocab_size": model.vocab_size,
      "max_position_embeddings": places + offset,
      "initializer_range": cfg.deviation,
      "tie_word_embeddings": cfg.tie_head,
  }
  if form is not DISTILBERT:
    values |= {"type_vocab_size": cfg.token_types, "layer_norm_eps": cfg.epsilon}
  if form is ROBERTA:
    values["pad_token_id"] = offset - 1
  if form is ELECTRA:
    values["embedding_size"] = cfg.embed_width or cfg.width
  for head in ("class", "tags"):
    if head in form.classes[name]:
      labels = [f"LABEL_{i}" for i in range(model.heads[head].outputs)]
      values |= {"id2label": {str(i): label for i, label in enumerate(labels)}, "label2id": {label: i for i, label in enumerate(labels)}}
  return values


def _class(form: Form, model: Described) -> str:
  """The class with the model's heads, apart from a sentence's vector; the one without a head where there is none."""
  own = set(model.heads) - {EMBEDDING}
  return next((name for name, heads in form.classes.items() if set(heads) == own), form.base)


# --- tensors -----------------------------------------------------------------------------------------------------------------


def rules(form: Form, model: Described) -> list[Rule]:
  cfg, name = model.cfg, _class(form, model)
  whole, block, here = form.prefix + "embeddings.", "stack/block_{i}/", form.prefix + form.blocks + ".{i}."
  found = [
      Rule(whole + "word_embeddings.weight", "embed/embedding", SAME, (form.mlm[2] + ".weight",) if cfg.tie_head and "mlm" in model.heads else ()),
      Rule(whole + "position_embeddings.weight", "position/table/embedding", SAME),
      *_norm(whole + "LayerNorm", "embed_norm"),
  ]
  if cfg.token_types:
    found.append(Rule(whole + "token_type_embeddings.weight", "type_embed/embedding", SAME))
  if cfg.embed_width not in (None, cfg.width):
    found += _linear(form.prefix + "embeddings_project", "embed_out")
  for ours, theirs in form.block.items():
    part = _norm(here + theirs, block + ours) if ours.endswith("norm") else _linear(here + theirs, block + ours, 2 if ours.endswith("out") else 1)
    found += each(cfg.layers, *part)
  for head in form.classes[name]:
    if head == "mlm":
      found += _mlm(form, cfg.tie_head)
    else:
      transform, outputs = form.vectors[head]
      found += _linear(transform, f"head_{head}/transform") if transform else []
      found += _linear(outputs, f"head_{head}/outputs") if outputs else []
  if name == form.base:
    found = [rule._replace(theirs=rule.theirs.removeprefix(form.prefix)) for rule in found]
  return found


def _mlm(form: Form, tied: bool) -> list[Rule]:
  transform, norm, projection, bias = form.mlm
  found = [*_linear(transform, "head_mlm/transform"), *_norm(norm, "head_mlm/transform_norm")]
  if tied and bias:
    return [*found, Rule(bias, "head_mlm/bias", SAME, (projection + ".bias",))]
  found.append(Rule(projection + ".bias", "head_mlm/bias", SAME))
  return found if tied else [*found, Rule(projection + ".weight", "head_mlm/kernel", SAME)]


def _linear(theirs: str, ours: str, inputs: int = 1) -> list[Rule]:
  return [Rule(theirs + ".weight", ours + "/kernel", linear(inputs)), Rule(theirs + ".bias", ours + "/bias", FLAT)]


def _norm(theirs: str, ours: str) -> list[Rule]:
  return [Rule(theirs + ".weight", ours + "/scale", SAME), Rule(theirs + ".bias", ours + "/bias", SAME)]


def naming(form: Form, model: Described) -> Naming:
  name, prefix = _class(form, model), form.prefix.replace(".", r"\.")
  renames = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}
  ignored = {r"embeddings\.(position|token_type)_ids$": "0, 1, 2, … or zeros, which need no tensor"}
  if name == form.base:
    return Naming("", {**renames, f"^{prefix}": ""}, ignored)
  if "pooler" in form.vectors and not any(form.vectors[head][0] == form.vectors["pooler"][0] for head in form.classes[name] if head in form.vectors):
    ignored[rf"^{prefix}pooler\.dense\."] = f"the pooler of the pretraining, which {name} does not read"
  if "nsp" in form.vectors and "nsp" not in model.heads:
    ignored[r"^cls\.seq_relationship\."] = f"the next-sentence head of the pretraining, which {name} does not read"
  if "mlm" in model.heads and not model.cfg.tie_head and form.mlm[3]:
    ignored[f"^{form.mlm[3]}$".replace(".", r"\.")] = "in use only where tie_word_embeddings is true"
  return Naming(form.prefix, renames, ignored)


FAMILIES = tuple(
    Family(
        name=name,
        architectures=tuple(form.classes),
        config=functools.partial(config, form),
        rules=functools.partial(rules, form),
        export_config=lambda model, name=name, form=form: {**export_config(form, model), "model_type": name},
        naming=functools.partial(naming, form),
    )
    for name, form in (("bert", BERT), ("roberta", ROBERTA), ("distilbert", DISTILBERT), ("electra", ELECTRA))
)
