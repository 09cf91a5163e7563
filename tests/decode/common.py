"""Tiny models of transformers and what its generate makes of them: live in reference_test, kept as files in golden."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from research.decode import beam, rules, sample
from research.hf import loading
from tests.hf import common
from tests.hf.common import Case

GOLDEN = pathlib.Path(__file__).parent / "golden"
LIMIT = 9  # tokens drawn at most
SCORES = 1e-4  # largest difference of a text's score
V = 17

LLAMA = dict(vocab_size=V, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=32, tie_word_embeddings=False)  # fmt: skip
BART = dict(vocab_size=V, d_model=12, encoder_layers=1, decoder_layers=2, encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=16,
            decoder_ffn_dim=16, max_position_embeddings=32, scale_embedding=True, pad_token_id=16, bos_token_id=0, eos_token_id=2,
            decoder_start_token_id=2, forced_eos_token_id=None)  # fmt: skip
T5 = dict(vocab_size=V, d_model=16, d_kv=6, d_ff=20, num_layers=2, num_decoder_layers=1, num_heads=3, relative_attention_num_buckets=8,
          relative_attention_max_distance=10, feed_forward_proj="gated-gelu", tie_word_embeddings=False, pad_token_id=0, decoder_start_token_id=0)  # fmt: skip


class Decoder(NamedTuple):
  case: Case
  generation: dict[str, Any]  # its generation_config.json

  @property
  def encodes(self) -> bool:
    return "decoder_start_token_id" in self.generation


DECODERS = {
    decoder.case.name: decoder
    for decoder in [
        Decoder(
            Case("gpt2", "GPT2LMHeadModel", "GPT2Config", dict(vocab_size=V, n_embd=12, n_head=3, n_layer=2, n_positions=32, bos_token_id=0, eos_token_id=0)),
            dict(eos_token_id=[0, 4, 11], pad_token_id=0),
        ),
        Decoder(Case("llama", "LlamaForCausalLM", "LlamaConfig", LLAMA), dict(eos_token_id=[2, 5], pad_token_id=1)),
        Decoder(Case("t5", "T5ForConditionalGeneration", "T5Config", T5), dict(eos_token_id=[1, 6, 9], pad_token_id=0, decoder_start_token_id=0)),
        Decoder(
            Case("marian", "MarianMTModel", "MarianConfig", BART | dict(eos_token_id=0, decoder_start_token_id=16)),
            dict(eos_token_id=0, pad_token_id=16, decoder_start_token_id=16, bad_words_ids=[[16]], forced_eos_token_id=0, renormalize_logits=True),
        ),
        Decoder(
            Case("bart", "BartForConditionalGeneration", "BartConfig", BART),
            dict(eos_token_id=2, pad_token_id=16, decoder_start_token_id=2, forced_bos_token_id=0, forced_eos_token_id=2, no_repeat_ngram_size=2, min_length=5),
        ),
    ]
}  # fmt: skip

SETTINGS = {
    "greedy": dict(num_beams=1),
    "beams": dict(num_beams=4, num_return_sequences=4),
    "two": dict(num_beams=2, length_penalty=0.0, early_stopping=True),
    "long": dict(num_beams=4, length_penalty=2.5, num_return_sequences=2),
    "never": dict(num_beams=4, length_penalty=0.6, early_stopping="never", num_return_sequences=4),
    "short": dict(num_beams=4, length_penalty=-1.0, num_return_sequences=3),
}


IN_GOLDEN = ("greedy", "beams", "long", "short")  # these share what is compiled


class Text(NamedTuple):
  tokens: list[int]  # without the prompt, the stop token included
  score: float | None  # of beam search


def texts(seed: int) -> list[np.ndarray]:
  """Three prompts (or sources) of unequal length."""
  rng = np.random.default_rng(seed)
  return [rng.integers(3, V - 1, length).astype(np.int32) for length in (6, 1, 4)]


def make_theirs(decoder: Decoder, seed: int):
  """The tiny model with random weights everywhere, and a bias of its scores where it has one."""
  torch, transformers = common.reference()
  theirs = common.make_theirs(decoder.case, seed)
  for stack in (theirs.get_encoder(), theirs.get_decoder()) if decoder.encodes else ():
    place = getattr(stack, "embed_positions", None)
    if hasattr(place, "create_weight"):  # sinusoids, which are no parameters
      place.weight = torch.nn.Parameter(place.create_weight(), requires_grad=False)
  if hasattr(theirs, "final_logits_bias"):
    theirs.final_logits_bias.copy_(0.5 * torch.randn(theirs.final_logits_bias.shape))
    theirs.final_logits_bias[:, decoder.generation["eos_token_id"]] += 1.5  # so that texts end
  theirs.generation_config = transformers.GenerationConfig(**decoder.generation)
  return theirs


def their_texts(decoder: Decoder, theirs, row: np.ndarray, settings: dict[str, Any]) -> list[Text]:
  """What transformers' generate returns for one prompt or source, best first."""
  torch, _ = common.reference()
  ids = torch.tensor(row[None], dtype=torch.long)
  found = theirs.generate(
      input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False, return_dict_in_generate=True, output_scores=True, **settings
  )  # fmt: skip
  scores = found.sequences_scores.tolist() if "sequences_scores" in found else [None] * len(found.sequences)
  start = 1 if decoder.encodes else len(row)
  return [Text(cut(decoder, tokens[start:].tolist()), score) for tokens, score in zip(found.sequences, scores)]


def cut(decoder: Decoder, tokens: list[int]) -> list[int]:
  """The tokens up to the first that stops, which stays."""
  stops = np.atleast_1d(decoder.generation["eos_token_id"])
  return tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens)) + 1]


def our_texts(decoder: Decoder, loaded: loading.Loaded, rows: list[np.ndarray], settings: dict[str, Any]) -> list[list[Text]]:
  """The same for all rows in one call."""
  import jax

  found = rules.read(decoder.generation, "generation_config.json", decoder.encodes)
  prompts, sources = (None, rows) if decoder.encodes else (rows, None)
  if settings["num_beams"] == 1:
    drawn = sample.Generator(loaded.model, loaded.params, found)(prompts, sample.Config(temperature=0), LIMIT, jax.random.key(0), sources)
    return [[Text(cut(decoder, row.tolist()), None)] for row in drawn]
  early = {True: "full", False: "likely", "never": "never"}[settings.get("early_stopping", False)]
  cfg = beam.Config(settings["num_beams"], settings.get("length_penalty", 1.0), early, settings.get("num_return_sequences", 1))
  best = beam.BeamSearch(loaded.model, loaded.params, found)(prompts, cfg, LIMIT, sources)
  return [
      [Text(text[:n].tolist(), float(score)) for text, n, score in zip(*row)] for row in zip(best.tokens, best.lengths, best.scores)
  ]  # fmt: skip


def check(ours: list[Text], theirs: list[Text]) -> None:
  assert [text.tokens for text in ours] == [text.tokens for text in theirs]
  if theirs[0].score is not None:
    np.testing.assert_allclose([text.score for text in ours], [text.score for text in theirs], atol=SCORES, rtol=0)


def write_golden(name: str, seed: int = 0) -> int:
  """Writes the folder of a tiny model with what transformers generates from it; returns its size in bytes."""
  decoder, folder = DECODERS[name], GOLDEN / name
  theirs = make_theirs(decoder, seed)
  folder.mkdir(parents=True, exist_ok=True)
  theirs.save_pretrained(folder)
  (folder / "generation_config.json").unlink()
  (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()), indent=1, sort_keys=True) + "\n")
  rows = texts(seed)
  found = {key: [their_texts(decoder, theirs, row, settings) for row in rows] for key, settings in SETTINGS.items() if key in IN_GOLDEN}
  (folder / "expected.json").write_text(json.dumps({"rows": [row.tolist() for row in rows], "texts": found}) + "\n")
  return sum(file.stat().st_size for file in folder.iterdir())


def golden(name: str) -> tuple[list[np.ndarray], dict[str, list[list[Text]]]]:
  kept = json.loads((GOLDEN / name / "expected.json").read_text())
  return [np.array(row, np.int32) for row in kept["rows"]], {
      key: [[Text(*text) for text in row] for row in found] for key, found in kept["texts"].items()
  }  # fmt: skip
