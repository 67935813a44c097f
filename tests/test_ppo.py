"""PPO's trainer on the tiny model: a plain computation with separate models is the oracle for its gradients."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from backbones import tiny_base, tiny_directory
from peft import LoraConfig
from ppo_trainers import (
    PROMPTS,
    ROWS,
    config,
    episodes_of,
    gradients,
    moved,
    rows_of,
    separate,
    tiny_roles,
    trainer,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_kit import DataError, ModelError, PPOTrainer, RlhfKitError
from rlhf_kit.models import ScalarHead
from rlhf_kit.ppo.prompts import prompts_of_update, read_prompts
from rlhf_kit.rollout import Ending


def peft(**fields):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **fields})


def likes_short(prompts, completions, **columns):
    return [-float(len(text)) for text in completions]


def classifier(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(tiny_directory(), num_labels=1, dtype=torch.float32)


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_gradients_are_those_of_separate_models_and_plain_loops(tmp_path, value):
    made = trainer(tmp_path, value=value, cliprange=0.2, cliprange_value=0.15, vf_coef=0.3)
    episodes = moved(episodes_of(made))
    found = gradients(made, episodes)
    policy = separate(made, tmp_path, "policy")
    critic = policy if value == "shared" else separate(made, tmp_path, "value")
    head = ScalarHead(32)
    head.load_state_dict(made.roles.head.state_dict())

    losses, value_losses, clipped = [], [], 0
    for row, ids, start, n in rows_of(episodes):  # one sequence at a time, no padding
        table = torch.log_softmax(policy(input_ids=ids).logits[0].float() / 0.8, -1)
        hidden = critic.base_model.model.model(input_ids=ids).last_hidden_state[0]
        for t in range(n):
            at = start + t
            ratio = torch.exp(table[at - 1, ids[0, at]] - episodes.log_probs[row, t])
            advantage = episodes.advantages[row, t]
            losses.append(-torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
            clipped += int(losses[-1] != -ratio * advantage)
            guess, old, target = head(hidden[at - 1]), episodes.values[row, t], episodes.returns[row, t]
            near = torch.max(torch.min(guess, old + 0.15), old - 0.15)
            value_losses.append(0.5 * torch.max((guess - target) ** 2, (near - target) ** 2))
    assert clipped > 0
    (torch.stack(losses).mean() + 0.3 * torch.stack(value_losses).mean()).backward()

    expected = {f"backbones.0.heads.value.{n}": p.grad for n, p in head.named_parameters()}
    for model, name in {policy: "policy", critic: "policy" if value == "shared" else "value"}.items():
        for n, p in model.named_parameters():
            if p.requires_grad:
                full = n.replace("base_model.model.", "backbones.0.base.").replace(".default.", f".{name}.")
                expected[full] = p.grad
    assert expected.keys() == found.keys()
    for n, gradient in expected.items():
        torch.testing.assert_close(found[n], gradient, atol=2e-6, rtol=2e-4, msg=n)
    assert max(g.abs().max() for n, g in found.items() if ".policy." in n) > 1e-3


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_micro_batches_change_no_gradient(tmp_path, value):
    made = trainer(tmp_path, value=value)
    episodes = moved(episodes_of(made))
    whole = gradients(made, episodes, 8)
    for size in (2, 3):
        for name, gradient in gradients(made, episodes, size).items():
            torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_gradient_checkpointing_changes_nothing(tmp_path, value):
    plain, saving = trainer(tmp_path, value=value), trainer(tmp_path, value=value, gradient_checkpointing=True)
    episodes = moved(episodes_of(plain))
    expected, found = gradients(plain, episodes), gradients(saving, episodes)
    assert saving.roles.policy.backbone.is_checkpointing and not plain.roles.policy.backbone.is_checkpointing
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-7, rtol=1e-6, msg=name)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    made = trainer(tmp_path)
    episodes = episodes_of(made)
    episodes.advantages[0, 0] = float("nan")
    with pytest.raises(RlhfKitError, match=r"a loss is nan; lower ppo\.learning_rate"):
        gradients(made, episodes)


def test_the_critic_alone_learns_while_it_warms_up(tmp_path):
    for value in ("adapter", "shared"):
        made = trainer(tmp_path, value=value, critic_warmup_steps=1, logging_steps=1)
        before = {n: p.detach().clone() for n, p in made.roles.named_parameters()}
        made.train()
        assert made.state.global_step == 2
        again = trainer(tmp_path, value=value, critic_warmup_steps=5)
        again.train()
        changed = {n for n, p in again.roles.named_parameters() if not torch.equal(p, before[n])}
        assert changed and all("value" in name for name in changed)
        assert any(".policy." in n and not torch.equal(p, before[n]) for n, p in made.roles.named_parameters())


def test_entropy_bonus_moves_the_gradient_by_the_gradient_of_the_entropy(tmp_path):
    plain, bonus = trainer(tmp_path), trainer(tmp_path, entropy_coef=0.7)
    episodes = moved(episodes_of(plain))
    without, with_it = gradients(plain, episodes), gradients(bonus, episodes)
    policy = separate(plain, tmp_path, "policy")
    entropies = []
    for _, ids, start, n in rows_of(episodes):
        logits = policy(input_ids=ids).logits[0, start - 1 : start - 1 + n].float() / 0.8
        entropies.append(torch.distributions.Categorical(logits=logits).entropy())
    (-0.7 * torch.cat(entropies).mean()).backward()
    for n, p in policy.named_parameters():
        if p.requires_grad:
            name = n.replace("base_model.model.", "backbones.0.base.").replace(".default.", ".policy.")
            torch.testing.assert_close(with_it[name] - without[name], p.grad, atol=2e-6, rtol=1e-3, msg=name)


def test_a2c_is_the_policy_gradient_on_its_own_samples(tmp_path):
    made = trainer(tmp_path, algorithm="a2c")
    episodes = episodes_of(made)
    found = gradients(made, episodes)
    policy = separate(made, tmp_path, "policy")
    terms = []
    for row, ids, start, n in rows_of(episodes):
        table = torch.log_softmax(policy(input_ids=ids).logits[0].float() / 0.8, -1)
        for t in range(n):
            terms.append(-episodes.advantages[row, t] * table[start + t - 1, ids[0, start + t]])
    torch.stack(terms).mean().backward()
    for n, p in policy.named_parameters():
        if p.requires_grad:
            name = n.replace("base_model.model.", "backbones.0.base.").replace(".default.", ".policy.")
            torch.testing.assert_close(found[name], p.grad, atol=2e-6, rtol=1e-3, msg=name)


def test_a2c_refuses_further_passes(tmp_path):
    with pytest.raises(DataError, match="a2c makes one step of each update"):
        config(tmp_path, algorithm="a2c", num_ppo_epochs=2)


def test_inner_epochs_stop_when_the_policy_has_moved_far_enough(tmp_path):
    def passes(target):
        made = trainer(tmp_path, num_ppo_epochs=5, target_kl=target, total_episodes=8, logging_steps=1)
        made.train()
        return next(entry["ppo_epochs"] for entry in made.state.log_history if "ppo_epochs" in entry)

    assert passes(None) == 5
    # The first pass is on the policy that sampled, so it cannot have moved; the second has.
    assert passes(1e-9) == 2
    assert passes(1e9) == 5


# ---------------------------------------------------------------- experience


@pytest.mark.parametrize(("reference", "value"), [("sft", "adapter"), (None, "adapter"), ("sft", "shared")])
def test_experience_is_what_separate_models_say(tmp_path, reference, value):
    made = trainer(tmp_path, value=value, kl_coef=0.2, missing_eos_penalty=0.7, gamma=0.9, lam=0.8, length_penalty=0.1)
    if reference is None:
        made.roles.reference = type(made.roles.reference)(made.roles.policy.backbone)
    # EOS for one common token, so that some responses end and others do not.
    eos = int(episodes_of(made).sequences.responses[0, 2])
    made.experience.sampler.sampling = replace(made.experience.sampler.sampling, ending=Ending((eos,), 6))
    episodes = episodes_of(made)
    names = ("policy", "reward", "sft") + (("value",) if value == "adapter" else ())
    models = {name: separate(made, tmp_path, name) for name in names}
    models.setdefault("value", models["policy"])
    if reference is None:
        models["sft"] = tiny_base()
    heads, ended, flat = made.roles.policy.backbone.heads, [], []
    with torch.no_grad():
        for row, ids, start, n in rows_of(episodes):
            tokens = ids[0, start:]

            def log_probs(name, ids=ids, start=start, tokens=tokens):
                logits = models[name](input_ids=ids).logits[0, start - 1 : -1] / 0.8
                return torch.log_softmax(logits, -1).gather(1, tokens[:, None]).squeeze(1)

            ours, theirs = log_probs("policy"), log_probs("sft")
            values = heads["value"](
                models["value"].base_model.model.model(input_ids=ids).last_hidden_state[0, start - 1 : -1]
            )
            score = heads["reward"](models["reward"].base_model.model.model(input_ids=ids).last_hidden_state[0, -1])
            ended.append(bool((tokens == eos).any()))
            score = score - (0.0 if ended[-1] else 0.7) - 0.1 * n
            reward = -0.2 * (ours - theirs)
            reward[-1] += score
            following = torch.cat([values[1:], torch.zeros(1)])
            delta = reward + 0.9 * following - values
            advantage = torch.stack([sum((0.72 ** (s - t)) * delta[s] for s in range(t, n)) for t in range(n)])
            flat.append(advantage)
            close = {"atol": 2e-5, "rtol": 1e-4}
            torch.testing.assert_close(episodes.log_probs[row, :n], ours, **close)
            torch.testing.assert_close(episodes.kl[row, :n], ours - theirs, **close)
            torch.testing.assert_close(episodes.values[row, :n], values, **close)
            torch.testing.assert_close(episodes.score[row], score, **close)
            torch.testing.assert_close(episodes.returns[row, :n], advantage + values, **close)
    assert True in ended and False in ended
    whole = torch.cat(flat)
    whitened = (whole - whole.mean()) / whole.std(correction=0)
    torch.testing.assert_close(episodes.advantages[episodes.sequences.response_mask], whitened, atol=1e-4, rtol=1e-3)


def test_on_policy_kl_is_zero_where_the_policy_is_its_reference(tmp_path):
    """Negative KL reports come from a mismatch of what is sampled and what is scored: here there is none."""
    made = trainer(tmp_path)
    made.roles.reference = made.roles.policy
    episodes = episodes_of(made)
    assert float(episodes.kl.abs().max()) == 0.0


def test_kl_is_not_negative_beyond_sampling_noise(tmp_path):
    made = trainer(tmp_path, total_episodes=512)
    rows = [row for row in made.prompts for _ in range(40)]
    kl = made.experience.collect(rows, torch.Generator().manual_seed(5), 0.05)[0].kl.sum(1)
    assert float(kl.mean()) > -3 * float(kl.std()) / len(rows) ** 0.5
    assert float(kl.mean()) > 0.02  # policy and reference do differ


def record_steps(made):
    """(update, approximate KL) of every mini-batch, measured inside the trainer."""
    seen, learn = [], made.learner.minibatch

    def recording(episodes, number, **options):
        found = learn(episodes, number, **options)
        seen.append((made.state.global_step, found["approx_kl"]))
        return found

    made.learner.minibatch = recording
    return seen


def test_every_update_is_on_policy_in_its_first_step_and_only_then(tmp_path):
    """The ratio is exactly 1 as long as the policy is the one that sampled, however often it was updated before."""
    made = trainer(
        tmp_path, total_episodes=24, mini_batch_size=4, per_device_train_batch_size=2, batch_size=8, num_ppo_epochs=2
    )
    seen = record_steps(made)
    made.train()
    assert made.state.global_step == 3 and len(seen) == 12
    for place, (update, approx_kl) in enumerate(seen):
        assert update == place // 4
        if place % 4 == 0:
            assert approx_kl == 0.0, place
        else:
            assert approx_kl > 1e-9, place


def test_training_moves_policy_and_value_only(tmp_path):
    made = trainer(tmp_path)
    before = {n: p.detach().clone() for n, p in made.roles.named_parameters()}
    made.train()
    changed = {n for n, p in made.roles.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if ".policy." in n or ".value." in n}


def test_policy_and_value_have_their_own_learning_rates_and_every_parameter_has_one(tmp_path):
    made = trainer(tmp_path, learning_rate=1e-4, value_learning_rate=3e-4)
    groups = made.create_optimizer().param_groups
    assert [group["lr"] for group in groups] == [1e-4, 3e-4]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(
        id(p) for p in made.roles.parameters() if p.requires_grad
    )


def test_the_warm_up_begins_above_zero_and_counts_updates(tmp_path):
    made = trainer(
        tmp_path,
        total_episodes=40,
        learning_rate=1e-3,
        warmup_steps=4,
        lr_scheduler_type="constant_with_warmup",
        logging_steps=1,
    )
    made.train()
    rates = [entry["learning_rate"] for entry in made.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


# ---------------------------------------------------------------- what may be handed over


def test_the_trainer_takes_a_name_with_a_new_adapter(tmp_path):
    rows = [{"prompt": "red blue"}, {"prompt": [{"role": "user", "content": "green"}]}]
    made = PPOTrainer(
        model=str(tiny_directory()),
        reward_funcs=likes_short,
        args=config(tmp_path),
        train_dataset=rows,
        peft_config=peft(),
    )
    base = {n: p.detach().clone() for n, p in made.roles.named_parameters() if "lora_" not in n and "heads" not in n}
    made.train()
    assert made.roles.reference.adapter is None and made.roles.reference.backbone is made.roles.policy.backbone
    assert all(torch.equal(p, base[n]) for n, p in made.roles.named_parameters() if n in base)
    made.save_model(str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_whole_model_learns_with_models_of_its_own_for_the_other_roles(tmp_path):
    """As TRL 1.12 had it: four models, policy and value model trained as wholes."""
    policy, reference = tiny_base(), tiny_base()
    value, reward = classifier(1), classifier(2)
    made = PPOTrainer(
        model=policy, ref_model=reference, reward_model=reward, value_model=value,
        args=config(tmp_path, learning_rate=1e-3), train_dataset=ROWS,
        processing_class=AutoTokenizer.from_pretrained(tiny_directory()),
    )  # fmt: skip
    before = [copy.deepcopy(m.state_dict()) for m in (policy, reference, value, reward)]
    made.train()
    moved_ones = [
        any(not torch.equal(v, old[n]) for n, v in m.state_dict().items())
        for m, old in zip((policy, reference, value, reward), before, strict=True)
    ]
    assert moved_ones == [True, False, True, False]
    made.save_model(str(tmp_path / "out"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), policy.parameters(), strict=True))


def test_gradients_of_whole_models_are_plain_ones(tmp_path):
    policy = tiny_base()
    made = PPOTrainer(
        model=policy, reward_funcs=likes_short, value_model=classifier(1), args=config(tmp_path), train_dataset=ROWS,
        processing_class=AutoTokenizer.from_pretrained(tiny_directory()),
    )  # fmt: skip
    episodes = episodes_of(made)
    found = gradients(made, episodes)
    plain = tiny_base()
    terms = []
    for row, ids, start, n in rows_of(episodes):
        table = torch.log_softmax(plain(input_ids=ids).logits[0].float() / 0.8, -1)
        terms += [-episodes.advantages[row, t] * table[start + t - 1, ids[0, start + t]] for t in range(n)]
    torch.stack(terms).mean().backward()
    for n, p in plain.named_parameters():
        torch.testing.assert_close(found[f"backbones.0.base.{n}"], p.grad, atol=2e-6, rtol=1e-3, msg=n)


def test_a_peft_model_keeps_its_adapters_and_their_names(tmp_path):
    from peft import get_peft_model

    model = get_peft_model(tiny_base(), peft(), adapter_name="learner")
    model.add_adapter("before", peft())
    for seed, name in enumerate(("learner", "before")):
        for n, p in model.named_parameters():
            if f".{name}." in n:
                p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) * 0.1
    made = PPOTrainer(
        model=model, reward_funcs=likes_short, train_dataset=ROWS,
        args=config(tmp_path, model_adapter_name="learner", ref_adapter_name="before", value="shared"),
        processing_class=AutoTokenizer.from_pretrained(tiny_directory()),
    )  # fmt: skip
    assert (made.roles.policy.adapter, made.roles.reference.adapter) == ("learner", "before")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    made.train()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".learner." in name for name in changed)


def test_what_does_not_fit_is_one_clear_line(tmp_path):
    model, args = str(tiny_directory()), config(tmp_path)
    with pytest.raises(ModelError, match="PPOTrainer needs reward_funcs"):
        PPOTrainer(model=model, args=args, train_dataset=ROWS, peft_config=peft())
    with pytest.raises(ModelError, match="value='adapter' needs a base with adapters"):
        PPOTrainer(model=model, reward_funcs=likes_short, args=args, train_dataset=ROWS)
    with pytest.raises(ModelError, match="value='model' needs a value_model"):
        PPOTrainer(model=model, reward_funcs=likes_short, args=config(tmp_path, value="model"), train_dataset=ROWS)
    with pytest.raises(ModelError, match="has adapters already"):
        PPOTrainer(model=tiny_roles(), reward_funcs="reward", args=args, train_dataset=ROWS, peft_config=peft())
    with pytest.raises(ModelError, match="no adapter 'nobody' to train"):
        PPOTrainer(
            model=tiny_roles(),
            reward_funcs="reward",
            args=config(tmp_path, model_adapter_name="nobody"),
            train_dataset=ROWS,
        )
    with pytest.raises(ModelError, match=r"nowhere/nothing: cannot be loaded"):
        PPOTrainer(model="nowhere/nothing", reward_funcs=likes_short, args=args, train_dataset=ROWS)


# ---------------------------------------------------------------- prompts


def rows(count):
    tokenizer = AutoTokenizer.from_pretrained(tiny_directory())
    return read_prompts([{"input_ids": ids} for ids in PROMPTS[:count]], tokenizer, room=100)


def test_all_prompts_come_once_a_pass_in_another_order_each_time():
    given = [
        tuple(row.ids)
        for update in range(5)
        for row in prompts_of_update(rows(10), update, batch_size=8, copies=1, seed=3)
    ]
    passes = [given[i : i + 10] for i in range(0, 40, 10)]
    for once in passes:
        assert sorted(once) == sorted(map(tuple, PROMPTS))
    assert len({tuple(once) for once in passes}) == 4


def test_several_answers_of_a_prompt_stand_side_by_side():
    given = [tuple(row.ids) for row in prompts_of_update(rows(10), 0, batch_size=8, copies=4, seed=3)]
    assert len(set(given)) == 2 and given == [given[0]] * 4 + [given[4]] * 4


def test_a_text_is_taken_as_it_is_and_a_conversation_is_rendered():
    tokenizer = AutoTokenizer.from_pretrained(tiny_directory())
    turn = [{"role": "user", "content": "red"}]
    plain, turns = read_prompts([{"prompt": "red", "level": 3}, {"prompt": turn}], tokenizer, room=100)
    assert plain.ids == tokenizer("red")["input_ids"] and plain.columns == {"level": 3} and plain.plain
    assert tokenizer.decode(turns.ids) == "<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n"
    assert turns.shown == turn and not turns.plain


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "train_dataset: holds no prompts"),
        ([{"text": "a"}], "train_dataset#1: prompt: neither a prompt nor input_ids; the row has text"),
        ([{"prompt": "a"}, {"prompt": 3}], r"train_dataset#2: prompt: must be a text or a list of turns"),
        (
            [{"prompt": "red " * 2000}],
            r"train_dataset#1: prompt: has \d+ tokens, and the context of the model leaves 1018",
        ),
        ([{"prompt": ""}], "train_dataset#1: prompt: has 0 tokens"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(tmp_path, given, said):
    with pytest.raises(DataError, match=said):
        trainer(tmp_path, given)


# ---------------------------------------------------------------- options that fall back


@pytest.mark.parametrize("name", ["torch_compile", "use_liger_kernel"])
def test_options_of_transformers_without_effect_are_switched_off_with_a_word(tmp_path, caplog, name):
    caplog.clear()
    made = trainer(tmp_path, **{name: True}, total_episodes=8)
    assert f"ppo: {name} has no effect: " in caplog.text and getattr(made.args, name) is False
    made.train()
    assert made.state.global_step == 1 and made.model_wrapped is made.roles
