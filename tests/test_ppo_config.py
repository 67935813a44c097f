"""`PPOConfig` and a recipe's `ppo` section: one set of settings, and TRL's arithmetic of batches."""

import dataclasses
import json
import sys

import pytest
from ppo_trainers import config, trainer
from pydantic.fields import FieldInfo
from transformers import HfArgumentParser, TrainingArguments

from rlhf_kit import DataError, PPOConfig, RecipeError, load_recipe
from rlhf_kit.ppo.config import OWN_TO_RECIPES, _from_section
from rlhf_kit.recipe_ppo import PpoSection, Sizes
from rlhf_kit.recipe_sections import Section
from rlhf_kit.validation import check_recipe


def default_of(field):
    """Of a dataclass's field, or of pydantic's; a section inside is a mapping with nothing in it, to be filled in."""
    if isinstance(field, FieldInfo):
        default = field.get_default(call_default_factory=True)
        return {} if isinstance(default, Section) else default
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


# ---------------------------------------------------------------- one set of settings


def test_the_section_and_the_config_have_the_same_names_and_defaults(tmp_path):
    ours = {field.name: field for field in dataclasses.fields(PPOConfig)}
    section = PpoSection.model_fields
    assert set(section) - set(ours) == set(OWN_TO_RECIPES)
    for name in section.keys() - set(OWN_TO_RECIPES):
        assert default_of(ours[name]) == default_of(section[name]), name
    # What the config has beyond: transformers' own, and what its docstring lists.
    others = {f.name for f in dataclasses.fields(TrainingArguments)}
    for name in ours.keys() - section.keys() - others:
        assert name in (PPOConfig.__doc__ or ""), name
    made, read = PPOConfig(output_dir=str(tmp_path), use_cpu=True), PpoSection().model_dump()
    assert all(getattr(made, name) == read[name] for name in section.keys() - set(OWN_TO_RECIPES))


def test_a_setting_of_the_section_is_one_of_the_config_with_its_default_and_description(monkeypatch):
    class Longer(PpoSection):
        kl_coef: float = 0.25
        brand_new: list[int] = FieldInfo(default_factory=lambda: [1], description="100 % new.")  # type: ignore[assignment]

    monkeypatch.setattr("rlhf_kit.ppo.config.PpoSection", Longer)
    found = {name: (kind, setting) for name, kind, setting in _from_section()}
    assert found["kl_coef"][1].default == 0.25
    assert found["brand_new"][1].default_factory() == [1]
    assert found["brand_new"][1].metadata["help"] == "100 %% new."
    assert not set(OWN_TO_RECIPES) & found.keys()


def test_lists_and_mappings_of_two_configs_are_not_the_same(tmp_path):
    one, other = config(tmp_path), config(tmp_path)
    one.stop.append("x")
    one.stop_on["kl"] = 1.0
    assert (other.stop, other.stop_on) == ([], {})


# ---------------------------------------------------------------- on a command line


def test_a_script_takes_every_setting_on_its_command_line(tmp_path):
    line = (
        f"--output_dir {tmp_path} --use_cpu true --kl_coef 0.1 --kl_estimator k3 --algorithm a2c --num_mini_batches 1 "
        "--dual_clip 3 --reward_weights 1 0.5 --stop END ### --whiten_advantages false --missing_eos_penalty 2 "
        "--eval_steps 5 --value shared --total_episodes 64 --stop_token_id 7 --learning_rate 3e-6"
    ).split()
    (found,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses([*line, "--stop_on", '{"kl": 20}'])
    assert (found.kl_coef, found.kl_estimator, found.algorithm, found.dual_clip) == (0.1, "k3", "a2c", 3.0)
    assert (found.reward_weights, found.stop, found.whiten_advantages) == ([1.0, 0.5], ["END", "###"], False)
    assert (found.stop_on, found.missing_eos_penalty, found.stop_token_id) == ({"kl": 20}, 2.0, 7)
    assert (found.eval_steps, found.eval_strategy, found.value, found.total_episodes) == (5, "steps", "shared", 64)


def test_the_help_of_a_script_describes_every_setting(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit):
        HfArgumentParser(PPOConfig).parse_args_into_dataclasses(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, info in PpoSection.model_fields.items():
        if name not in OWN_TO_RECIPES:
            assert f"--{name}" in said and " ".join((info.description or "").split()[:3]) in said, name


def test_a_config_goes_through_a_file_and_comes_back(tmp_path):
    made = config(tmp_path, stop_on={"kl": 20}, stop=["a"], reward_weights=[1.0])
    written = json.loads(made.to_json_string())
    assert written.pop("stop_token") == "<STOP_TOKEN>"  # transformers hides whatever is called a token
    (tmp_path / "args.json").write_text(json.dumps(written))
    (again,) = HfArgumentParser(PPOConfig).parse_json_file(tmp_path / "args.json", allow_extra_keys=True)
    names = PpoSection.model_fields.keys() - set(OWN_TO_RECIPES)
    assert all(getattr(again, name) == getattr(made, name) for name in names)


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("per_device", "accumulation", "mini_batches", "episodes", "expected"),
    [
        # TRL 1.12, one process: batch_size = per_device x accumulation, mini_batch_size = batch_size /
        # num_mini_batches, num_total_batches = ceil(total_episodes / batch_size).
        (8, 4, 1, 100, (32, 32, 8, 4)),
        (64, 1, 1, 10_000, (64, 64, 64, 157)),
        (4, 4, 4, 64, (16, 4, 4, 4)),
        (1, 64, 2, 1, (64, 32, 1, 1)),
        (16, 1, 2, 1024, (16, 8, 8, 64)),
    ],
)
def test_sizes_are_trls_arithmetic(tmp_path, per_device, accumulation, mini_batches, episodes, expected):
    made = config(
        tmp_path,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=mini_batches,
        total_episodes=episodes,
    )
    sizes = Sizes.of(made)
    assert (sizes.batch, sizes.mini, sizes.micro, sizes.updates(made, prompts=7)) == expected


def test_without_total_episodes_the_prompts_say_how_long_a_run_is(tmp_path):
    made = config(tmp_path, total_episodes=None, num_train_epochs=2.5)
    assert Sizes.of(made).updates(made, prompts=10) == 4  # 25 episodes, 8 an update
    made = config(tmp_path, total_episodes=None, num_generations=4)
    assert Sizes.of(made).updates(made, prompts=10) == 5  # four answers to each of ten prompts
    assert trainer(tmp_path, max_steps=3).updates == 3


# ---------------------------------------------------------------- what does not fit together

WRONG = [
    ({"batch_size": 10, "mini_batch_size": 4}, "mini_batch_size", "must divide batch_size (10); a mini-batch of 4"),
    ({"batch_size": 11, "num_mini_batches": 3}, "num_mini_batches", "must divide batch_size (11); a mini-batch of 3"),
    (
        {"batch_size": 12, "mini_batch_size": 12, "per_device_train_batch_size": 5},
        "per_device_train_batch_size",
        "must divide mini_batch_size (12), 5 does not",
    ),
    ({"batch_size": 16, "num_generations": 3}, "num_generations", "must divide batch_size (16), 3 does not"),
    ({"algorithm": "a2c", "num_ppo_epochs": 2}, "algorithm", "a2c makes one step of each update"),
    ({"min_response_length": 9, "response_length": 8}, "min_response_length", "must be at most response_length (8)"),
]


@pytest.mark.parametrize(("settings", "name", "said"), WRONG)
def test_what_does_not_fit_is_said_of_a_config_and_of_a_recipe_with_its_line(tmp_path, settings, name, said):
    with pytest.raises(DataError) as of_config:
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
    assert str(of_config.value).startswith(f"PPOConfig: {name}: {said}")
    lines = ["model: {name_or_path: some/model}", "ppo:", *(f"  {key}: {value}" for key, value in settings.items())]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(RecipeError) as of_recipe:
        load_recipe(tmp_path / "recipe.yaml", check=check_recipe)
    line = next((i for i, text in enumerate(lines, 1) if text.startswith(f"  {name}:")), 2)
    assert str(of_recipe.value).startswith(f"{tmp_path / 'recipe.yaml'}:{line}: ppo.{name}: {said}")


def test_all_that_does_not_fit_is_said_at_once(tmp_path):
    with pytest.raises(DataError) as failure:
        config(tmp_path, batch_size=10, mini_batch_size=4, per_device_train_batch_size=3, num_generations=7)
    assert [p.field for p in failure.value.problems] == [
        "mini_batch_size", "per_device_train_batch_size", "num_generations"
    ]  # fmt: skip


def test_a_recipe_is_told_what_ppo_needs_beside_it(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "model: {name_or_path: some/model}\n"
        "ppo:\n"
        "  reward_funcs: [nowhere.py:function]\n"
        "  reward_weights: [1, 2]\n"
        "  ptx_coef: 1\n"
        "  eval_steps: 2\n"
        "  stop_on: {klll: 3}\n"
    )
    with pytest.raises(RecipeError) as failure:
        load_recipe(tmp_path / "recipe.yaml", check=check_recipe)
    said = [str(problem).removeprefix(f"{tmp_path / 'recipe.yaml'}:") for problem in failure.value.problems]
    assert said == [
        "3: ppo.reward_funcs.0: no such file: nowhere.py",
        "4: ppo.reward_weights: has 2 weights for 1 reward_funcs",
        "5: ppo.ptx_coef: needs data.text, or ppo.ptx_data for other text",
        "6: ppo.eval_steps: needs data.prompts_heldout",
        said[4],
    ]
    assert said[4].startswith("7: ppo.stop_on: klll: no such figure; there are kl, approx_kl, clip_fraction")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stop_on": {"klll": 3}}, "stop_on: klll: no such figure; there are kl, approx_kl"),
        ({"kl_estimator": "k4"}, "kl_estimator: must be 'k1', 'k2' or 'k3', not \"k4\""),
        ({"algorithm": "grpo"}, "algorithm: must be 'ppo' or 'a2c', not \"grpo\""),
        ({"value": "head"}, "value: must be 'adapter', 'shared' or 'model', not \"head\""),
        ({"temperature": 0.0}, "temperature: must be greater than 0, not 0.0"),
        ({"lam": 1.5}, "lam: must be at most 1, not 1.5"),
        ({"response_length": 0}, "response_length: must be at least 1, not 0"),
        ({"dual_clip": 1.0}, "dual_clip: must be greater than 1, not 1.0"),
        ({"mini_batch_size": 32}, "mini_batch_size: must be at most batch_size (8), not 32"),
        ({"stop": "END"}, 'stop: must be a list, not "END"'),
    ],
)
def test_a_config_refuses_what_a_recipe_refuses(tmp_path, settings, said):
    with pytest.raises(DataError) as failure:
        config(tmp_path, **settings)
    assert str(failure.value).startswith(f"PPOConfig: {said}")


def test_a_config_may_have_any_number_of_reward_weights_and_transformers_own_values(tmp_path):
    made = config(tmp_path, reward_weights=[1.0, 2.0, 3.0], save_total_limit=None, max_grad_norm=0.0, logging_steps=0.5)
    assert made.reward_weights == [1.0, 2.0, 3.0]
