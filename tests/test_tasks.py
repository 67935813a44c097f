"""lm-eval on policies that share a base: its own run on a merged model says what each must get."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import torch
import yaml
from backbones import tiny_backbone, tiny_directory
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.tasks import load_tasks, tasks_tax
from rlhf_kit.evaluation.tax import section

QUESTIONS = [
    {"q": f"Is a {noun} a {other}?", "options": ["No, it is not.", "Yes.", "I do not know, sorry."], "gold": i % 3}
    for i, (noun, other) in enumerate([("whale", "fish"), ("cat", "dog"), ("plum", "pear"), ("mat", "door")] * 2)
]
PLAIN = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "options", "doc_to_target": "gold"}
MEANS = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]


def written(folder: Path, name: str = "quiz", rows: list[dict[str, Any]] = QUESTIONS, **fields: Any) -> str:
    """A task of local data: NAME.yaml and its rows beside it."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"task": name, **files, **PLAIN, "metric_list": MEANS, **fields}), encoding="utf-8")
    return str(path)


def own_results(folder: Path, names: list[str], adapter: Path | None) -> dict[str, dict[str, float]]:
    """What lm-eval says of a model that it is handed whole: the base, or the base with the adapter merged into it."""
    model = AutoModelForCausalLM.from_pretrained(tiny_directory(), dtype="float32")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(tiny_directory())
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)
    found: dict[str, dict[str, float]] = lm_eval.simple_evaluate(
        lm, tasks=names, task_manager=manager, bootstrap_iters=0
    )["results"]
    return found


def test_each_policy_gets_what_lm_eval_says_of_its_merged_model(tmp_path: Path) -> None:
    task, rolling = written(tmp_path), {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "q"}
    bits = [{"metric": "bits_per_byte"}]
    other = written(tmp_path, "prose", **rolling, metric_list=bits, doc_to_choice=None)
    backbone = tiny_backbone("sft", "ppo")
    roles = {"base": None, "sft": "sft", "ppo": "ppo"}
    done: list[int] = []
    measured = tasks_tax(backbone, roles, [task, other], tmp_path / "k", {r: r for r in roles}, progress=done.append)
    assert len(done) == 6
    found = section({}, {}, measured, against="base", resamples=200)
    assert found is not None
    assert [(e["name"], e["metric"], e["rows"]) for e in found["tasks"]] == [
        ("quiz", "acc", 8),
        ("quiz", "acc_norm", 8),
        ("prose", "bits_per_byte", 8),
    ]
    for policy, role in roles.items():
        adapter = None
        if role is not None:
            backbone.save_adapter(role, adapter := tmp_path / role)
        results = own_results(tmp_path, ["quiz", "prose"], adapter)
        for entry in found["tasks"]:
            expected = results[entry["name"]][f"{entry['metric']},none"]
            assert entry["value"][policy]["value"] == pytest.approx(expected, rel=1e-4), (policy, entry["metric"])
    values = [entry["value"][policy]["value"] for entry in found["tasks"] for policy in roles]
    assert len(set(values)) > 4  # the adapters do something
    for entry in found["tasks"]:
        change = entry["value"]["ppo"]["value"] - entry["value"]["base"]["value"]
        assert entry["change"]["ppo"]["value"] == pytest.approx(change)


def test_few_shots_are_the_same_for_all_policies(tmp_path: Path) -> None:
    task = written(tmp_path, num_fewshot=2, fewshot_split="test")
    roles = {"one": "sft", "two": "sft"}
    measured = tasks_tax(tiny_backbone("sft"), roles, [task], tmp_path, {"one": "1", "two": "2"})
    assert measured["one"] == measured["two"]


def test_an_interrupted_run_goes_on_and_what_differs_is_run_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, kept, backbone = written(tmp_path), tmp_path / "kept", tiny_backbone("sft")
    ids, real, ran = {"base": "b", "sft": "s"}, lm_eval.simple_evaluate, list[int]()

    def counted(*args: Any, **options: Any) -> Any:
        if len(ran) == 1 and not kept.joinpath("on").exists():
            raise KeyboardInterrupt
        ran.append(1)
        return real(*args, **options)

    monkeypatch.setattr(lm_eval, "simple_evaluate", counted)
    roles = {"base": None, "sft": "sft"}
    with pytest.raises(KeyboardInterrupt):
        tasks_tax(backbone, roles, [task], kept, ids)
    (kept / "on").touch()
    first = tasks_tax(backbone, roles, [task], kept, ids)
    assert len(ran) == 2 and tasks_tax(backbone, roles, [task], kept, ids) == first and len(ran) == 2
    limited = tasks_tax(backbone, roles, [task], kept, ids, limit=3)
    assert len(ran) == 4 and limited["sft"][0].values == first["sft"][0].values[:3]
    written(tmp_path, rows=[{**row, "gold": 0} for row in QUESTIONS])  # other data under the same name
    tasks_tax(backbone, roles, [task], kept, ids)
    assert len(ran) == 6
    written(tmp_path, rows=[{**row, "gold": 0} for row in QUESTIONS], doc_to_text="Q: {{q}}")  # another prompt
    tasks_tax(backbone, {"base": None}, [task], kept, ids)
    assert len(ran) == 7


def test_a_folder_is_all_its_tasks_and_a_group_counts_its_documents_together(tmp_path: Path) -> None:
    written(tmp_path, "one")
    written(tmp_path, "two", QUESTIONS[:3])
    assert [each.name for each in load_tasks([str(tmp_path)])] == ["one", "two"]
    group = {"group": "both", "task": ["one", "two"], "aggregate_metric_list": [{"metric": "acc"}]}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    assert [each.name for each in load_tasks([str(tmp_path)])] == ["both"]
    measured = tasks_tax(tiny_backbone(), {"base": None}, [str(tmp_path / "both.yaml")], tmp_path / "k", {"base": "b"})
    acc, norm = measured["base"]
    assert (acc.name, acc.metric, len(acc.values), norm.metric) == ("both", "acc", 11, "acc_norm")
    assert np.mean(acc.values) == pytest.approx(own_results(tmp_path, ["both"], None)["both"]["acc,none"])


def test_several_filters_are_several_metrics(tmp_path: Path) -> None:
    generated = dict(
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{options[gold]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean"}],
        filter_list=[
            {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}
            for name, pattern in (("strict", "^(Yes)$"), ("loose", "(.)"))
        ],
    )
    measured = tasks_tax(
        tiny_backbone(), {"base": None}, [written(tmp_path, "said", **generated)], tmp_path / "k", {"base": "b"}
    )
    assert [items.metric for items in measured["base"]] == ["exact_match,strict", "exact_match,loose"]


# -------------------------------------------------------------------- what cannot be


def test_all_that_cannot_be_loaded_is_told_at_once(tmp_path: Path) -> None:
    """arc_easy is one of lm-eval's own; its data are on the Hub, which no test reaches."""
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.yaml"
    broken.write_text("nothing: of the kind\n", encoding="utf-8")
    lost = written(tmp_path, "lost")
    (tmp_path / "lost.jsonl").unlink()
    words = ["arc_easy", "arc_eezy", str(tmp_path / "none.yaml"), str(tmp_path / "empty"), str(broken), lost]
    with pytest.raises(RlhfKitError) as failure:
        load_tasks(words)
    lines = str(failure.value).splitlines()
    assert len(lines) == len(words)
    assert lines[0].startswith("arc_easy: its data cannot be read: ") and lines[0].endswith("of your own: FILE.yaml")
    assert lines[1] == "arc_eezy: is no task of lm-eval and no YAML file; did you mean arc_easy?"
    assert lines[2].endswith("none.yaml: no such file")
    assert "holds no task of lm-eval" in lines[3]
    assert lines[4].startswith(f"{broken}: lm-eval cannot load it: ")
    assert lines[5].startswith(f"{lost}: its data cannot be read: ")


def test_what_cannot_be_measured_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    code = written(tmp_path, "code", unsafe_code=True)
    no_mean = written(tmp_path, "spread", metric_list=[{"metric": "mcc", "aggregation": "matthews_corrcoef"}])
    twice = written(tmp_path, "twice")
    with pytest.raises(RlhfKitError) as failure:
        tasks_tax(tiny_backbone(), {"base": None}, [code, no_mean, twice, twice], tmp_path, {"base": "b"})
    lines = str(failure.value).splitlines()
    assert len(lines) == 3
    assert "runs code that models write" in lines[0] and "(mcc) is a mean over documents" in lines[1]
    assert lines[2] == "twice: is named twice"


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(RlhfKitError, match=r"pip install 'rlhf-kit\[tasks\]'"):
        load_tasks(["arc_easy"])


def test_the_random_numbers_of_the_caller_are_its_own(tmp_path: Path) -> None:
    backbone, task = tiny_backbone(), written(tmp_path)

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    seed()
    expected = draw()
    seed()
    tasks_tax(backbone, {"base": None}, [task], tmp_path / "k", {"base": "b"})
    assert draw() == expected
