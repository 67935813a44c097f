"""Who answers and what they say: names, content hashes, the same seeds, what is kept, the KL."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from whole_run import IDS, base_of, logits_of, rehash, write_adapter, write_run

from rlhf_kit.checkpoint import MANIFEST, read_json, write_json
from rlhf_kit.errors import CheckpointError, RlhfKitError
from rlhf_kit.evaluation import answering
from rlhf_kit.evaluation.answering import answer, crews
from rlhf_kit.evaluation.policies import named
from rlhf_kit.records import Message, Prompt
from rlhf_kit.sampling.drawing import Settings

pytest_plugins = ["whole_run"]  # the fixtures place and run

PROMPTS = [Prompt(prompt=text) for text in ("Say hello.", "Count to five.", "Why is the sky blue?")]
PROMPTS.append(Prompt(prompt=(Message(role="user", content="Tell me a story."),)))
SETTINGS = Settings(k=2, temperature=1.0, max_new_tokens=6, seed=3, batch_size=4)


def with_checkpoints(run: Path) -> Path:
    """PPO's adapter as its last checkpoint, SFT's as one before."""
    for step, stage in ((4, "sft"), (8, "ppo")):
        folder = run / "ppo" / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(run / stage / name, folder / name)
    return run


def said(policies: Any, kept: Path, settings: Settings = SETTINGS, prompts: list[Prompt] = PROMPTS) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for crew in crews(policies):
        found |= answer(crew, prompts, settings, kept)
    return found


# -------------------------------------------------------------------- who


def test_a_run_is_its_base_and_its_stages(run: Path) -> None:
    policies = named([str(run)])
    assert [(p.name, p.label, p.stage) for p in policies] == [
        ("base", "Base", "base"),
        ("sft", "SFT", "sft"),
        ("ppo", "PPO", "ppo"),
    ]
    assert len({p.identity for p in policies}) == 3
    assert [p.reference is not None for p in policies] == [False, False, True]


def test_checkpoints_come_behind_everything_else(run: Path) -> None:
    policies = named([str(with_checkpoints(run))], steps=())
    assert [(p.name, p.step) for p in policies[2:]] == [("ppo", None), ("ppo@4", 4), ("ppo@8", 8)]
    assert policies[-1].identity == policies[2].identity and policies[-1].held_to == run / "sft"


def test_some_checkpoints_can_be_named_and_what_is_not_kept_is_told(run: Path) -> None:
    with_checkpoints(run)
    assert [p.name for p in named([str(run)], steps=(4,))][3:] == ["ppo@4"]
    with pytest.raises(RlhfKitError, match="has kept no checkpoint 5; there are 4, 8"):
        named([str(run)], steps=(4, 5))


def test_labels_name_the_last_policy_of_a_run(run: Path, tmp_path: Path) -> None:
    """The second run shares base and SFT with the first: they come once."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    shutil.copy(other / "ppo" / "value" / "adapter_model.safetensors", other / "ppo" / "adapter_model.safetensors")
    rehash(other / "ppo")
    policies = named([str(run), f"PPO-ptx={with_checkpoints(other)}"], steps=())
    assert [p.name for p in policies] == ["base", "sft", "ppo", "PPO-ptx", "PPO-ptx@4", "PPO-ptx@8"]
    assert policies[3].label == "PPO-ptx" and policies[4].label == "PPO-ptx after 4 updates"


def test_a_second_run_of_other_weights_has_names_with_its_own_in_front(run: Path, place: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "second", base=place / "base")
    shutil.copy(other / "ppo" / "value" / "adapter_model.safetensors", other / "ppo" / "adapter_model.safetensors")
    rehash(other / "ppo")
    other = other.rename(tmp_path / "later")
    policies = named([str(run), str(other)])
    assert [(p.name, p.label) for p in policies][-1] == ("later/ppo", "later: PPO")


def test_stages_adapters_and_models_answer_too(run: Path, place: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "mine", place / "base", seed=9)
    base = place / "base"
    policies = named([str(run / "sft"), str(adapter), f"plain={base}"])
    assert [p.name for p in policies] == ["sft", "mine", "plain"]
    assert policies[1].model == policies[0].model, "the base that a run has loaded under the name the adapter gives"
    assert policies[2].adapter is None
    answers = said(policies, tmp_path / "kept")
    assert list(answers) == ["sft", "mine", "plain"] and all(len(rows) == 4 for rows in answers.values())


def test_what_is_not_there_is_told_all_at_once(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RlhfKitError) as failure:
        named([str(tmp_path / "empty"), "no such/place at all", str(run), "=x", __file__])
    lines = str(failure.value).splitlines()
    assert len(lines) == 4
    assert "test_policies.py: is a file; name the directory" in lines[3]
    assert "neither a run, nor a stage, nor an adapter, nor a model" in lines[0]
    assert "no such directory, and no Hub id" in lines[1] and "LABEL=PLACE" in lines[2]


def test_one_label_for_two_policies_is_refused(run: Path, tmp_path: Path, place: Path) -> None:
    adapters = [write_adapter(tmp_path / name, place / "base", seed) for seed, name in enumerate(("a", "b"))]
    with pytest.raises(RlhfKitError, match="mine: names several policies"):
        named([f"mine={adapter}" for adapter in adapters])


def test_a_damaged_stage_is_not_evaluated(run: Path) -> None:
    weights = run / "ppo" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(RlhfKitError, match="missing or changed since"):
        named([str(run)])


def test_a_template_that_is_not_there_says_where_to_start(run: Path, tmp_path: Path) -> None:
    policy = named([str(run)])[0]
    lost = replace(policy, model=policy.model.model_copy(update={"chat_template": "templates/gone.jinja"}))
    with pytest.raises(RlhfKitError, match=r"templates/gone\.jinja: no such file; .* in which the run was started"):
        _ = lost.identity


def test_the_identity_is_of_the_content(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "elsewhere"))
    assert [p.identity for p in named([str(run)])] == [p.identity for p in named([str(copied)])]
    manifest = read_json(copied / "ppo" / MANIFEST)
    manifest["recipe"]["data"]["max_prompt_length"] = 7
    write_json(copied / "ppo" / MANIFEST, manifest)
    assert named([str(run)])[2].identity != named([str(copied)])[2].identity


def test_the_order_in_which_an_adapter_lists_its_modules_is_no_part_of_it(run: Path) -> None:
    """PEFT holds the names in a set and writes them as they come."""
    before, file = named([str(run)])[1].identity, run / "sft" / "adapter_config.json"
    config = read_json(file)
    assert len(config["target_modules"]) > 1
    write_json(file, {**config, "target_modules": config["target_modules"][::-1]})
    assert named([str(run)])[1].identity == before
    for other in ({"lora_alpha": 1000}, {"target_modules": config["target_modules"][1:]}):
        write_json(file, {**config, **other})
        assert named([str(run)])[1].identity != before


@pytest.mark.parametrize(("config", "said"), [(None, "No such file"), ("{", "Expecting"), ("[]", "no attribute")])
def test_an_adapter_whose_configuration_cannot_be_read_is_told_in_a_line(
    run: Path, config: str | None, said: str
) -> None:
    policy, file = replace(named([str(run)])[1]), run / "sft" / "adapter_config.json"
    file.unlink() if config is None else file.write_text(config)
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: cannot be read: .*{said}"):
        _ = policy.identity


# -------------------------------------------------------------------- what they say


def test_the_same_question_gets_the_same_answer_and_is_asked_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = named([str(run)])
    first = said(policies, tmp_path / "kept")
    assert first == said(policies, tmp_path / "another"), "the same seeds draw the same"
    assert first["base"] != first["sft"]

    def refuse(*_: Any) -> Any:
        raise AssertionError("loaded for nothing")

    monkeypatch.setattr(answering, "load_backbone", refuse)
    assert said(policies, tmp_path / "kept") == first


def test_more_prompts_leave_the_answers_to_the_others_as_they_are(run: Path, tmp_path: Path) -> None:
    policies = named([str(run)])[:1]
    few = said(policies, tmp_path / "few", prompts=PROMPTS[:2])
    assert said(policies, tmp_path / "all")["base"][:2] == few["base"]
    kept = {path.name for path in (tmp_path / "few").glob("*.json")}
    assert kept < {path.name for path in (tmp_path / "all").glob("*.json")}


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"seed": 4}, {"top_p": 0.5}, {"top_k": 3}, {"k": 1}])
def test_other_sampling_is_another_question(run: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    policies = named([str(run)])[:1]
    said(policies, tmp_path)
    before = set(tmp_path.iterdir())
    said(policies, tmp_path, settings=Settings(**{**vars(SETTINGS), **change}))
    assert len(set(tmp_path.iterdir()) - before) >= 1


def test_a_conversation_of_one_turn_is_the_same_prompt_as_its_text(run: Path, tmp_path: Path) -> None:
    policies = named([str(run)])[:1]
    text = [Prompt(prompt="Tell me a story.")]
    turns = [Prompt(prompt=(Message(role="user", content="Tell me a story."),))]
    one, other = (said(policies, tmp_path / name, prompts=p) for name, p in (("text", text), ("turns", turns)))
    assert one == other


def test_the_kl_is_the_difference_of_log_probabilities_of_its_own_answers(
    run: Path, place: Path, tmp_path: Path
) -> None:
    """Against PEFT and transformers, one answer at a time."""
    from peft import PeftModel

    from rlhf_kit.data import Encoder
    from rlhf_kit.models import load_tokenizer

    policies = named([str(run)])
    answers = said(policies, tmp_path / "kept")
    assert all(a.kl is None for name in ("base", "sft") for row in answers[name] for a in row)
    encoder = Encoder(load_tokenizer(policies[0].model), max_prompt_length=512)
    models = {stage: PeftModel.from_pretrained(base_of(place / "base"), run / stage).eval() for stage in ("sft", "ppo")}
    for prompt, row in zip(PROMPTS, answers["ppo"], strict=True):
        for one in row:
            ids = torch.tensor([[*encoder.prompt(prompt.prompt), *one.ids]])
            sums = {}
            for stage, model in models.items():
                with torch.no_grad():
                    logits = model(input_ids=ids).logits[0, -len(one.ids) - 1 : -1].float()
                sums[stage] = logits.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None]).sum()
            assert one.kl == pytest.approx(float(sums["ppo"] - sums["sft"]), abs=1e-4)


def test_answers_are_told_as_they_are_kept(run: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    (crew,) = crews(named([str(run)]))
    answer(crew, PROMPTS, SETTINGS, tmp_path, lambda who, done: told.append((who, done)))
    for name in ("base", "sft", "ppo"):
        assert sum(done for who, done in told if who == name) == len(PROMPTS) * SETTINGS.k
    file = next(path for path in tmp_path.glob("*.json") if ".kl-" not in path.name)
    assert {"text", "ended", "ids"} == set(json.loads(file.read_text())[0])


def test_the_fixture_has_policies_that_differ(place: Path) -> None:
    from peft import PeftModel

    base = base_of(place / "base")
    plain = logits_of(base)
    trained = logits_of(PeftModel.from_pretrained(base, place / "run" / "sft"), IDS)
    assert (plain - trained).abs().max() > 1e-2


def test_one_base_is_in_memory_at_a_time(
    run: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    from rlhf_kit.models import load_backbone

    alive: list[Any] = []

    def load(model: Any) -> Any:
        assert all(reference() is None for reference in alive)
        backbone = load_backbone(model)
        alive.append(weakref.ref(backbone.base))
        return backbone

    monkeypatch.setattr(answering, "load_backbone", load)
    copied = shutil.copytree(place / "base", tmp_path / "another")
    (copied / "note.txt").write_text("other content")
    policies = named([str(run), f"other={copied}"])
    found: dict[str, Any] = {}
    for crew in crews(policies):
        found |= answer(crew, PROMPTS[:1], SETTINGS, tmp_path / "kept")
    assert len(alive) == 2 and set(found) == {"base", "sft", "ppo", "other"}
