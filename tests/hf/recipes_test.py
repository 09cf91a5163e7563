"""The recipes of published models describe the models that were published: config by config, against the config.json that came with the weights."""

import math

import pytest

from research.core import config as configs
from research.core.overrides import load
from research.hf.family import OURS_ALONE, Described, describe, flat, resolved

BERT = dict(
    model_type="bert", architectures=["BertForPreTraining"], hidden_act="gelu", initializer_range=0.02, layer_norm_eps=1e-12, max_position_embeddings=512,
    type_vocab_size=2, vocab_size=30522,
)  # fmt: skip
LLAMA = dict(model_type="llama", architectures=["LlamaForCausalLM"], hidden_act="silu", rms_norm_eps=1e-5, tie_word_embeddings=False, vocab_size=32000)
CLIP = dict(layer_norm_eps=1e-5, hidden_act="quick_gelu")
PUBLISHED = {
    "bert:base": BERT | dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "bert:large": BERT | dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    "roberta:base": dict(
        model_type="roberta", architectures=["RobertaForMaskedLM"], hidden_act="gelu", hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        intermediate_size=3072, layer_norm_eps=1e-5, max_position_embeddings=514, type_vocab_size=1, vocab_size=50265, pad_token_id=1,
    ),
    "gpt2:124m": dict(
        model_type="gpt2", architectures=["GPT2LMHeadModel"], n_embd=768, n_head=12, n_layer=12, n_positions=1024, n_ctx=1024, activation_function="gelu_new",
        layer_norm_epsilon=1e-5, vocab_size=50257,
    ),
    "gpt2:1558m": dict(
        model_type="gpt2", architectures=["GPT2LMHeadModel"], n_embd=1600, n_head=25, n_layer=48, n_positions=1024, n_ctx=1024, activation_function="gelu_new",
        layer_norm_epsilon=1e-5, vocab_size=50257,
    ),
    "llama:2_7b": LLAMA | dict(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096
    ),
    "llama:2_70b": LLAMA | dict(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, max_position_embeddings=4096
    ),
    "llama:3_8b": LLAMA | dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
        rope_theta=500000.0, vocab_size=128256,
    ),
    "llama:mistral_7b": LLAMA | dict(
        model_type="mistral", architectures=["MistralForCausalLM"], hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=32768, sliding_window=4096,
    ),
    "t5:small": dict(
        model_type="t5", architectures=["T5ForConditionalGeneration"], d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, feed_forward_proj="relu",
        relative_attention_num_buckets=32, layer_norm_epsilon=1e-6, vocab_size=32128, is_encoder_decoder=True, n_positions=512,
    ),
    "t5:v1_1_base": dict(
        model_type="t5", architectures=["T5ForConditionalGeneration"], d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_heads=12,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, layer_norm_epsilon=1e-6, vocab_size=32128, is_encoder_decoder=True,
    ),
    "xlnet:large": dict(
        model_type="xlnet", architectures=["XLNetLMHeadModel"], d_model=1024, d_inner=4096, n_head=16, n_layer=24, d_head=64, ff_activation="gelu",
        layer_norm_eps=1e-12, untie_r=True, attn_type="bi", bi_data=False, clamp_len=-1, same_length=False, vocab_size=32000,
    ),
    "vit:b16": dict(
        model_type="vit", architectures=["ViTForImageClassification"], hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        hidden_act="gelu", layer_norm_eps=1e-12, image_size=224, patch_size=16, num_channels=3, qkv_bias=True, num_labels=1000,
    ),
    "clip:b32": dict(
        model_type="clip", architectures=["CLIPModel"], projection_dim=512, logit_scale_init_value=2.6592,
        text_config=CLIP | dict(hidden_size=512, intermediate_size=2048, num_attention_heads=8, num_hidden_layers=12, max_position_embeddings=77, vocab_size=49408),
        vision_config=CLIP | dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, image_size=224, patch_size=32),
    ),
    "transformer:base": dict(  # Marian's classes, at the sizes of the paper
        model_type="marian", architectures=["MarianMTModel"], d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048, activation_function="relu", scale_embedding=True, vocab_size=37000,
        max_position_embeddings=512, is_encoder_decoder=True,
    ),
}  # fmt: skip
OF_TRAINING = (*OURS_ALONE, "dropout", "deviation")


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_recipe_is_the_published_model(recipe):
  name, _, size = recipe.partition(":")
  cfg = configs.typed(load(f"configs/{name}.py:{size}"))
  _, theirs = describe(PUBLISHED[recipe], "config.json")
  vocab = type("Vocab", (), dict(size=8, special=dict(pad=0, bos=1, eos=2, cls=3, sep=4, mask=5), word_start=[True] * 8, byte_length=[1] * 8, plain=[6, 7]))
  heads = configs.make(cfg.objective, vocab, cfg.data.length).heads
  facts = lambda model, heads: {
    key: value for key, value in flat(Described(resolved(model, theirs.length), heads, theirs.vocab_size, 0)).items() if key.rpartition(".")[2] not in OF_TRAINING
  }
  ours, wanted = facts(cfg.model, heads), facts(theirs.cfg, theirs.heads)
  if name == "transformer":  # Marian's head has a bias, that of the paper none
    assert wanted.pop("heads.lm.bias") and not ours.pop("heads.lm.bias")
  different = {key: (ours.get(key), wanted.get(key)) for key in {**ours, **wanted} if ours.get(key) != wanted.get(key)}
  assert not different, f"ours and the published one differ: {different}"
  if name not in ("vit", "clip"):
    assert cfg.data.tokenizer.vocab_size == theirs.vocab_size
  assert configs.component_name(cfg.objective) == theirs.objective
  if name == "clip":
    assert theirs.heads["scale"].initial == pytest.approx(1 / 0.07, rel=1e-4) and math.isclose(heads["scale"].initial, 1 / 0.07)
