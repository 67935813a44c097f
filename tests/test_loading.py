"""From a recipe's `model` section to tokenizer and base: the pad token above all."""

import pytest
import torch
from backbones import tiny_directory
from tiny import make_tiny_tokenizer
from tokenizers import AddedToken
from transformers import AutoTokenizer

from rlhf_kit.errors import ModelError
from rlhf_kit.models import load_backbone, load_base, load_tokenizer, lora_config
from rlhf_kit.models.loading import base_id, resolve_dtype
from rlhf_kit.recipe import LoraSection, ModelSection


def section(path=None, **fields):
    return ModelSection(name_or_path=str(path or tiny_directory()), dtype="float32", **fields)


def tokenizer_directory(tmp_path, extra=(), **special):
    tokenizer = make_tiny_tokenizer()
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in extra])
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_the_models_own_pad_token_is_kept():
    assert load_tokenizer(section()).pad_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("extra", "pad"),
    [
        ((), "<|endoftext|>"),  # as SmolLM2 has it: pad = EOS = <|im_end|>
        (("<pad>",), "<pad>"),
        (("<pad>", "<|finetune_right_pad_id|>"), "<|finetune_right_pad_id|>"),
    ],
)
@pytest.mark.parametrize("own", ["<|im_end|>", None])
def test_pad_is_never_eos(tmp_path, extra, pad, own):
    tokenizer = load_tokenizer(section(tokenizer_directory(tmp_path, extra, pad_token=own)))
    assert tokenizer.pad_token == pad
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.convert_tokens_to_ids(pad) == tokenizer.pad_token_id


def test_where_nothing_can_pad_it_is_said_and_the_recipe_can_name_one(tmp_path):
    directory = tokenizer_directory(tmp_path, pad_token="<|endoftext|>", eos_token="<|endoftext|>")
    with pytest.raises(ModelError, match=r"pad and EOS are the same token.*model\.pad_token"):
        load_tokenizer(section(directory))
    named = load_tokenizer(section(directory, pad_token="<|im_start|>"))
    assert named.pad_token == "<|im_start|>" and named.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("token", ["<|im_end|>", "<not there>"])
def test_a_pad_token_of_the_recipe_is_checked(token):
    with pytest.raises(ModelError, match="must be in the vocabulary and differ from EOS"):
        load_tokenizer(section(pad_token=token))


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no EOS token"):
        load_tokenizer(section(tokenizer_directory(tmp_path, eos_token=None)))


def test_the_recipes_chat_template_wins(tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}", encoding="utf-8")
    tokenizer = load_tokenizer(section(chat_template=str(file)))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False) == "[Why?]"
    plain = AutoTokenizer.from_pretrained(tiny_directory())
    assert load_tokenizer(section()).chat_template == plain.chat_template


def test_a_chat_template_that_is_not_there_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(ModelError, match="chat_template"):
        load_tokenizer(section(chat_template=str(tmp_path / "missing.jinja")))


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype(name, dtype):
    model = ModelSection(name_or_path=str(tiny_directory()), dtype=name)
    assert load_base(model).dtype == dtype
    assert {p.dtype for p in load_base(model).parameters()} == {dtype}


def test_auto_is_one_of_the_two():
    assert resolve_dtype("auto") in (torch.float32, torch.bfloat16)


def test_a_backbone_has_no_adapters_yet_and_names_its_base():
    backbone = load_backbone(section(base_id="someone/else"))
    assert backbone.adapters == [] and backbone.base_id == "someone/else"
    assert not any(p.requires_grad for p in backbone.parameters())
    assert backbone.hidden_size == 32


def test_the_base_is_never_named_by_a_path():
    assert base_id(section()) == tiny_directory().name
    assert base_id(ModelSection(name_or_path="owner/name")) == "owner/name"


def test_the_recipes_lora_section_reaches_peft():
    lora = LoraSection(r=3, lora_alpha=5, lora_dropout=0.25, target_modules=["q_proj"], layers_to_transform=[0])
    config = lora_config(lora)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 5, 0.25)
    assert set(config.target_modules) == {"q_proj"} and config.layers_to_transform == [0]
    backbone = load_backbone(section())
    backbone.add_adapter("policy", config)
    assert [tuple(p.shape) for p in backbone.adapter_parameters("policy")] == [(3, 32), (32, 3)]


def test_an_attention_that_is_not_installed_falls_back_with_a_word(caplog):
    caplog.clear()
    base = load_base(section(attn_implementation="flash_attention_2"))
    assert base.config._attn_implementation == load_base(section()).config._attn_implementation
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("rlhf_kit")]
    assert "model.attn_implementation: flash_attention_2 cannot be used here" in line and "\n" not in line
    with pytest.raises(ModelError, match="nonsense"):  # no such thing anywhere: a mistake of the recipe
        load_base(section(attn_implementation="nonsense"))


def test_what_cannot_be_read_is_a_model_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(section(tmp_path))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(section(tmp_path))
    for load, said in ((load_base, "cannot be loaded"), (load_tokenizer, "no tokenizer")):  # the tests are offline
        with pytest.raises(ModelError, match=rf"nowhere/run \(no such directory, so the Hub was asked\): {said}"):
            load(section("nowhere/run"))


def test_a_damaged_weight_file_is_a_model_error(tmp_path):
    for file in tiny_directory().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(section(tmp_path))
