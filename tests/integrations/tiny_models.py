"""Models of a few thousand parameters from configurations: nothing is downloaded."""

import torch
import transformers
from transformers import logging

logging.set_verbosity_error()  # of token ids that are larger than these vocabularies

VOCABULARY = 97
_SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=None,
)


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES))


def qwen2():
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_SIZES, tie_word_embeddings=True))


def mistral():
    return transformers.MistralForCausalLM(transformers.MistralConfig(**_SIZES, sliding_window=4))


def gemma2():
    """With a softcap that is felt."""
    config = transformers.Gemma2Config(**_SIZES, head_dim=8, final_logit_softcapping=0.5, attn_implementation="eager")
    return transformers.Gemma2ForCausalLM(config)


def gpt2():
    """Tied, and without dropout, which would make two runs two."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return transformers.GPT2LMHeadModel(config)


def granite():
    """Whose logits are divided by a number."""
    return transformers.GraniteForCausalLM(transformers.GraniteConfig(**_SIZES, logits_scaling=3.0))


CAUSAL_MODELS = [llama, qwen2, mistral, gemma2, gpt2, granite]


def batch(rows=3, length=11):
    """With padding that the loss ignores."""
    tokens = torch.randint(VOCABULARY, (rows, length))
    labels = tokens.clone()
    labels[0, 6:] = -100
    return {"input_ids": tokens, "labels": labels}
