"""The recipes for open models and Hub datasets: what their headers say is done and true, on rows of the same shape."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from hub_datasets import BOTH_WAYS, HUB, NUMBERS, TWICE, UNRATED, WITHOUT_ANSWER
from recipe_headers import OF_DATA, OWN, PAGE, PATHS, RECIPES, commands, header, prepare, processes, table
from tiny import make_tiny_tokenizer

from rlhf_kit import files
from rlhf_kit.recipe import Recipe, load_recipe
from rlhf_kit.records import prompt_name
from rlhf_kit.validation import check_recipe

OPEN = [path for path in PATHS if path.stem not in OWN]
HUB_RECIPES = ("hh_rlhf", "ultrafeedback", "tldr")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the data of all recipes, made by the commands in their headers."""
    folder = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        prepare(folder, patch)
        yield folder


def recipe(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", check=check_recipe)


def asked(n: int) -> str:
    return f"What is {n} and {n}?"


# -------------------------------------------------------------------- headers


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_header_has_the_command_that_runs_its_own_recipe(path: Path) -> None:
    *before, run = commands(path)
    verb = "round" if path.stem == "rounds" else "run"
    assert run[-2:] == [verb, f"recipes/{path.name}"]
    assert all(command[:1] == ["rlhf-kit"] and command[1] in OF_DATA for command in before)
    if run[0] == "rlhf-kit":
        assert run[1:] == run[-2:]
        return
    assert run[:2] == ["accelerate", "launch"]
    launch = launch_command_parser().parse_args(run[2:])  # accelerate's own, which exits at an option that it lacks
    assert (launch.module, launch.training_script, launch.training_script_args) == (True, "rlhf_kit", run[-2:])
    assert (RECIPES.parent / launch.config_file).is_file()


@pytest.mark.parametrize("path", OPEN, ids=lambda path: path.stem)
def test_a_header_says_where_it_ran(path: Path) -> None:
    text = " ".join(header(path).split())
    assert "Hardware: " in text and "Memory by " in text
    assert ("Measured" in text) != ("Not run here" in text)
    assert re.search(r"\d{4}\.\d{5}|compare with: recipes/\w+\.yaml|Measured", text), "figures have a source"


@pytest.mark.parametrize("path", OPEN, ids=lambda path: path.stem)
def test_the_arguments_of_its_trainers_exist(path: Path) -> None:
    load_recipe(path, check=check_recipe)  # raises with every mistake
    with pytest.raises(Exception, match=r"sft\.trainer\.optimm: .*did you mean 'optim'"):
        load_recipe(path, ["sft.trainer.optimm=adamw_torch"], check=check_recipe)


@pytest.mark.parametrize("path", OPEN, ids=lambda path: path.stem)
def test_an_update_fits_the_devices_that_the_header_names(path: Path) -> None:
    """Whole passes on every device: batch and mini-batch are of all of them together."""
    ppo, count = load_recipe(path).ppo, processes(path)
    mini = ppo.mini_batch_size or (ppo.batch_size or 0) // ppo.num_mini_batches
    assert ppo.batch_size and ppo.batch_size % mini == 0
    assert mini % (ppo.per_device_train_batch_size * count) == 0
    assert (ppo.total_episodes or 0) % ppo.batch_size == 0


def test_the_page_of_recipes_has_what_their_headers_say() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "python tests/recipe_headers.py writes it anew"


# -------------------------------------------------------------------- the Hub's datasets


@pytest.mark.parametrize("name", HUB_RECIPES)
def test_the_commands_of_a_header_make_the_data_of_its_recipe(name: str, shelf: Path) -> None:
    data = recipe(name).data.model_dump(include=set(files.KIND_OF_FIELD), exclude_none=True)
    assert sorted(data) == ["demonstrations", "prompts", "prompts_heldout", "rankings", "rankings_heldout"]
    records = files.load_fields(data)  # raises for a bad row, and for a held-out prompt that is trained on
    of = {field: {prompt_name(record.prompt) for record in found} for field, found in records.items()}
    # Rows with one prompt go to one side, whichever of the three files they stand in.
    assert not (of["demonstrations"] | of["rankings"] | of["prompts"]) & (
        of["rankings_heldout"] | of["prompts_heldout"]
    )
    assert of["rankings_heldout"] <= of["prompts_heldout"]
    assert 0 < len(of["prompts_heldout"]) < len(NUMBERS) / 10
    assert len(of["prompts"]) + len(of["prompts_heldout"]) == len(records["prompts"]) + len(records["prompts_heldout"])


def rankings_of(name: str) -> dict[str, list[str]]:
    """By its last question the answers of a prompt, the best first."""
    data = recipe(name).data
    found = [*files.load(data.rankings or "", "ranking"), *files.load(data.rankings_heldout or "", "ranking")]
    questions = [r.prompt if isinstance(r.prompt, str) else r.prompt[-1].content for r in found]
    assert len(set(questions)) == len(questions)
    orders = [[answer.text for answer in sorted(r.responses, key=lambda answer: answer.rank)] for r in found]
    return dict(zip(questions, orders, strict=True))


def test_what_was_chosen_is_first(shelf: Path) -> None:
    hh, posts = rankings_of("hh_rlhf"), rankings_of("tldr")
    assert len(hh) == len(NUMBERS) - 1 and asked(WITHOUT_ANSWER) not in hh
    assert all(hh[asked(n)] == [f"{2 * n}.", "No idea."] for n in NUMBERS if n not in (WITHOUT_ANSWER, BOTH_WAYS))
    assert len(posts) == len(NUMBERS)
    assert {tuple(answers) for post, answers in posts.items() if "I have 21 and 21" in post} == {(" 42.", " Numbers.")}
    assert all(post.endswith("\n\nTL;DR:") and answers[0].startswith(" ") for post, answers in posts.items())


def test_of_a_pair_that_was_ordered_both_ways_the_first_is_kept(shelf: Path) -> None:
    assert rankings_of("hh_rlhf")[asked(BOTH_WAYS)] == [f"{2 * BOTH_WAYS}.", "No idea."]


def test_four_answers_are_ranked_by_their_ratings(shelf: Path) -> None:
    """Not by `overall_score`, which the first release had wrong; an answer that nobody rated is left out."""
    expected = {asked(n): [f"{2 * n}.", f"Some {2 * n}, perhaps.", f"{n}.", "No idea."] for n in NUMBERS}
    expected[asked(UNRATED)].remove(f"{UNRATED}.")
    assert rankings_of("ultrafeedback") == expected


@pytest.mark.parametrize("name", HUB_RECIPES)
def test_demonstrations_are_the_best_answers(name: str, shelf: Path) -> None:
    found = files.load(recipe(name).data.demonstrations or "", "demonstration")
    assert len(found) > 0.9 * len(NUMBERS)
    for record in found:
        question = record.prompt if isinstance(record.prompt, str) else record.prompt[-1].content
        n = int(question.split(" and ")[0].split()[-1])
        if n != BOTH_WAYS:
            assert record.completion.strip() == f"{2 * n}."


def test_a_dataset_named_directly_would_stop_a_run(shelf: Path) -> None:
    """Why the headers have commands first: one row of thousands that cannot be trained on is an error."""
    checked = files.check("trl-lib/hh-rlhf-helpful-base:train", "ranking")
    assert {problem.code for problem in checked.problems} == {"empty-text", "contradiction"}
    foreign = files.check("openbmb/UltraFeedback", "ranking").problems
    assert [problem.code for problem in foreign] == ["foreign-format"]
    assert "rlhf-kit convert openbmb/UltraFeedback --from ultrafeedback" in str(foreign[0])


def test_each_dataset_and_split_exists(shelf: Path) -> None:
    named = {word.partition(":")[::2] for path in OPEN for command in commands(path) for word in command if "/" in word}
    hub = {(name, split) for name, split in named if name in HUB}
    assert {name for name, _ in hub} == set(HUB)
    assert all(split in ("", "train") and "train" in HUB[name][0] for name, split in hub), "the others are for testing"
    assert TWICE  # the same summary twice is one demonstration
    found = files.load(recipe("tldr").data.demonstrations or "", "demonstration")
    assert len({json.dumps(record.model_dump(mode="json")) for record in found}) == len(found)


# -------------------------------------------------------------------- templates and tokens


def rendered(template: str, **special: str) -> str:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = (RECIPES / "open" / template).read_text(encoding="utf-8")
    for name, token in special.items():
        setattr(tokenizer, name, token)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Why?"},
    ]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def test_qwen3_is_asked_as_with_thinking_off() -> None:
    """The text that Qwen's own template gives for `enable_thinking=False` (model card of Qwen3)."""
    assert rendered("qwen3_no_think.jinja") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello.<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_llama3_is_asked_without_a_date() -> None:
    """The prompt format of Meta's model card, one begin-of-text, the system turn only where there is one."""
    assert rendered("llama3.jinja", bos_token="<|begin_of_text|>") == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


# Pad and EOS of the tokenizers as their tokenizer_config.json has them; None: it has none.
TOKENS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("<|im_end|>", "<|im_end|>"),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("<|im_end|>", "<|im_end|>"),
    "Qwen/Qwen3-0.6B": ("<|endoftext|>", "<|im_end|>"),
    "Qwen/Qwen3-4B": ("<|endoftext|>", "<|im_end|>"),
    "Qwen/Qwen3-32B": ("<|endoftext|>", "<|im_end|>"),
    "meta-llama/Llama-3.2-1B-Instruct": (None, "<|eot_id|>"),
    "meta-llama/Llama-3.1-8B-Instruct": (None, "<|eot_id|>"),
    "EleutherAI/pythia-1b-deduped": (None, "<|endoftext|>"),
}


@pytest.mark.parametrize("path", OPEN, ids=lambda path: path.stem)
def test_a_pad_token_is_named_where_the_tokenizer_has_none(path: Path) -> None:
    model = load_recipe(path).model
    pad, eos = TOKENS[model.base_id or model.name_or_path]
    assert (model.pad_token is None) == (pad is not None)
    assert model.pad_token != eos
    assert model.quantization == ("4bit" if "qlora" in path.stem else None)
