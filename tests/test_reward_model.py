"""Scores of runs and of anyone's models: transformers and PEFT on single, unpadded texts are the oracle."""

import json

import pytest
import torch
from backbones import add_head, base_of_type, lora, stir, tiny_directory
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import make_tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    pipeline,
)

from rlhf_kit import rewards
from rlhf_kit.checkpoint import Manifest, finish, open_work
from rlhf_kit.classifier import write_adapter, write_merged
from rlhf_kit.errors import CheckpointError, DataError, ModelError, RlhfKitError
from rlhf_kit.models import Backbone
from rlhf_kit.recipe import ModelSection, Recipe
from rlhf_kit.records import Message
from rlhf_kit.reward_model import RewardModel

KINDS = ("llama", "qwen3", "gpt2")
CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Name three colours."},
    {"role": "assistant", "content": "Red, green and blue."},
    {"role": "user", "content": "Count to five."},
]
PROMPTS = ["Why is the sky blue?", CHAT, "Hi", "Why is the sky blue?", "Why is the sky blue?", CHAT, "Say hello. " * 9]
RESPONSES = ["It scatters.", "One, two, three, four, five.", "Hello!", "No.", "I do not know, sorry.", "Six.", ""]
ENDED = [True, True, True, False, True, True, True]


def rendered(prompt, response, ended=True):
    """What the tiny tokenizer's ChatML makes of a prompt and its response in training, written out."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    return f"{text}<|im_start|>assistant\n", response + ("<|im_end|>" if ended else "")


def model_directory(kind, directory):
    base = base_of_type(kind)
    base.config.pad_token_id = base.config.eos_token_id  # as many a base says: nothing to read a score by
    base.save_pretrained(directory)
    make_tiny_tokenizer().save_pretrained(directory)
    return directory


def make_run(out, model, /, changes=None, mean=0.7, **recipe):
    """A run with a reward stage that was never trained: an adapter that does something, and a head."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    backbone = Backbone(base, AutoTokenizer.from_pretrained(model), "someone/tiny")
    backbone.add_adapter("reward", lora())
    stir(backbone, "reward", 3)
    head = add_head(backbone, "reward", 4)
    head.mean.fill_(mean)
    head.std.fill_(1.6)
    head.spread.fill_(0.5)
    recipe = {"model": {"name_or_path": str(model), "dtype": "float32"}, **recipe}
    work = open_work(out / "reward", {})
    rewards.save(backbone, work)
    as_written = Recipe.model_validate(recipe).model_dump(mode="json") | (changes or {})
    finish(work, out / "reward", Manifest("reward", {}, {}, 1.0, {"id": "someone/tiny"}, {}, as_written))
    return out


def by_hand(run, model, texts):
    """Each text alone through transformers' base and PEFT's adapter, the head's formula written out."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(run / "reward")).eval()
    head = load_file(run / "reward" / "head.safetensors")
    scores = []
    for text in texts:
        ids = torch.tensor([tokenizer(text[0], add_special_tokens=False)["input_ids"]
                            + tokenizer(text[1], add_special_tokens=False)["input_ids"]])  # fmt: skip
        with torch.no_grad():
            state = adapted(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
        raw = (head["linear.weight"][0] * state).sum() + head["linear.bias"][0]
        scores.append((raw / head["spread"][0] - head["mean"]) / head["std"])
    return torch.stack(scores)


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_scores_as_base_adapter_and_head_do_by_hand_on_each_text_alone(kind, tmp_path):
    model = model_directory(kind, tmp_path / "model")
    run = make_run(tmp_path / "run", model)
    expected = by_hand(run, model, [rendered(*each) for each in zip(PROMPTS, RESPONSES, ENDED, strict=True)])
    done = []
    for where in (run, str(run / "reward")):
        judge = RewardModel.from_run(where)
        found = judge.score(PROMPTS, RESPONSES, ended=ENDED, progress=done.append)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert (found.dtype, found.device.type, judge.name) == (torch.float32, "cpu", str(where))
    assert sum(done) == 2 * len(PROMPTS) and expected.std() > 0.05
    assert (judge.shortened_prompts, judge.cut_responses) == (0, 0)
    order = [4, 2, 6, 0, 5, 1, 3]
    shuffled = judge.score([PROMPTS[i] for i in order], [RESPONSES[i] for i in order], ended=[ENDED[i] for i in order])
    torch.testing.assert_close(shuffled, expected[order], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), tiny_directory())


@pytest.fixture(scope="module")
def judge(run):
    return RewardModel.from_run(run)


def test_prompts_are_texts_tuples_of_messages_or_lists_of_mappings(judge):
    messages = tuple(Message(**turn) for turn in CHAT)
    scores = judge.score([CHAT, messages, "Hi", [{"role": "user", "content": "Hi"}]], ["Six.", "Six.", "No.", "No."])
    torch.testing.assert_close(scores[[0, 2]], scores[[1, 3]], atol=1e-5, rtol=1e-5)
    assert abs(scores[0] - scores[2]) > 1e-3


def test_what_cannot_be_scored_is_said_before_anything_is(judge):
    with pytest.raises(ValueError, match="2 prompts, 1 responses and 1 endings"):
        judge.score(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="1 prompts, 1 responses and 2 endings"):
        judge.score(["a"], ["c"], ended=[True, False])
    with pytest.raises(DataError) as caught:
        judge.score(["a", " ", CHAT[:3]], ["c"] * 3)
    assert [problem.where for problem in caught.value.problems] == ["prompt 2", "prompt 3"]
    assert judge.score([], []).shape == (0,)


def test_silence_is_an_end(judge):
    """No response is so short that nothing of it is left: the score would be read off another text."""
    others = ["Hi", "Hi", "Hi"], ["Hello!", "", "I do not know, sorry."]
    for ended in ([True] * 3, [False] * 3):
        assert judge.score(*others, ended=ended)[1] == pytest.approx(judge.score(["Hi"], [""]).item(), abs=1e-5)


def test_lengths_are_tokens_without_eos(judge):
    tokenizer = make_tiny_tokenizer()
    assert judge.lengths(["", "Hello!"]) == [0, len(tokenizer("Hello!")["input_ids"])]


def test_the_reward_models_own_base_is_taken(tmp_path):
    own = {"name_or_path": str(tiny_directory()), "dtype": "float32"}
    run = make_run(tmp_path / "run", tiny_directory(), model={"name_or_path": "no/such"}, reward={"model": own})
    expected = by_hand(run, tiny_directory(), [rendered("Hi", "Hello!")])
    torch.testing.assert_close(RewardModel.from_run(run).score(["Hi"], ["Hello!"]), expected, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_cut_as_in_training_and_counted(tmp_path):
    data, reward = {"max_prompt_length": 120}, {"max_length": 150}
    model = tiny_directory()
    run = make_run(tmp_path / "run", model, data=data, reward=reward)
    judge = RewardModel.from_run(run)
    long = [
        CHAT[0],
        *({"role": r, "content": f"{n} colours, please."} for n in range(5) for r in ("user", "assistant")),
    ]
    long.append({"role": "user", "content": "Count to five."})
    tokens = AutoTokenizer.from_pretrained(model)
    # Whole turns go, the system turn stays: as many as are too many for 120 tokens.
    kept = next(
        n for n in range(2, 12, 2) if len(tokens(rendered([long[0], *long[1 + n :]], "")[0])["input_ids"]) <= 120
    )
    short = [long[0], *long[1 + kept :]]
    found = judge.score([long, short, long], ["Six.", "Six.", "No."])
    assert found[0] == pytest.approx(found[1].item(), abs=1e-5) and judge.shortened_prompts == 1
    torch.testing.assert_close(found, by_hand(run, model, [rendered(short, r) for r in ("Six.", "Six.", "No.")]),
                               atol=1e-4, rtol=1e-4)  # fmt: skip
    # A long response takes room from its own prompt, never from that of another response; and never more than half.
    endless = "one two three " * 40
    alone = judge.score([long], [endless])
    together = judge.score([long, long, "Hi"], ["Six.", endless, "No."])
    torch.testing.assert_close(together[:2], torch.stack([found[0], alone[0]]), atol=1e-4, rtol=1e-4)
    assert judge.cut_responses == 2 and judge.shortened_prompts == 1
    prompt = next(
        rendered([long[0], *long[1 + n :]], "")[0]
        for n in range(2, 12, 2)
        if len(tokens(rendered([long[0], *long[1 + n :]], "")[0])["input_ids"]) <= 75
    )
    assert prompt.count("user") > 1
    room = 150 - len(tokens(prompt)["input_ids"])
    cut = tokens.decode(tokens(endless)["input_ids"][:room])
    torch.testing.assert_close(alone, by_hand(run, model, [(prompt, cut)]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("nothing", "no finished reward stage"),
        ("weights", "missing or changed since the stage finished"),
        ("stage", "is a sft stage, which scores nothing"),
        ("recipe", "its recipe is not one of this version"),
    ],
)
def test_a_directory_that_is_no_reward_model_is_said(tmp_path, damage, said):
    out = tmp_path / "run"
    make_run(out, tiny_directory(), {"model": 3} if damage == "recipe" else None)
    manifest = out / "reward" / "manifest.json"
    if damage == "nothing":
        manifest.unlink()
    elif damage == "weights":
        (out / "reward" / "head.safetensors").write_bytes(b"junk")
    elif damage == "stage":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"stage": "sft"}))
    with pytest.raises(CheckpointError, match=said):
        RewardModel.from_run(out)


# ---------------------------------------------------------------- anyone's models


def classifier(kind, directory, *, pad, template=True, **fields):
    """A classification model with one label on disk; `pad` is that of tokenizer and configuration."""
    tokenizer = make_tiny_tokenizer()
    # Ends with EOS, as many do.
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>") if template else None
    # Plain text gets a token in front, which a template writes itself.
    begin = ("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    config = base_of_type(kind).config
    config.num_labels = 1
    config.pad_token_id = {"own": tokenizer.pad_token_id, "none": None, "eos": tokenizer.eos_token_id, "bad": -1}[pad]
    tokenizer.pad_token = {"own": tokenizer.pad_token, "none": None, "eos": tokenizer.eos_token, "bad": None}[pad]
    for name, value in fields.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def alone(directory, texts=None, model=None):
    """What transformers says of each text by itself."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = model or AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    scores = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turns = [*turns, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        with torch.no_grad():
            scores.append(model(input_ids=torch.tensor([ids])).logits[0, 0])
    return torch.stack(scores)


@pytest.mark.parametrize("pad", ["own", "none", "eos", "bad"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_others_scores_as_transformers_does_on_each_text_alone(kind, pad, tmp_path):
    directory = classifier(kind, tmp_path, pad=pad)
    expected = alone(directory)
    judge = RewardModel.from_pretrained(directory, dtype="float32")
    done = []
    found = judge.score(PROMPTS, RESPONSES, ended=ENDED, progress=done.append)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (found.dtype, judge.name, sum(done)) == (torch.float32, directory, len(PROMPTS)) and expected.std() > 0.05
    order = [6, 3, 0, 5, 2, 1, 4]
    shuffled = judge.score([PROMPTS[i] for i in order], [RESPONSES[i] for i in order])
    torch.testing.assert_close(shuffled, expected[order], atol=1e-5, rtol=1e-4)


def test_more_texts_than_a_batch_has(tmp_path):
    directory = classifier("llama", tmp_path, pad="none")
    judge = RewardModel.from_pretrained(directory, dtype="float32")
    found = judge.score(PROMPTS * 6, RESPONSES * 6)
    torch.testing.assert_close(found, alone(directory).repeat(6), atol=1e-5, rtol=1e-4)


def test_without_a_chat_template_it_is_what_the_pipeline_says_of_the_plain_text(tmp_path):
    directory = classifier("qwen3", tmp_path, pad="own", template=False, problem_type="regression")
    said = pipeline("text-classification", model=directory, dtype=torch.float32, function_to_apply="none")
    texts = ["Why is the sky blue? It scatters.", "Hi Hello!"]
    expected = [one["score"] for one in said(texts, batch_size=1)]
    found = RewardModel.from_pretrained(directory, dtype="float32").score(["Why is the sky blue?", "Hi"],
                                                                         [" It scatters.", " Hello!"])  # fmt: skip
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_models_like_bert_are_given_prompt_and_response_as_a_pair(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = BertTokenizerFast(vocab={word: n for n, word in enumerate(words)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        sizes |= dict(vocab_size=len(words), max_position_embeddings=24, num_labels=1)
        config = BertConfig(**sizes, initializer_range=0.5)
        model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = RewardModel.from_pretrained(str(tmp_path), dtype="float32")
    prompts, responses = ["why", "how are you", "abcdefghijklmnopqrstuvwxyz"], ["because", "fine", "zyx"]
    with torch.no_grad():
        pairs = [tokenizer(p, r, return_tensors="pt", truncation="longest_first", max_length=24)
                 for p, r in zip(prompts, responses, strict=True)]  # fmt: skip
        expected = torch.stack([model(**pair).logits[0, 0] for pair in pairs])
    torch.testing.assert_close(judge.score(prompts, responses), expected, atol=1e-5, rtol=1e-4)
    assert judge.shortened_prompts == 1


def test_in_bfloat16_the_head_is_exact(tmp_path):
    directory = classifier("llama", tmp_path, pad="own")
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}],
                                        return_tensors="pt", return_dict=False)  # fmt: skip
    with torch.no_grad():
        state = model.model(input_ids=ids).last_hidden_state[0, -1].float()
        expected = (state * model.score.weight[0].float()).sum()
    found = RewardModel.from_pretrained(directory, dtype="bfloat16").score(["Hi"], ["Yes."])
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    assert found.item() != found.bfloat16().float().item()


def test_a_conversation_beyond_the_context_loses_its_oldest_turns_then_its_beginning(tmp_path):
    directory = classifier("llama", tmp_path, pad="own", max_position_embeddings=64)
    judge = RewardModel.from_pretrained(directory, dtype="float32")
    turns = [{"role": r, "content": f"{n} colours, please."} for n in range(6) for r in ("user", "assistant")]
    last = {"role": "user", "content": "Hi"}
    tokenizer = AutoTokenizer.from_pretrained(directory)

    def ids(messages, response):
        whole = [*messages, {"role": "assistant", "content": response}]
        return tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)

    kept = next(n for n in range(0, 12, 2) if len(ids([CHAT[0], *turns[n:], last], "Yes.")) <= 64)
    found = judge.score([[CHAT[0], *turns, last], [CHAT[0], *turns[kept:], last]], ["Yes.", "Yes."])
    assert found[0] == pytest.approx(found[1].item(), abs=1e-5) and judge.shortened_prompts == 1 and 0 < kept < 12
    long = "one two three " * 30
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids([{"role": "user", "content": long}], "Yes.")[-64:]])).logits[0, 0]
    torch.testing.assert_close(judge.score([long], ["Yes."])[0], expected, atol=1e-5, rtol=1e-4)
    assert (judge.shortened_prompts, judge.cut_responses) == (2, 0)
    judge.score(["Hi"], [long])
    assert (judge.shortened_prompts, judge.cut_responses) == (3, 1)


def test_a_score_that_is_not_finite_is_named(tmp_path):
    directory = classifier("llama", tmp_path, pad="own")
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.embed_tokens.weight"][make_tiny_tokenizer()("Q")["input_ids"][0]] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    judge = RewardModel.from_pretrained(directory, dtype="float32")
    with pytest.raises(RlhfKitError, match=r"score of response 2 of 4 is nan, to the prompt 'Name a Q \.' \(2 such"):
        judge.score(["Hi", "Name a  Q\n.", "Hi", "Hi"], ["No.", "No.", "Yes.", "Q"])


def test_models_that_score_nothing_are_refused(tmp_path):
    with pytest.raises(ModelError, match="has 2 labels, a reward model has one"):
        RewardModel.from_pretrained(str(tiny_directory()))
    headless = tmp_path / "headless"
    base = base_of_type("llama")
    base.config.num_labels = 1
    base.save_pretrained(headless)
    make_tiny_tokenizer().save_pretrained(headless)
    with pytest.raises(ModelError, match=r"score\.weight is not among its weights"):
        RewardModel.from_pretrained(str(headless))
    with pytest.raises(ModelError, match="neither a run with a finished reward stage nor a model"):
        RewardModel.from_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="no/such: cannot be loaded as a reward model"):
        RewardModel.from_pretrained("no/such")


def test_a_template_that_does_not_take_a_conversation_is_said(tmp_path):
    directory = classifier("llama", tmp_path, pad="own")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = "{{ raise_exception('no system turn, please') }}"
    tokenizer.save_pretrained(directory)
    with pytest.raises(ModelError, match=r"its chat template does not take .*no system turn, please"):
        RewardModel.from_pretrained(directory).score(["Hi"], ["No."])


# ---------------------------------------------------------------- adapters


def test_an_adapter_of_others_scores_as_peft_does(tmp_path):
    base = classifier("llama", tmp_path / "base", pad="own")
    model = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        adapted = get_peft_model(model, lora(task_type="SEQ_CLS", init_lora_weights=False)).eval()
        torch.nn.init.normal_(adapted.base_model.model.score.modules_to_save["default"].weight)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = alone(base, model=adapted)
    found = RewardModel.from_pretrained(str(tmp_path / "adapter"), dtype="float32").score(PROMPTS, RESPONSES)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (found - alone(base)).abs().max() > 0.1


def test_an_adapter_without_a_trained_head_is_refused(tmp_path):
    base = base_of_type("llama")
    base.save_pretrained(tmp_path / "base")
    make_tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, dtype=torch.float32)
    get_peft_model(model, lora(task_type="SEQ_CLS")).save_pretrained(tmp_path / "adapter")
    RewardModel.from_pretrained(str(tmp_path / "adapter"))
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    without = {key: value for key, value in weights.items() if "score" not in key}
    save_file(without, tmp_path / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"score\.weight is not among its weights"):
        RewardModel.from_pretrained(str(tmp_path / "adapter"))
    get_peft_model(base, lora()).save_pretrained(tmp_path / "policy")
    with pytest.raises(ModelError, match="is an adapter for CAUSAL_LM, not for SEQ_CLS"):
        RewardModel.from_pretrained(str(tmp_path / "policy"))


# ---------------------------------------------------------------- what this kit exports


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_scores_as_its_run(kind, merged, tmp_path):
    """The same tokens, ended or not, and the offset added."""
    model = model_directory(kind, tmp_path / "model")
    run = make_run(tmp_path / "run", model)
    expected = RewardModel.from_run(run).score(PROMPTS, RESPONSES, ended=ENDED)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    backbone = Backbone(base, AutoTokenizer.from_pretrained(model), str(model))
    rewards.load(backbone, run / "reward")
    (out := tmp_path / "export").mkdir()
    backbone.tokenizer.save_pretrained(out)
    section = ModelSection(name_or_path=str(model))
    if merged:
        write_merged(backbone, section, out)
    else:
        write_adapter(backbone, run / "reward", section, out)
    judge = RewardModel.from_pretrained(str(out), dtype="float32")
    torch.testing.assert_close(judge.score(PROMPTS, RESPONSES, ended=ENDED), expected, atol=1e-4, rtol=1e-4)
    (out / "manifest.json").write_text("{}")  # as the pipeline puts it there
    for where in (run, out):  # the one as a run, the other as anyone's
        opened = RewardModel.open(where).score(["Hi", "Hi"], ["No.", "Red, green and blue."])
        torch.testing.assert_close(opened, judge.score(["Hi", "Hi"], ["No.", "Red, green and blue."]), atol=0.2, rtol=0)
