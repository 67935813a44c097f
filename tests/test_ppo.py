"""PPO's trainer on the tiny model: a plain computation with separate models is the oracle for its gradients."""

import pytest
import torch
from backbones import add_head, stir, tiny_backbone, tiny_base
from peft import PeftModel
from transformers import TrainingArguments

from rlhf_kit.models import ScalarHead
from rlhf_kit.recipe import PpoSection
from rlhf_kit.stages.ppo import PPOTrainer, Rollouts, micro_batch_size, steps_per_update

GENERATOR = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 500, (2 + n % 5,), generator=GENERATOR).tolist() for n in range(10)]


def section(**fields):
    few = {"total_episodes": 16, "batch_size": 8, "mini_batch_size": 8, "response_length": 6, "learning_rate": 1e-2}
    return PpoSection(**{**few, "warmup_steps": 0, "temperature": 0.8, **fields})


def trainer(directory, ppo, reference="sft", steps=None):
    backbone = tiny_backbone("sft", "policy", "reward", "value")
    for seed, name in enumerate(("reward", "value")):
        add_head(backbone, name, seed)
    # The policy is near its reference and the value model near its reward model, as they are after a few updates.
    for name, seed in (("policy", 1), ("value", 3)):
        stir(backbone, name, seed)
        for parameter in backbone.adapter_parameters(name):
            parameter.data += 0.01
    backbone.train_only("policy", "value")
    args = TrainingArguments(
        output_dir=str(directory),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="steps" if steps else "no",
        save_steps=steps or 500,
        logging_steps=1,
        learning_rate=ppo.learning_rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=micro_batch_size(ppo),
        gradient_accumulation_steps=ppo.mini_batch_size // micro_batch_size(ppo),
        num_train_epochs=1,
        ignore_data_skip=True,
        remove_unused_columns=False,
        label_names=[],
        seed=3,
    )
    return PPOTrainer(model=backbone, args=args, ppo=ppo, train_dataset=PROMPTS, reference=reference)


def episodes_of(made):
    return made.collect(PROMPTS[:8], torch.Generator().manual_seed(1))


def moved(episodes):
    """The same episodes as if the policy had moved since: ratios other than 1, some beyond the clip."""
    noise = torch.randn(episodes.log_probs.shape, generator=torch.Generator().manual_seed(2)) * 0.3
    episodes.log_probs.add_(noise)
    episodes.values.add_(noise)
    return episodes


def step_gradients(made, episodes, size):
    made.model.zero_grad()
    tokens = int(episodes.sequences.response_mask.sum())
    for rows in torch.arange(len(episodes)).split(size):
        made.training_step(made.model, {"episodes": episodes.select(rows), "tokens": tokens})
    return {n: p.grad.clone() for n, p in made.model.named_parameters() if p.requires_grad}


def separate(made, directory, name):
    """One role as a model of its own, in plain PEFT."""
    made.backbone.save_adapter(name, directory / name)
    return PeftModel.from_pretrained(tiny_base(), directory / name, is_trainable=True).eval()


def rows_of(episodes):
    s = episodes.sequences
    for row in range(len(episodes)):
        mask = s.response_mask[row]
        n = int(mask.sum())
        ids = s.input_ids[row][s.attention_mask[row]]
        yield row, ids[None], ids.numel() - n, n


# ---------------------------------------------------------------- learning


def test_gradients_are_those_of_separate_models_and_plain_loops(tmp_path):
    ppo = section(cliprange=0.2, cliprange_value=0.15, vf_coef=0.3)
    made = trainer(tmp_path, ppo)
    episodes = moved(episodes_of(made))
    found = step_gradients(made, episodes, 8)
    policy, value = separate(made, tmp_path, "policy"), separate(made, tmp_path, "value")
    head = ScalarHead(32)
    head.load_state_dict(made.backbone.heads["value"].state_dict())

    losses, value_losses, clipped = [], [], 0
    for row, ids, start, n in rows_of(episodes):  # one sequence at a time, no padding
        table = torch.log_softmax(policy(input_ids=ids).logits[0].float() / ppo.temperature, -1)
        hidden = value.base_model.model.model(input_ids=ids).last_hidden_state[0]
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
    torch.stack(losses).mean().backward()
    (0.3 * torch.stack(value_losses).mean()).backward()

    expected = {f"heads.value.{n}": p.grad for n, p in head.named_parameters()}
    for model, name in ((policy, "policy"), (value, "value")):
        for n, p in model.named_parameters():
            if p.requires_grad:
                expected[n.replace("base_model.model.", "base.").replace(".default.", f".{name}.")] = p.grad
    assert expected.keys() == found.keys()
    for n, gradient in expected.items():
        torch.testing.assert_close(found[n], gradient, atol=2e-6, rtol=2e-4, msg=n)
    assert max(g.abs().max() for n, g in found.items() if ".policy." in n) > 1e-3


def test_micro_batches_change_no_gradient(tmp_path):
    made = trainer(tmp_path, section())
    episodes = moved(episodes_of(made))
    whole = step_gradients(made, episodes, 8)
    for size in (2, 3):
        for name, gradient in step_gradients(made, episodes, size).items():
            torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    from rlhf_kit.errors import RlhfKitError

    made = trainer(tmp_path, section())
    episodes = episodes_of(made)
    episodes.advantages[0, 0] = float("nan")
    with pytest.raises(RlhfKitError, match=r"the loss of update 1 is nan; lower ppo\.learning_rate"):
        step_gradients(made, episodes, 8)


# ---------------------------------------------------------------- experience


@pytest.mark.parametrize("reference", ["sft", None])
def test_experience_is_what_separate_models_say(tmp_path, reference):
    ppo = section(kl_coef=0.2, missing_eos_penalty=0.7, gamma=0.9, lam=0.8)
    made = trainer(tmp_path, ppo, reference)
    # EOS for one common token, so that some responses end and others do not.
    with made.backbone.role("policy"):
        made.backbone.tokenizer.eos_token_id = int(episodes_of(made).sequences.responses[0, 2])
    episodes = episodes_of(made)
    eos = made.backbone.tokenizer.eos_token_id
    models = {name: separate(made, tmp_path, name) for name in ("policy", "reward", "value", "sft")}
    if reference is None:
        models["sft"] = tiny_base()
    heads, ended, flat = made.backbone.heads, [], []
    with torch.no_grad():
        for row, ids, start, n in rows_of(episodes):
            tokens = ids[0, start:]

            def log_probs(name, ids=ids, start=start, tokens=tokens):
                logits = models[name](input_ids=ids).logits[0, start - 1 : -1] / ppo.temperature
                return torch.log_softmax(logits, -1).gather(1, tokens[:, None]).squeeze(1)

            ours, theirs = log_probs("policy"), log_probs("sft")
            values = heads["value"](
                models["value"].base_model.model.model(input_ids=ids).last_hidden_state[0, start - 1 : -1]
            )
            score = heads["reward"](models["reward"].base_model.model.model(input_ids=ids).last_hidden_state[0, -1])
            ended.append(bool((tokens == eos).any()))
            score = score - (0.0 if ended[-1] else 0.7)
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


def record_steps(made):
    """(optimiser steps done, mean squared log-ratio) of every micro-batch, measured inside the trainer."""
    seen, step = [], made.training_step

    def recording(model, inputs, *rest):
        loss = step(model, inputs, *rest)
        seen.append((made.state.global_step, made._figures["approx_kl"][-1]))
        return loss

    made.training_step = recording
    return seen


def test_every_update_is_on_policy_in_its_first_step_and_only_then(tmp_path):
    """The ratio is exactly 1 as long as the policy is the one that sampled, however often it was updated before."""
    ppo = section(total_episodes=24, mini_batch_size=4, per_device_train_batch_size=2, num_ppo_epochs=2)
    made = trainer(tmp_path, ppo)
    seen = record_steps(made)
    made.train()
    assert steps_per_update(ppo) == 4
    assert made.state.global_step == 12
    assert len(seen) == 24 == len(Rollouts(made))
    for step, approx_kl in seen:
        if step % 4 == 0:
            assert approx_kl <= 1e-10, step
    assert all(kl > 1e-9 for step, kl in seen if step % 4 == 3)


def test_training_moves_policy_and_value_only(tmp_path):
    made = trainer(tmp_path, section())
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    made.train()
    changed = {n for n, p in made.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if ".policy." in n or ".value." in n or n.startswith("heads.value.")}


def test_policy_and_value_have_their_own_learning_rates_and_every_parameter_has_one(tmp_path):
    made = trainer(tmp_path, section(learning_rate=1e-4, value_learning_rate=3e-4))
    groups = made.create_optimizer().param_groups
    assert [group["lr"] for group in groups] == [1e-4, 3e-4]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(
        id(p) for p in made.model.parameters() if p.requires_grad
    )


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path):
    ppo = section(total_episodes=32, num_ppo_epochs=2, learning_rate=1e-3)
    whole = trainer(tmp_path / "whole", ppo)
    whole.train()
    first = trainer(tmp_path / "cut", ppo, steps=4)
    first.train()
    again = trainer(tmp_path / "again", ppo)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert again.state.global_step == whole.state.global_step == 8
    for (name, a), b in zip(again.model.named_parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6, msg=name)


# ---------------------------------------------------------------- the loader


def test_all_prompts_come_once_a_pass_in_another_order_each_time(tmp_path):
    loader = Rollouts(trainer(tmp_path, section(total_episodes=40)))
    given = [tuple(p) for update in range(5) for p in loader.prompts(update)]
    assert len(given) == 40
    passes = [given[i : i + 10] for i in range(0, 40, 10)]
    for once in passes:
        assert sorted(once) == sorted(map(tuple, PROMPTS))
    assert len({tuple(once) for once in passes}) == 4
    assert loader.prompts(3) == loader.prompts(3)  # depends on the number of the update alone


@pytest.mark.parametrize(
    ("batch", "mini", "epochs", "steps"), [(16, 8, 1, 2), (16, 16, 4, 4), (8, 2, 3, 12), (512, 64, 1, 8)]
)
def test_steps_per_update(batch, mini, epochs, steps):
    ppo = PpoSection(total_episodes=512, batch_size=batch, mini_batch_size=mini, num_ppo_epochs=epochs)
    assert steps_per_update(ppo) == steps


def test_a_forward_pass_is_never_larger_than_a_minibatch():
    assert micro_batch_size(PpoSection(mini_batch_size=4, per_device_train_batch_size=8)) == 4
    assert micro_batch_size(PpoSection(mini_batch_size=8, per_device_train_batch_size=2)) == 2
