"""Pretraining text beside PPO: transformers' own loss on unpadded text is the oracle."""

import pytest
import torch
from backbones import base_of_type, lora, stir, tiny_backbone, tiny_directory
from ppo_trainers import ROWS, config, episodes_of, gradients, moved, separate, tiny_roles, trainer
from transformers import AutoTokenizer

from rlhf_kit import DataError, PPOTrainer
from rlhf_kit.models import Backbone
from rlhf_kit.ppo.ptx import PretrainingText, TextBatch, collate, mean_loss, tokenised, weights_of

TOKENIZER = AutoTokenizer.from_pretrained(tiny_directory())
EOS, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id
LINES = ["The cat sat.", "Why is the sky blue? Air scatters blue light.", "Hello!", "No.", "One, two, three, four."]
DEMONSTRATIONS = [
    {"prompt": "Say hello.", "completion": " Hello!"},
    {"prompt": [{"role": "user", "content": "Count."}], "completion": [{"role": "assistant", "content": "One, two."}]},
]


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def texts(batch_size=3, rows=None, seed=0):
    items = tokenised([{"text": line} for line in LINES] if rows is None else rows, TOKENIZER, 64)
    return PretrainingText(items, batch_size, PAD, seed)


def own_loss(model, item):
    """transformers' loss of one text without padding, as a sum over its tokens."""
    labels = torch.tensor([item.get("labels", item["input_ids"])])
    mean = model(input_ids=torch.tensor([item["input_ids"]]), labels=labels).loss
    return mean * int((labels[:, 1:] != -100).sum())


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("rows", [[{"text": line} for line in LINES], DEMONSTRATIONS])
def test_the_loss_is_transformers_own_on_each_text_without_padding(kind, rows):
    backbone = Backbone(base_of_type(kind), TOKENIZER, "someone/tiny")
    backbone.add_adapter("policy", lora())
    stir(backbone, "policy", 1)
    items = tokenised(rows, TOKENIZER, 64)
    with backbone.role("policy"), torch.no_grad():
        found = PretrainingText.loss(backbone, collate(items, PAD))
        alone = [own_loss(backbone.base, item) for item in items]
        count = sum(sum(label != -100 for label in item.get("labels", item["input_ids"])[1:]) for item in items)
        mean = mean_loss(backbone, items, PAD, batch_size=2)
    torch.testing.assert_close(found, torch.stack(alone).sum(), atol=1e-3, rtol=1e-5)
    assert mean == pytest.approx(float(sum(alone)) / count, rel=1e-5)


def test_what_stands_under_the_padding_changes_nothing():
    backbone = tiny_backbone("policy")
    items = tokenised([{"text": line} for line in LINES], TOKENIZER, 64)
    clean, junk = collate(items, PAD), collate(items, 77)
    assert not torch.equal(clean.input_ids, junk.input_ids)
    with torch.no_grad():
        assert torch.equal(PretrainingText.loss(backbone, clean), PretrainingText.loss(backbone, junk))


def test_a_demonstration_teaches_its_completion_only():
    backbone, (first, _) = tiny_backbone("policy"), tokenised(DEMONSTRATIONS, TOKENIZER, 64)
    before = ids("Say hello.")
    assert first == {
        "input_ids": [*before, *ids(" Hello!"), EOS], "labels": [-100] * len(before) + [*ids(" Hello!"), EOS]
    }  # fmt: skip
    with torch.no_grad():
        table = torch.log_softmax(backbone.base(input_ids=torch.tensor([first["input_ids"]])).logits[0], -1)
        by_hand = -sum(table[len(before) - 1 + n, token] for n, token in enumerate(first["input_ids"][len(before) :]))
        torch.testing.assert_close(PretrainingText.loss(backbone, collate([first], PAD)), by_hand)


# ---------------------------------------------------------------- which texts, and in what parts


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_parts_of_a_mini_batch_add_up_to_its_mean_loss(micro):
    backbone, text = tiny_backbone("policy"), texts(batch_size=5)
    with torch.no_grad():
        parts = list(text.batches(3, micro))
        total = sum(float(text.loss(backbone, batch)) * share for batch, share in parts)
        assert max(len(batch.input_ids) for batch, _ in parts) == micro
        assert total == pytest.approx(mean_loss(backbone, text.items, PAD), rel=1e-5)


def shown(text, number):
    return [
        tuple(row[mask].tolist())
        for batch, _ in text.batches(number, 2)
        for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


def test_all_texts_are_used_once_a_pass_in_an_order_that_the_number_alone_decides():
    text = texts(batch_size=3)
    all_of_it = sorted(tuple(item["input_ids"]) for item in text.items)
    used = [row for number in range(5) for row in shown(text, number)]
    assert sorted(used) == sorted(all_of_it * 3)  # 15 places, 5 texts
    assert [shown(text, n) for n in (4, 0, 2)] == [shown(texts(batch_size=3), n) for n in (4, 0, 2)]
    larger = texts(batch_size=5)
    passes = [shown(larger, n) for n in range(6)]
    assert all(sorted(one) == all_of_it for one in passes)
    one_by_one = texts(batch_size=1)
    orders = {tuple(shown(one_by_one, 5 * n + i)[0] for i in range(5)) for n in range(6)}
    assert len(orders) > 3
    other_seed = [shown(texts(batch_size=1, seed=1), i) for i in range(5)]
    assert other_seed != [shown(one_by_one, i) for i in range(5)]


def test_weights_of_sources_are_shared_by_their_rows_and_followed_in_drawing():
    rows = [{"text": line, "source": "a", "weight": 3.0} for line in LINES[:2]]
    rows += [{"text": line, "source": "b"} for line in LINES[2:4]] + [{"text": ""}]  # the last is too short to use
    assert weights_of(rows) == [1.5, 1.5, 0.5, 0.5, 1.0]
    assert weights_of([{"text": "x", "source": "a"}, {"text": "y", "weight": None}]) is None
    text = PretrainingText(tokenised(rows, TOKENIZER, 64), 40, PAD, 0, weights_of(rows))
    drawn = [row for number in range(25) for row in shown(text, number)]
    assert shown(text, 7) == drawn[7 * 40 : 8 * 40]
    # 1000 draws with shares 3/8, 3/8, 1/8, 1/8; chi-square with 3 degrees of freedom, p = 0.001.
    counts = [drawn.count(tuple(item["input_ids"])) for item in text.items]
    assert sum(counts) == 1000
    expected = (375, 375, 125, 125)
    assert sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True)) < 16.27


def test_the_prompts_that_ppo_learns_from_are_no_others_for_the_text(tmp_path):
    plain, with_text = trainer(tmp_path), with_ptx(tmp_path, 1.0)
    assert [[r.ids for r in made.prompts_of(n)] for made in (plain, with_text) for n in (0, 1)] == [
        [r.ids for r in plain.prompts_of(n)] for _ in (0, 1) for n in (0, 1)
    ]
    assert torch.equal(episodes_of(plain).log_probs, episodes_of(with_text).log_probs)


# ---------------------------------------------------------------- in the update


def with_ptx(directory, coefficient, rows=None, **fields):
    made = config(directory, ptx_coef=coefficient, ptx_batch_size=4, **fields)
    return PPOTrainer(
        model=tiny_roles(made.value == "shared"), reward_funcs="reward", args=made, train_dataset=ROWS,
        ptx_dataset=[{"text": line} for line in LINES] if rows is None else rows,
    )  # fmt: skip


@pytest.mark.parametrize("value", ["adapter", "shared"])
@pytest.mark.parametrize("rows", [None, DEMONSTRATIONS])
def test_the_gradient_is_ppos_plus_that_of_the_mean_loss_times_the_coefficient(tmp_path, value, rows):
    plain, with_text = trainer(tmp_path, value=value), with_ptx(tmp_path, 0.7, rows, value=value)
    episodes = moved(episodes_of(plain))
    without, found = gradients(plain, episodes), gradients(with_text, episodes, 3)
    policy = separate(plain, tmp_path, "policy")
    text = with_text.learner.text
    used = [next(item for item in text.items if item["input_ids"] == list(row)) for row in shown(text, 0)]
    count = sum(sum(label != -100 for label in item.get("labels", item["input_ids"])[1:]) for item in used)
    assert len(used) == 4
    (0.7 * sum(own_loss(policy, item) for item in used) / count).backward()
    expected = {
        n.replace("base_model.model.", "backbones.0.base.").replace(".default.", ".policy."): p.grad
        for n, p in policy.named_parameters()
        if p.requires_grad
    }
    assert found.keys() == without.keys()
    for name, gradient in found.items():
        more = expected.get(name, torch.zeros_like(gradient))  # the value model learns nothing from it
        torch.testing.assert_close(gradient - without[name], more, atol=1e-6, rtol=1e-4, msg=name)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-2


def test_text_is_left_out_while_the_critic_warms_up_and_where_the_coefficient_is_zero(tmp_path):
    made = with_ptx(tmp_path, 1.0, critic_warmup_steps=1)
    made.train()
    first, second = (entry for entry in made.state.log_history if "kl" in entry)
    assert "ptx_loss" not in first and second["ptx_loss"] > 1
    assert with_ptx(tmp_path, 0.0, rows=[{"nothing": 1}]).learner.text is None


def test_the_loss_of_the_text_falls_when_it_is_learned_from(tmp_path):
    def loss_after(coefficient):
        made = with_ptx(tmp_path, coefficient, total_episodes=64, learning_rate=3e-3)
        made.train()
        role = made.roles.policy
        with role.playing():
            return mean_loss(role.backbone, texts().items, PAD)

    assert loss_after(5.0) < loss_after(0.0) - 0.3


# ---------------------------------------------------------------- rows


def test_rows_of_every_shape_become_tokens():
    rendered = "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\n"
    found = tokenised(
        [
            {"text": "Hello!"},
            {"input_ids": (5, 6, 7)},
            {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [1, 1, 1]},
            DEMONSTRATIONS[1],
            {"text": "Hello!", "prompt": None, "completion": None, "source": "a table with more columns"},
            {"text": "one two three four five"},
        ],
        TOKENIZER,
        max_length=20,
    )
    assert found[0] == found[4] == {"input_ids": [*ids("Hello!"), EOS]}
    assert found[1] == {"input_ids": [5, 6, 7]}
    assert found[2] == {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    whole = [*ids(rendered), *ids("One, two."), EOS]
    assert found[3]["input_ids"] == whole[:20]
    assert found[3]["labels"] == ([-100] * len(ids(rendered)) + whole[len(ids(rendered)) :])[:20]
    long = tokenised([{"text": "one two three four five"}], TOKENIZER, max_length=3)
    assert long == [{"input_ids": ids("one two three four five")[:3]}]


def test_rows_that_cannot_be_used_are_named_all_of_them(tmp_path):
    bad = [
        {"story": "x"},
        {"text": "fine"},
        {"text": 3},
        {"prompt": "a"},
        {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}] * 2},
        {"input_ids": [1, 2, 3], "labels": [1, 2]},
        {"prompt": [{"content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        {},
    ]
    with pytest.raises(DataError) as failure:
        with_ptx(tmp_path, 1.0, bad)
    said = str(failure.value).splitlines()
    needs = "needs input_ids, text, or prompt and completion (two texts, or turns and one turn); it has"
    assert said == [
        f"ptx_dataset#1: {needs} story",
        f"ptx_dataset#3: {needs} text",
        f"ptx_dataset#4: {needs} prompt",
        f"ptx_dataset#5: {needs} prompt, completion",
        f"ptx_dataset#6: {needs} prompt, completion",
        "ptx_dataset#7: has 2 labels for 3 input_ids",
        f"ptx_dataset#8: {needs} prompt, completion",
        f"ptx_dataset#9: {needs} nothing",
    ]


@pytest.mark.parametrize(
    "rows", [[], [{"text": ""}], [{"input_ids": [4]}], [{"input_ids": [4, 5], "labels": [4, -100]}]]
)
def test_without_a_text_of_two_tokens_there_is_nothing_to_learn(tmp_path, rows):
    with pytest.raises(DataError, match=r"^ptx_dataset: holds no text of two tokens; ptx_coef needs some$"):
        with_ptx(tmp_path, 1.0, rows)


def test_a_batch_checks_its_shapes():
    with pytest.raises(ValueError, match="learned"):
        TextBatch(torch.zeros(2, 3).long(), torch.ones(2, 3).bool(), torch.ones(2, 2).bool())
    batch = collate([{"input_ids": [5, 6]}, {"input_ids": [7, 8, 9], "labels": [7, -100, 9]}], PAD)
    assert batch.input_ids.tolist() == [[5, 6, PAD], [7, 8, 9]]
    assert batch.attention_mask.tolist() == [[True, True, False], [True, True, True]]
    assert batch.learned.tolist() == [[False, True, False], [False, False, True]]
