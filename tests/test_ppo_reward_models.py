"""Models that score in PPO: their own logits on single unpadded texts are the oracle."""

import math

import pytest
import torch
from backbones import add_head, base_of_type, lora, stir, tiny_backbone, tiny_directory
from ppo_trainers import ROWS, config, trainer
from test_ppo_rewards import PLAIN, TEXTS, TOKENIZER, TURNS, answered
from test_reward_model import make_run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf_kit import ModelError, PPOTrainer, RlhfKitError, rewards
from rlhf_kit.ppo.reward_sources import AdapterReward, ModelReward, TokenReward
from rlhf_kit.ppo.setup import make_sources
from rlhf_kit.reward_model import RewardModel

# ---------------------------------------------------------------- models with a vocabulary of their own


def other_tokenizer(template=True):
    """Another vocabulary than the policy's, another template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "[INST]", "[/INST]"]
    bpe.train_from_iterator(
        ["blue sky hello colours scatter light"],
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    turns = "{% for m in messages %}{{ '[INST]' + m.content + '[/INST]' if m.role != 'assistant' else m.content }}"
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="</s>", pad_token="<pad>", model_max_length=512,
        chat_template=turns + "{% endfor %}</s>" if template else None,
    )  # fmt: skip


def other_model(size=300):
    common = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512, "num_labels": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = LlamaForSequenceClassification(
            LlamaConfig(
                vocab_size=size, hidden_size=16, intermediate_size=32, pad_token_id=0, initializer_range=0.2, **common
            )
        )
    return model.eval()


def one_by_one(model, tokenizer, texts):
    """The model's own logit of each text alone."""
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]]) for text in texts]
        return torch.stack([model(input_ids=each).logits[0, 0] for each in ids])


def test_a_model_with_its_own_tokenizer_and_template_scores_texts_as_a_loop_over_them_does(tmp_path):
    model, tokenizer = other_model(), other_tokenizer()
    made, backbone = config(tmp_path), tiny_backbone("policy")
    (source,) = make_sources(model, tokenizer, backbone, made)
    assert isinstance(source, ModelReward)
    rendered = [
        "[INST]You are helpful.[/INST][INST]Name three colours.[/INST]",
        "[INST]Name three colours.[/INST]",
        "[INST]Hi[/INST]",
    ]
    expected = one_by_one(model, tokenizer, [p + t + "</s>" for p, t in zip(rendered, TEXTS, strict=True)])
    assert expected.std() > 0.01
    torch.testing.assert_close(source(answered(TURNS)), expected, atol=1e-5, rtol=1e-4)
    # A prompt that is plain text is the beginning of a text, as it is for the policy.
    expected = one_by_one(model, tokenizer, [row["prompt"] + t for row, t in zip(PLAIN, TEXTS, strict=True)])
    torch.testing.assert_close(source(answered(PLAIN)), expected, atol=1e-5, rtol=1e-4)
    for rows, count in ((TURNS, 1), (PLAIN, 1)):  # what else is in the batch changes nothing
        alone = source(answered(rows[:count], TEXTS[:count]))
        torch.testing.assert_close(alone, source(answered(rows))[:count], atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    (named,) = make_sources(str(tmp_path / "judge"), None, backbone, made)
    assert isinstance(named, ModelReward) and named.name == "judge"
    bf16 = {"atol": 0.05, "rtol": 0.05}  # by name, in the precision of the hardware
    torch.testing.assert_close(named(answered(TURNS)), source(answered(TURNS)), **bf16)


def test_a_smaller_vocabulary_without_its_own_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"knows 300 tokens, the policy's tokenizer has \d+: it is another vocabulary"):
        trainer(tmp_path, reward_funcs=other_model())
    with pytest.raises(ModelError, match="a reward model of 2 labels; a reward model has one"):
        many = AutoModelForSequenceClassification.from_pretrained(tiny_directory(), num_labels=2)
        trainer(tmp_path, reward_funcs=many)
    bert = BertForSequenceClassification(
        BertConfig(vocab_size=600, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                   num_labels=1)
    )  # fmt: skip
    with pytest.raises(ModelError, match="does not read its score at the last token; give its tokenizer in reward_pro"):
        trainer(tmp_path, reward_funcs=bert)
    with pytest.raises(ModelError, match="reward_processing_classes has 1 entries for 2 reward_funcs"):
        make_sources([other_model(), len], [other_tokenizer()], tiny_backbone("policy"), config(tmp_path))
    with pytest.raises(ModelError, match="reward_funcs is empty"):
        trainer(tmp_path, reward_funcs=[])


# ---------------------------------------------------------------- models on the policy's own tokens


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("micro", [1, 2, 8])
def test_a_model_given_the_policys_tokens_scores_as_its_own_logits_do(tmp_path, kind, micro):
    if kind == "llama":
        directory = tiny_directory()
    else:
        directory = tmp_path / "model"
        base_of_type(kind).save_pretrained(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, dtype=torch.float32)
    made = config(tmp_path, per_device_train_batch_size=micro, batch_size=8)
    (source,) = make_sources(model, None, tiny_backbone("policy"), made)
    assert isinstance(source, TokenReward)
    answers = answered(PLAIN)
    with torch.no_grad():
        expected = [
            model(input_ids=torch.tensor([row.ids + ids])).logits[0, 0]
            for row, ids in zip(answers.rows, answers.completion_ids, strict=True)
        ]
    torch.testing.assert_close(source(answers), torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_a_run_of_the_kit_is_an_adapter_on_the_same_base_and_a_model_of_its_own_on_another(tmp_path):
    run = make_run(tmp_path / "run", tiny_directory())
    backbone = tiny_backbone("policy")
    backbone.base_id = "someone/tiny"  # as the run says of its own
    size = sum(p.numel() for n, p in backbone.named_parameters() if "lora_" not in n)
    one, two = make_sources([str(run), str(run / "reward")], None, backbone, config(tmp_path))
    assert isinstance(one, AdapterReward) and (one.adapter, two.adapter) == ("reward", "reward_2")
    assert sum(p.numel() for n, p in backbone.named_parameters() if "lora_" not in n and "heads" not in n) == size
    assert not any(p.requires_grad for n, p in backbone.named_parameters() if "reward" in n)
    stranger = tiny_backbone("policy")
    (other,) = make_sources(str(run), None, stranger, config(tmp_path))
    assert isinstance(other, ModelReward) and "reward" not in stranger.adapters
    answers = answered(TURNS)
    expected = RewardModel.from_run(run).score([row["prompt"] for row in TURNS], TEXTS)
    assert expected.std() > 0.01
    for source in (one, two, other):
        torch.testing.assert_close(source(answers), expected, atol=1e-4, rtol=1e-4)
    cut = answered(TURNS, end=False)  # an answer that was cut off has no EOS for either
    torch.testing.assert_close(one(cut), other(cut), atol=1e-4, rtol=1e-4)
    assert (one(cut) - expected).abs().max() > 1e-3


def test_the_same_adapter_may_be_named_twice(tmp_path):
    made = trainer(tmp_path, reward_funcs=["reward", "reward"], reward_weights=[1.0, 2.0])
    _, figures = made.experience.collect(made.prompts[:8], torch.Generator().manual_seed(1), 0.0)
    assert figures["rewards/reward_1"] == figures["rewards/reward_2"]
    assert figures["score"] == pytest.approx(3 * figures["rewards/reward_1"], rel=1e-5)


def likes_nothing(completions):
    return [0.0] * len(completions)


def test_the_trainer_learns_from_each_kind(tmp_path):
    run = make_run(tmp_path / "run", tiny_directory())
    same = AutoModelForSequenceClassification.from_pretrained(tiny_directory(), num_labels=1, dtype=torch.float32)
    same.config._name_or_path = "someone/same"
    made = PPOTrainer(
        model=str(tiny_directory()),
        reward_funcs=[str(run), other_model(), same, RewardModel.from_run(run), likes_nothing],
        reward_processing_classes=[None, other_tokenizer(), None, None, None],
        args=config(tmp_path / "out", total_episodes=8, reward_normalization="batch"),
        train_dataset=[*ROWS[:4], *TURNS],
        peft_config=lora(),
    )  # fmt: skip
    made.train()
    (entry,) = (entry for entry in made.state.log_history if "kl" in entry)
    assert {n for n in entry if n.startswith("rewards/")} == {
        "rewards/run_1", "rewards/llama", "rewards/same", "rewards/run_2", "rewards/likes_nothing"
    }  # fmt: skip
    assert all(math.isfinite(value) for value in entry.values() if isinstance(value, float))
    assert entry["rewards/run_1"] == pytest.approx(entry["rewards/run_2"], abs=1e-4)


@pytest.mark.parametrize("own_tokens", [True, False])
def test_a_model_whose_score_is_no_number_is_one_line_that_names_the_sample(tmp_path, own_tokens):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_directory(), num_labels=1, dtype=torch.float32)
    model.config._name_or_path = "someone/broken"
    model.score.weight.data.fill_(math.nan)
    tokenizer = None if own_tokens else TOKENIZER
    for rows, said in ((PLAIN, r"^ppo: 'broken' gives nan to sample 1 of 8, '.*' to the prompt '.*'$"),
                       (TURNS, r"nan.* to the prompt '.*'")):  # fmt: skip
        made = PPOTrainer(
            model=tiny_backbone("policy"), reward_funcs=model, args=config(tmp_path), train_dataset=rows,
            reward_processing_classes=tokenizer,
        )  # fmt: skip
        with pytest.raises(RlhfKitError, match=said) as failure:
            made.train()
        assert "\n" not in str(failure.value)


def test_an_adapter_whose_score_is_no_number_too(tmp_path):
    made = trainer(tmp_path)
    made.roles.policy.backbone.heads["reward"].linear.bias.data.fill_(math.inf)
    with pytest.raises(RlhfKitError, match=r"^ppo: 'reward' gives (inf|nan) to sample 1 of 8"):
        made.train()


def test_scores_of_an_adapter_do_not_depend_on_padding():
    backbone = tiny_backbone("policy", "reward")
    stir(backbone, "reward", 5)
    add_head(backbone, "reward", 5)
    answers = answered(PLAIN)
    whole = AdapterReward(backbone, 8)(answers)
    alone = [
        rewards.score(backbone, [row.ids], [ids])[0]
        for row, ids in zip(answers.rows, answers.completion_ids, strict=True)
    ]
    torch.testing.assert_close(whole, torch.stack(alone), atol=1e-5, rtol=1e-4)
