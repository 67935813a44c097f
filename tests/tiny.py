"""A model from nothing, for tests: no download, the same bytes every time, made in well under a second.

It is a real Llama of 35 thousand parameters with a byte-level BPE tokenizer and the ChatML template, so whatever works
with it works with a real model too, and it is small enough to be trained in a test.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = """
system user assistant You are a helpful assistant. Answer in one or two plain sentences.
What is the capital of France? The capital of France is Paris. What is the capital of Spain? It is Madrid.
How do I boil an egg? Put the egg in boiling water and wait for eight minutes, then cool it in cold water.
Why is the sky blue? Air scatters blue light more than red light, so the sky looks blue from below.
Name three colours. Red, green and blue. Count to five. One, two, three, four, five.
Write a short letter to my friend about the weather. Dear friend, it has been raining all week, but now the sun is out.
Who wrote this book? I do not know, sorry. Is a whale a fish? No, a whale is a mammal. Yes. No. Good. Bad. Fine.
Say hello. Hello! Say goodbye. Goodbye! Thank you very much. You are welcome. Tell me a story about a cat and a dog.
The cat sat on the mat, the dog lay by the door, and neither of them wanted to go out into the rain.
zero one two three four five six seven eight nine ten apple banana cherry lemon orange pear plum
"""


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte has a token, so any text comes back as it went in; pad (<|endoftext|>) is not EOS (<|im_end|>)."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
    )


def make_tiny_model(directory: Path, seed: int = 0) -> Path:
    """Saves the model (float32, safetensors) and its tokenizer; returns `directory`.

    The generator of the test that calls it is left as it was.
    """
    tokenizer = make_tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.1,  # with the usual 0.02 a tied model of this size only repeats its last token
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
