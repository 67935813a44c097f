"""The model card of an exported policy: the Hub can read it, its code runs, and it says what the manifests say."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import lora, tiny_base, tiny_directory
from gguf import GGUFWriter
from huggingface_hub import ModelCard, constants
from peft import PeftModel, get_peft_model
from tiny import make_tiny_tokenizer

from rlhf_kit.checkpoint import Manifest
from rlhf_kit.export.card import Facts, code, figures_of, policy_card, prose, table
from rlhf_kit.export.lineage import LICENSES, is_repo_id, license_of, name_of
from rlhf_kit.recipe import ModelSection, Recipe

HASHES = {name: letter * 64 for name, letter in (("demonstrations", "a"), ("rankings", "b"), ("prompts", "c"))}
FIGURES = {
    "positions": 300,
    "max_difference": 2.5e-6,
    "top1_agreement": 1.0,
    "loader": "PEFT 0.21.2",
    "limit": {"max_difference": 1e-5},
    "base_mean_kl": 0.8125,
}
METRICS: dict[str, dict[str, Any]] = {
    "sft": {"loss_last": 2.91954, "demonstrations": 200, "distributed": "no"},
    "reward": {
        "prompts": 155,
        "pairs": 1945,
        "heldout_accuracy_by_prompt": {"value": 0.7422, "low": 0.6927, "high": 0.7941},
    },
    "ppo": {"train_kl": 2.856, "verdict": ["The score went up by 2 * 3 | <b>."]},
}
EVALUATED = {
    "ppo": {
        "win_rate_vs_sft": 0.7028,
        "win_rate_vs_sft_interval": {"value": 0.7028, "low": 0.6738, "high": 0.7311},
    }
}


def recipe_of(directory: Path, **model: Any) -> Recipe:
    model = {"name_or_path": "someone/tiny", "revision": "abc123", "dtype": "float32", **model}
    data = {
        "demonstrations": str(directory / "data" / "demonstrations.jsonl"),
        "rankings": "someone/rankings",
        "prompts": str(directory / "data" / "prompts.jsonl"),
        "text": "data/plain",
        "prompts_heldout": str(directory / "data" / "heldout.jsonl"),
        "rubric": f"{directory / 'rubric.py'}:grade",
    }
    ppo = {
        "reward_funcs": ["reward", f"{directory / 'own.py'}:brevity"],
        "response_length": 7,
        "stop": ["</s>", "/end"],
    }
    sft = {"learning_rate": 1e-3, "trainer": {"weight_decay": 0.1, "logging_dir": str(directory / "logs")}}
    reward = {"init": "runs/older/reward"}
    return Recipe(model=model, lora={"r": 12}, data=data, sft=sft, reward=reward, ppo=ppo, seed=11)


def write_run(directory: Path, recipe: Recipe | None = None) -> tuple[Path, Manifest]:
    """The manifests of a finished run, without weights; returns the PPO stage."""
    recipe = recipe or recipe_of(directory)
    base = {"id": recipe.model.base_id or recipe.model.name_or_path, "name_or_path": recipe.model.name_or_path}
    base |= {"revision": recipe.model.revision, "sha256": None, "dtype": "float32"}
    base["quantization"] = recipe.model.quantization
    used = {
        "sft": ({"demonstrations": HASHES["demonstrations"]}, []),
        "reward": ({"rankings": "someone/rankings"}, ["sft"]),
        "ppo": ({"prompts": HASHES["prompts"], "text": "9" * 64, "reward_funcs.0": "d" * 64}, ["sft", "reward"]),
        "evaluation": ({"prompts_heldout": "e" * 64, "rubric": "f" * 64}, ["sft", "reward", "ppo"]),
    }
    manifests: dict[str, Manifest] = {}
    for stage, (data, parents) in used.items():
        manifests[stage] = Manifest(
            stage,
            {"data": data, "parents": {name: manifests[name].files for name in parents}},
            METRICS.get(stage, EVALUATED),
            1.0,
            base,
            {name: f"../{name}" for name in parents},
            recipe.model_dump(mode="json"),
            {"adapter_model.safetensors": stage} if stage != "evaluation" else {},
            {"rlhf_kit": "0.1.0", "torch": "1.2.3"},
        )
        (directory / stage).mkdir(parents=True)
        (directory / stage / "manifest.json").write_text(json.dumps(asdict(manifests[stage])))
    return directory / "ppo", manifests["ppo"]


def facts(kind: Any = "adapter", role: str = "policy", **fields: Any) -> Facts:
    dtype = {"adapter": "float32", "merged": "float32", "gguf": "q8_0", "gguf-adapter": "float16"}[kind]
    return Facts(kind, role, dtype, ("model.gguf",), FIGURES, **{"license": "apache-2.0", **fields})


def card_of(directory: Path, written: Facts, recipe: Recipe | None = None) -> str:
    return policy_card(*write_run(directory, recipe), written, make_tiny_tokenizer())


def section(card: str, title: str) -> str:
    match = re.search(rf"^#+ (?:\d\. )?{title}\n(.*?)(?=^#+ |\Z)", card, re.DOTALL | re.MULTILINE)
    assert match is not None, title
    return match[1]


# -------------------------------------------------------------------- what the Hub reads


@pytest.mark.parametrize(
    ("kind", "library", "relation", "tags"),
    [
        ("adapter", "peft", "adapter", {"lora"}),
        ("merged", "transformers", "finetune", set()),
        ("gguf", None, "finetune", {"gguf", "llama-cpp"}),
        ("gguf-adapter", None, "adapter", {"gguf", "llama-cpp", "lora"}),
    ],
)
def test_metadata(kind: Any, library: str | None, relation: str, tags: set[str], tmp_path: Path) -> None:
    card = ModelCard(card_of(tmp_path, facts(kind)))
    assert card.data.to_dict() == {
        "base_model": "someone/tiny",
        "base_model_relation": relation,
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "datasets": ["someone/rankings"],
        "tags": card.data.tags,
        **({"library_name": library} if library else {}),
    }
    assert set(card.data.tags) == {"rlhf", "rlhf_kit", "ppo"} | tags
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    assert card.text.lstrip().startswith("# PPO policy on `someone/tiny`")


def test_what_the_hub_would_refuse_is_left_out(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, name_or_path=str(tmp_path / "tiny"), revision=None)
    run, trained = write_run(tmp_path, recipe)
    trained = replace(trained, base={**trained.base, "id": "tiny"})  # a directory's own name is no repository
    card = ModelCard(policy_card(run, trained, facts(license="my-own"), make_tiny_tokenizer()))
    assert not {"base_model", "base_model_relation", "license"} & set(card.data.to_dict())
    assert "`my-own`" in card.text and '"BASE_MODEL"' in card.text and "`BASE_MODEL` where you have" in card.text


def test_licences_are_those_that_the_hub_knows() -> None:
    assert {"apache-2.0", "mit", "llama3.1", "gemma", "cc-by-nc-4.0"} <= LICENSES
    assert not {"other", "unknown"} & LICENSES and all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", x) for x in LICENSES)


# -------------------------------------------------------------------- what it says


def test_stages_with_data_settings_and_figures(tmp_path: Path) -> None:
    card = card_of(tmp_path, facts())
    assert "### 1. Supervised fine-tuning" in card and "### 2. Reward model" in card
    sft = section(card, "Supervised fine-tuning")
    assert f"| `demonstrations` | `demonstrations.jsonl` | `{'a' * 64}` |" in sft
    settings = re.findall(r"^\| `(\S+)` \| `(.*)` \|$", sft, re.MULTILINE)
    assert ("learning_rate", "0.001") in settings and ("trainer.weight_decay", "0.1") in settings
    assert ("trainer.logging_dir", "logs") in settings and ("loss_last", "2.92") in settings
    assert "num_train_epochs" not in sft, "by default"
    reward = section(card, "Reward model")
    assert "| `rankings` | `someone/rankings` | `–` |" in reward and "| `init` | `reward` |" in reward
    assert "| `heldout_accuracy_by_prompt` | `0.7422 (0.6927 to 0.7941)` |" in reward
    ppo = section(card, "Proximal policy optimisation")
    assert '| `reward_funcs` | `["reward", "own.py:brevity"]` |' in ppo and '| `stop` | `["</s>", "/end"]` |' in ppo
    assert f"| `reward_funcs.0` | `own.py:brevity` | `{'d' * 64}` |" in ppo
    assert r"* The score went up by 2 \* 3 \| \<b\>." in ppo
    assert "PPO (arXiv" in card and "learned from ranked answers and `own.py:brevity`." in card
    assert "155 prompts (1945 pairs)" in section(card, "Limits")
    assert "Seed 11. Trained with rlhf_kit 0.1.0, torch 1.2.3. Exported with python" in card
    assert "| `r` | `12` |" in section(card, "Training")


def test_verification_shows_all_that_was_measured(tmp_path: Path) -> None:
    found = section(card_of(tmp_path, facts()), "Verified")
    for line in (
        *("| `positions` | `300` |", "| `max_difference` | `2.5e-06` |", "| `top1_agreement` | `1` |"),
        *("| `limit.max_difference` | `1e-05` |", "| `base_mean_kl` | `0.8125` |", "| `loader` | `PEFT 0.21.2` |"),
    ):
        assert line in found
    assert "Reloaded from the disk by `PEFT 0.21.2`" in found


def test_no_place_of_this_machine_is_named(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, name_or_path=str(tmp_path / "tiny.gguf"), chat_template=str(tmp_path / "chat.jinja"))
    for number, kind in enumerate(("adapter", "merged", "gguf", "gguf-adapter")):
        card = card_of(tmp_path / str(number), facts(kind, merged_with=((str(tmp_path / "mine"), 0.5),)), recipe)
        assert str(tmp_path) not in card
        assert "`tiny.gguf`" in card and "`chat.jinja`" in card and "a GGUF file, dequantised" in card


def test_a_stage_that_is_gone_or_made_anew(tmp_path: Path) -> None:
    run, trained = write_run(tmp_path)
    (tmp_path / "sft" / "manifest.json").unlink()
    changed = json.loads((tmp_path / "reward" / "manifest.json").read_text()) | {"files": {"adapter": "another"}}
    (tmp_path / "reward" / "manifest.json").write_text(json.dumps(changed))
    card = policy_card(run, trained, facts(), make_tiny_tokenizer())
    for title in ("Supervised fine-tuning", "Reward model"):
        assert "no longer there" in section(card, title) and "|" not in section(card, title)
    assert "train_kl" in card and "1945" not in card and "datasets" not in ModelCard(card).data.to_dict()


def test_held_out_comparison_only_of_these_weights(tmp_path: Path) -> None:
    run, trained = write_run(tmp_path)
    tokenizer = make_tiny_tokenizer()
    card = policy_card(run, trained, facts(), tokenizer)
    found = section(card, "Held-out prompts")
    assert "| `ppo.win_rate_vs_sft` | `0.7028 (0.6738 to 0.7311)` |" in found and found.count("win_rate") == 1
    assert f"| `rubric` | `rubric.py:grade` | `{'f' * 64}` |" in found and "4 answers of each" in found
    assert "No comparison" not in card and "decided by a function" in card
    others = (
        policy_card(run, replace(trained, files={"adapter": "new"}), facts(), tokenizer),
        policy_card(run, trained, facts(role="ema"), tokenizer),
        policy_card(run, trained, facts(merged_with=(("this", 0.5), ("other", 0.5)), method="cat"), tokenizer),
    )
    for other in others:
        assert "win_rate" not in other and "No comparison with the base" in other
    assert "moving average" in others[1] and "of its moving average only" in others[1]
    assert "| `other` | `0.5` |" in others[2] and "`cat`" in others[2] and "merge" in ModelCard(others[2]).data.tags


def test_sft(tmp_path: Path) -> None:
    write_run(tmp_path)
    trained = Manifest(**json.loads((tmp_path / "sft" / "manifest.json").read_text()))
    card = policy_card(tmp_path / "sft", trained, facts(role="sft"), make_tiny_tokenizer())
    assert "# SFT model on `someone/tiny`" in card and "PPO" not in card and "Reward model" not in card
    assert {"sft"} <= set(ModelCard(card).data.tags) and "ppo" not in ModelCard(card).data.tags


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base(bits: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, quantization=bits)
    merged = card_of(tmp_path / "m", facts("merged"), recipe)
    bits = bits.replace("bit", "-bit")
    assert f"trained on {bits} weights. They were dequantised first, and then the adapter was merged" in merged
    assert f"trained on {bits} weights and compared after" in card_of(tmp_path / "a", facts(), recipe)
    assert "dequantised" not in card_of(tmp_path / "n", facts("merged"))


# -------------------------------------------------------------------- how to load it


def trained_adapter(directory: Path) -> PeftModel:
    """An adapter that does something, on the tiny base."""
    model = get_peft_model(tiny_base(), lora())
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
    model.save_pretrained(directory)
    make_tiny_tokenizer().save_pretrained(directory)
    return model.eval()


def greedy(model: torch.nn.Module, prompt: str, length: int) -> list[int]:
    tokenizer = make_tiny_tokenizer()
    ids = tokenizer(prompt)["input_ids"]
    for _ in range(length):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return ids


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_its_code_runs_and_answers_as_the_model_does(kind: Any, chat: bool, tmp_path: Path) -> None:
    model = trained_adapter(tmp_path / "out")
    prompt = "Why is the sky blue?"
    if chat:
        expected = greedy(model, f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", 7)
    else:
        expected = greedy(model, prompt, 7)
    assert expected != greedy(tiny_base(), make_tiny_tokenizer().decode(expected[:-7]), 7)
    tokenizer = make_tiny_tokenizer()
    if not chat:
        tokenizer.chat_template = None
        (tmp_path / "out" / "chat_template.jinja").unlink()
    if kind == "merged":
        (tmp_path / "out" / "adapter_config.json").unlink()  # else transformers would load the adapter beside it too
        model.merge_and_unload().save_pretrained(tmp_path / "out")
    card = policy_card(*write_run(tmp_path / "run"), facts(kind), tokenizer)
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert ('"someone/tiny", revision="abc123", dtype=torch.float32' in snippet) == (kind == "adapter")
    snippet = snippet.replace("THIS_DIRECTORY", str(tmp_path / "out")).replace("someone/tiny", str(tiny_directory()))
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["answer"][0].tolist() == expected


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (9, 16), (12, 16), (64, 64), (300, 320), (512, 512)])
def test_vllm_is_given_a_rank_that_it_takes(rank: int, allowed: int, tmp_path: Path) -> None:
    card = card_of(tmp_path, facts(rank=rank))
    assert f"vllm serve someone/tiny --revision abc123 --enable-lora --max-lora-rank {allowed} " in card
    assert "--lora-modules policy=THIS_DIRECTORY --chat-template THIS_DIRECTORY/chat_template.jinja\n" in card
    assert "LORA_ADAPTERS=policy=THIS_DIRECTORY text-generation-launcher --model-id someone/tiny --revision" in card


def test_a_rank_that_vllm_does_not_take(tmp_path: Path) -> None:
    assert "up to rank 512, and this one has 600" in card_of(tmp_path, facts(rank=600))


def test_commands_for_gguf(tmp_path: Path) -> None:
    whole = card_of(tmp_path / "g", facts("gguf"))
    assert "llama-cli -m model.gguf --jinja" in whole and 'Llama("model.gguf", n_ctx=2048)' in whole
    assert "vllm" not in whole and "BASE.gguf" not in whole and "AMX" in whole
    adapter = card_of(tmp_path / "a", facts("gguf-adapter"))
    assert "llama-cli -m BASE.gguf --lora model.gguf --jinja" in adapter and "AMX" not in adapter
    assert 'Llama("BASE.gguf", lora_path="model.gguf", n_ctx=2048)' in adapter
    for card in (whole, adapter):
        assert "ollama create NAME -f Modelfile" in card
        (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        compile(snippet, "card", "exec")
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = None
    plain = policy_card(*write_run(tmp_path / "p"), facts("gguf"), tokenizer)
    assert 'llama-cli -m model.gguf -no-cnv -p "Why is the sky blue?"' in plain


# -------------------------------------------------------------------- names that would break it


def test_hostile_names_stay_in_their_places(tmp_path: Path) -> None:
    evil = "x`|``y\n---\nlicense: mit\n# <script>|\u202e"
    recipe = recipe_of(tmp_path, name_or_path="./" + evil, base_id=evil, revision=None)
    run, trained = write_run(tmp_path, recipe)
    trained.metrics[evil] = 1.0
    trained.recipe["data"]["prompts"] = evil + ".jsonl"
    text = policy_card(
        run, trained, facts(license=None, merged_with=((evil, 1.0),), method=evil), make_tiny_tokenizer()
    )
    card = ModelCard(text)
    assert "license" not in card.data.to_dict() and "base_model" not in card.data.to_dict()
    assert text.count("\n---\n") == 1 and "\u202e" not in text and "\n# <script>" not in text
    rows = [line for line in text.splitlines() if "script" in line and line.startswith("|")]
    assert len(rows) == 3
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) in (2, 3) and all(cell.count("```") in (0, 2) for cell in cells)


def test_code_and_tables_by_hand() -> None:
    assert code("a") == "`a`" and code("a`b") == "``a`b``" and code("`a") == "`` `a ``" and code("") == "`–`"
    assert code("a\nb") == "`a\N{REPLACEMENT CHARACTER}b`"
    assert table([("a|b", 1)], "x", "y") == "| x | y |\n| --- | --- |\n| `a\\|b` | `1` |"
    assert prose("a_b *c* [d](e) <f>") == r"a\_b \*c\* \[d\](e) \<f\>"
    tree = {"a": 1, "b": {"c": 0.123456, "d": True}, "e": "text", "f": [1], "g": 1.0}
    tree |= {"g_interval": {"value": 1.0, "low": 0.5, "high": 2.0}}
    assert list(figures_of(tree)) == [("a", "1"), ("b.c", "0.1235"), ("g", "1 (0.5 to 2)")]
    assert dict(figures_of(tree, texts=True))["b.d"] == "true" and dict(figures_of(tree, texts=True))["f"] == "[1]"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/home/me/data/a.jsonl", "a.jsonl"),
        ("recipes/quick/rubric.py:grade", "rubric.py:grade"),
        ("data/a.jsonl", "a.jsonl"),
        ("someone/rankings", "someone/rankings"),
        ("someone/rankings:test", "someone/rankings:test"),
        ("pypi:llm-x==0.1#x.gguf", "pypi:llm-x==0.1#x.gguf"),
        ("module:function", "module:function"),
        ("reward", "reward"),
    ],
)
def test_names(source: str, name: str) -> None:
    assert name_of(source) == name


def test_a_directory_that_is_there_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_repo_id("someone/tiny")
    (tmp_path / "someone" / "tiny").mkdir(parents=True)
    assert not is_repo_id("someone/tiny") and not is_repo_id("/someone/tiny") and not is_repo_id("a b")


# -------------------------------------------------------------------- the licence of the base


def write_gguf(path: Path, license: str | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(path), "llama")
    if license is not None:
        writer.add_license(license)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_licence_of_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(license: str | None) -> str | None:
        return license_of(ModelSection(name_or_path=str(write_gguf(tmp_path / "m.gguf", license))))

    assert found("apache-2.0") == "apache-2.0"
    assert found(None) is None and found("ask my lawyer") is None
    monkeypatch.setenv("RLHF_KIT_CACHE", str(tmp_path / "cache"))
    packed = ModelSection(name_or_path="pypi:llm-x==0.1#sub/x.gguf", sha256="0" * 64)
    assert license_of(packed) is None, "nothing is downloaded for it"
    write_gguf(tmp_path / "cache" / "packages" / "llm-x-0.1" / "x.gguf", "mit")
    assert license_of(packed) == "mit"


def test_licence_of_a_directory(tmp_path: Path) -> None:
    model = ModelSection(name_or_path=str(tmp_path))
    assert license_of(model) is None
    for text, expected in (
        ("---\nlicense: llama3.1\ntags: [a]\n---\n# x", "llama3.1"),
        ("---\nlicense: other\nlicense_name: mine\n---\n", None),
        ("---\nlicense: [mit\n---\n", None),
        ("---\n- mit\n---\n", None),
        ("no metadata", None),
    ):
        (tmp_path / "README.md").write_text(text)
        assert license_of(model) == expected


def test_licence_of_a_cached_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "1" * 40
    repository = tmp_path / "models--someone--tiny"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit / "README.md").write_text("---\nlicense: gemma\n---\n")
    assert license_of(ModelSection(name_or_path="someone/tiny")) == "gemma"
    assert license_of(ModelSection(name_or_path="someone/tiny", revision="other")) is None
    assert license_of(ModelSection(name_or_path="someone/else")) is None
    assert license_of(ModelSection(name_or_path="someone/else", base_id="someone/tiny")) == "gemma"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
