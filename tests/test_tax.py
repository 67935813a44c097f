"""The loss of held-out text and the section `tax`, against transformers' own loss and numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import backbone_of_type, tiny_backbone

from rlhf_kit.errors import DataError
from rlhf_kit.evaluation import tax
from rlhf_kit.evaluation.tax import Items, names_of, nats, section, text_tax
from rlhf_kit.models import Backbone

TEXTS = [
    "The cat sat on the mat, and the dog lay by the door.",
    "Rain.",
    "How do I boil an egg? Put the egg in boiling water and wait for eight minutes, then cool it in cold water.",
    "x",
]


def written(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return written(tmp_path / "text.jsonl", TEXTS)


def own_loss(backbone: Backbone, text: str) -> tuple[float, int]:
    """transformers' mean loss of a single text, and its tokens."""
    ids = backbone.tokenizer(text, return_tensors="pt")["input_ids"]
    if ids.size(1) < 2:
        return 0.0, 0
    with torch.no_grad():
        return float(backbone.base(ids, labels=ids).loss), ids.size(1) - 1


def measured(backbone: Backbone, source: str, kept: Path, **options: int) -> dict[str, list[Items]]:
    roles = {"base": None} | {name: name for name in backbone.adapters}
    return text_tax(backbone, roles, [source], kept, {name: name for name in roles}, **options)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_text_has_transformers_own_loss_with_adapters_on_and_off(
    source: str, tmp_path: Path, batch_size: int
) -> None:
    backbone = tiny_backbone("sft", "ppo")
    found = measured(backbone, source, tmp_path / "kept", batch_size=batch_size)
    assert list(found) == ["base", "sft", "ppo"]
    for policy, (items,) in found.items():
        with backbone.role(None if policy == "base" else policy):
            expected = [own_loss(backbone, text) for text in TEXTS]
        assert (items.name, items.metric) == ("text.jsonl", "loss")
        assert items.counts == tuple(count for _, count in expected) and items.counts[-1] == 0
        assert items.values == pytest.approx([loss * count for loss, count in expected], rel=1e-5)
    assert len({items.values for (items,) in found.values()}) == 3


def test_another_architecture(source: str, tmp_path: Path) -> None:
    backbone = backbone_of_type("gemma2")  # soft-capped logits
    (items,) = measured(backbone, source, tmp_path)["base"]
    assert items.values == pytest.approx([math.prod(own_loss(backbone, text)) for text in TEXTS], rel=1e-4)


def test_a_long_text_is_cut_into_windows_in_which_every_token_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tax, "WINDOW", 8)
    backbone, text = tiny_backbone(), TEXTS[2]
    ids = backbone.tokenizer(text)["input_ids"]
    # Windows of 8, the first token of each the last of the one before; by hand, with transformers' loss.
    windows = [ids[start : start + 8] for start in range(0, len(ids) - 1, 7)]
    assert len(windows) > 3 and sum(len(window) - 1 for window in windows) == len(ids) - 1
    total = 0.0
    with torch.no_grad():
        for window in windows:
            row = torch.tensor([window])
            total += float(backbone.base(row, labels=row).loss) * (len(window) - 1)
    (items,) = measured(backbone, written(tmp_path / "long.jsonl", [text]), tmp_path)["base"]
    assert items.counts == (len(ids) - 1,) and items.values == pytest.approx([total], rel=1e-5)


def test_nats_of_what_is_learned_only() -> None:
    backbone = tiny_backbone("sft")
    ids = backbone.tokenizer(TEXTS[0])["input_ids"]
    labels = [-100] * 5 + ids[5:]
    (found,) = nats(backbone, [{"input_ids": ids, "labels": labels}], 1)
    with torch.no_grad():
        loss = backbone.base(torch.tensor([ids]), labels=torch.tensor([labels])).loss
    assert found == pytest.approx(float(loss) * (len(ids) - 5), rel=1e-5)


def test_nothing_is_measured_twice_and_what_differs_is_measured_anew(source: str, tmp_path: Path) -> None:
    backbone, kept, roles = tiny_backbone("sft"), tmp_path / "kept", {"base": None, "sft": "sft"}
    done: list[int] = []
    first = text_tax(backbone, roles, [source], kept, {"base": "b", "sft": "s"}, progress=done.append)
    assert done == [len(TEXTS)] * 2 and len(list(kept.iterdir())) == 2
    silenced = tiny_backbone("sft")
    silenced.forward = None  # type: ignore[method-assign, assignment]
    assert text_tax(silenced, roles, [source], kept, {"base": "b", "sft": "s"}) == first
    text_tax(backbone, roles, [source], kept, {"base": "b", "sft": "another adapter"})
    assert len(list(kept.iterdir())) == 3
    # The same rows under another name are the same rows.
    renamed = Path(source).rename(tmp_path / "renamed.jsonl")
    (items,) = text_tax(silenced, {"base": None}, [str(renamed)], kept, {"base": "b"})["base"]
    assert items.name == "renamed.jsonl" and items.values == first["base"][0].values
    written(renamed, TEXTS[:1])
    text_tax(backbone, {"base": None}, [str(renamed)], kept, {"base": "b"})
    assert len(list(kept.iterdir())) == 4


def test_all_mistakes_of_all_files_at_once(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one.jsonl", ["", "fine"]), written(tmp_path / "two.jsonl", ["  "])
    with pytest.raises(DataError) as failure:
        text_tax(tiny_backbone(), {"base": None}, [one, two], tmp_path, {"base": "b"})
    assert [f"{p.where}: {p.field}" for p in failure.value.problems] == [f"{one}:1: text", f"{two}:1: text"]
    short = written(tmp_path / "short.jsonl", ["x"])
    with pytest.raises(DataError, match=r"short\.jsonl: holds no text of two tokens"):
        text_tax(tiny_backbone(), {"base": None}, [short], tmp_path, {"base": "b"})


def test_files_of_the_same_name_keep_their_paths() -> None:
    assert names_of(["a/x.jsonl", "b/x.jsonl", "c/y.jsonl"]) == {
        "a/x.jsonl": "a/x.jsonl",
        "b/x.jsonl": "b/x.jsonl",
        "c/y.jsonl": "y.jsonl",
    }


# -------------------------------------------------------------------- the section


def text_items(values: list[float], counts: list[float], name: str = "t.jsonl") -> list[Items]:
    return [Items(name, "loss", tuple(values), tuple(counts))]


def test_the_loss_is_that_of_all_tokens_and_the_change_is_paired() -> None:
    counts = [10.0, 30.0, 20.0, 40.0]
    base, sft = np.array([20.0, 90.0, 30.0, 100.0]), np.array([21.0, 93.0, 32.0, 104.0])
    found = section({"base": text_items(base, counts), "sft": text_items(sft, counts)}, {}, {}, against="base")
    assert found is not None and list(found) == ["text", "against"] and found["against"] == "base"
    (entry,) = found["text"]
    assert (entry["name"], entry["rows"], entry["tokens"]) == ("t.jsonl", 4, 100)
    assert entry["loss"]["base"]["value"] == pytest.approx(2.4) and entry["loss"]["sft"]["value"] == pytest.approx(2.5)
    assert list(entry["change"]) == ["sft"] and entry["change"]["sft"]["value"] == pytest.approx(0.1)
    # All possible resamples of four texts, each as likely as any other: the exact bootstrap distribution.
    draws = np.stack(np.meshgrid(*[np.arange(4)] * 4), -1).reshape(-1, 4)
    n = np.array(counts)[draws].sum(1)
    exact = np.quantile(base[draws].sum(1) / n, [0.025, 0.975])
    paired = np.quantile((sft - base)[draws].sum(1) / n, [0.025, 0.975])
    low, high = entry["loss"]["base"]["low"], entry["loss"]["base"]["high"]
    assert [low, high] == pytest.approx(exact, abs=0.05)
    change = entry["change"]["sft"]
    assert [change["low"], change["high"]] == pytest.approx(paired, abs=0.01) and change["low"] > 0


def test_the_change_covers_the_true_one_as_often_as_it_says() -> None:
    rng, hits, runs = np.random.default_rng(0), 0, 300
    for run in range(runs):
        counts = rng.integers(20, 200, size=40).astype(float)
        base = counts * rng.normal(3.0, 0.5, size=40)
        sft = base + counts * rng.normal(0.2, 0.1, size=40)
        found = section(
            {"base": text_items(base, counts), "sft": text_items(sft, counts)},
            {},
            {},
            against="base",
            resamples=400,
            seed=run,
        )
        assert found is not None
        change = found["text"][0]["change"]["sft"]
        hits += change["low"] <= 0.2 <= change["high"]
    assert 0.90 <= hits / runs <= 0.98


def test_losses_of_another_tokenizer_are_shown_but_not_subtracted() -> None:
    measured = {
        "base": text_items([20.0, 30.0], [10, 10]),
        "sft": text_items([19.0, 31.0], [10, 10]),
        "other": text_items([25.0, 35.0], [8, 9]),
    }
    found = section(measured, {}, {}, against="base")
    assert found is not None
    (entry,) = found["text"]
    assert list(entry["loss"]) == ["base", "sft", "other"] and list(entry["change"]) == ["sft"]


def test_questions_and_tasks_are_named_as_they_are_in_the_file() -> None:
    ones = (1.0,) * 4
    base, ppo = Items("c.jsonl", "acc_norm", (1, 1, 0, 1), ones), Items("c.jsonl", "acc_norm", (1, 0, 0, 0.5), ones)
    task = Items("arc_easy", "acc", (1, 0, 1), (1.0,) * 3)
    found = section({}, {"base": [base], "ppo": [ppo]}, {"base": [task], "ppo": [task]}, against="base", resamples=100)
    assert found is not None and json.loads(json.dumps(found)) == found
    (choices,), (tasks,) = found["choices"], found["tasks"]
    assert {name: e["value"] for name, e in choices["accuracy"].items()} == {"base": 0.75, "ppo": 0.375}
    assert choices["change"]["ppo"]["value"] == -0.375 and choices["metric"] == "acc_norm" and choices["rows"] == 4
    assert tasks["metric"] == "acc" and tasks["change"]["ppo"] == {"value": 0, "low": 0, "high": 0}
    assert tasks["value"]["base"]["value"] == pytest.approx(2 / 3)
    assert section({}, {}, {}, against="base") is None


def test_policies_that_were_measured_on_other_items_are_not_compared() -> None:
    one, two = text_items([20.0, 30.0], [10, 10]), text_items([20.0], [10])
    with pytest.raises(ValueError, match="other items"):
        section({"base": one, "sft": two}, {}, {}, against="base")
    with pytest.raises(ValueError, match="ppo was not measured"):
        section({"base": one, "sft": one}, {}, {}, against="ppo")
    with pytest.raises(ValueError, match="2 values for 1 counts"):
        text_items([1.0, 2.0], [1])
