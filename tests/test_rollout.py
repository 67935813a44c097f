"""Generation: transformers' own `generate` is the oracle for what is sampled, a hook for what it costs."""

import pytest
import torch
from backbones import backbone_of_type, lora, stir, tiny_backbone
from transformers import GenerationConfig

from rlhf_kit.rollout import Drawing, Ending, beam_search, draw, sample, sample_in_batches

PROMPTS = [[10, 20, 30], [40], [50, 60, 70, 80, 90, 100, 110], [33, 34], [400, 401, 402, 403]]


def greedy_alone(backbone, name, prompt, count):
    """transformers' generate for one prompt, cut after EOS."""
    ids = torch.tensor([prompt])
    with backbone.role(name):
        whole = backbone.base.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
        )[0].tolist()
    return whole[len(prompt) :]


@pytest.mark.parametrize("name", [None, "policy"])
def test_greedy_is_transformers_generate_row_by_row(name):
    backbone = tiny_backbone("policy")
    with backbone.role(name):
        found = sample(backbone, PROMPTS, max_new_tokens=12, temperature=0)
    assert found == [greedy_alone(backbone, name, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(r) for r in found}) > 1


@pytest.mark.parametrize("model_type", ["qwen3", "gpt2", "gemma2"])
def test_greedy_is_transformers_generate_on_other_architectures(model_type):
    # A window smaller than the text, so that Gemma's sliding layers do slide.
    backbone = backbone_of_type(model_type, **({"sliding_window": 6} if model_type == "gemma2" else {}))
    backbone.add_adapter("policy", lora())
    stir(backbone, "policy", 1)
    with backbone.role("policy"):
        found = sample(backbone, PROMPTS, max_new_tokens=10, temperature=0)
    assert found == [greedy_alone(backbone, "policy", prompt, 10) for prompt in PROMPTS]


def with_eos_often(backbone, boost=6.0):
    """Makes EOS likely enough that rows end at different steps."""
    eos = backbone.tokenizer.eos_token_id
    plain = type(backbone).next_token_logits

    def likelier(hidden):
        logits = plain(backbone, hidden)
        logits[:, eos] += boost
        return logits

    backbone.next_token_logits = likelier
    return eos


def test_eos_is_part_of_the_response_and_its_last_token():
    backbone = tiny_backbone("policy")
    eos = with_eos_often(backbone)
    with backbone.role("policy"):
        found = sample(backbone, PROMPTS * 6, max_new_tokens=8, generator=torch.Generator().manual_seed(1))
    assert all(1 <= len(r) <= 8 for r in found)
    assert all(eos not in r[:-1] for r in found)
    ended = [r for r in found if r[-1] == eos]
    assert 0 < len(ended) < len(found) or all(len(r) < 8 for r in found)
    assert all(len(r) == 8 for r in found if r[-1] != eos)
    assert len({len(r) for r in found}) > 2


def test_rows_that_have_ended_leave_the_batch_and_the_others_do_not_notice():
    backbone = tiny_backbone("policy")
    with_eos_often(backbone)
    rows = []
    backbone.decoder.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(kwargs["input_ids"].size(0)), with_kwargs=True
    )
    with backbone.role("policy"):
        found = sample(backbone, PROMPTS * 6, max_new_tokens=8, generator=torch.Generator().manual_seed(1))
    # The prompt is read once for all its copies; then step t runs for the rows whose response has more than t tokens.
    assert rows[0] == len(PROMPTS)
    assert rows[1:] == [sum(len(r) > t for r in found) for t in range(1, len(rows))]
    assert rows[1] > len(PROMPTS) and rows[-1] < 30
    assert len(rows) == max(map(len, found))


def test_a_row_goes_on_as_if_it_were_alone_when_its_neighbours_leave():
    backbone = tiny_backbone("policy")
    plain = sample(backbone, PROMPTS, max_new_tokens=10, temperature=0)
    # EOS becomes what the first row says third: it leaves then, and some others perhaps.
    backbone.tokenizer.eos_token_id = plain[0][2]
    cut = sample(backbone, PROMPTS, max_new_tokens=10, temperature=0)
    for whole, part in zip(plain, cut, strict=True):
        stop = whole.index(plain[0][2]) + 1 if plain[0][2] in whole else len(whole)
        assert part == whole[:stop]
    assert min(map(len, cut)) <= 3


# Critical values of chi-square at p = 0.001, from the tables.
CHI_SQUARE = {4: 18.47, 9: 27.88}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0, -1.5, 0.5, 1.5, -0.5, 0.2])
    count = 40_000
    tokens = draw(logits.expand(count, -1), temperature, torch.Generator().manual_seed(0))
    expected = torch.softmax(logits.double() / temperature, -1) * count
    seen = torch.bincount(tokens, minlength=10).double()
    assert float(((seen - expected) ** 2 / expected).sum()) < CHI_SQUARE[9]


def test_draws_follow_the_softmax_over_a_large_vocabulary():
    logits = torch.randn(50_000, generator=torch.Generator().manual_seed(1)) * 2
    count = 600
    tokens = torch.cat(
        [draw(logits.expand(50, -1), 1.0, g) for g in [torch.Generator().manual_seed(3)] for _ in range(12)]
    )
    share = torch.softmax(logits.double(), -1).view(5, -1).sum(1)
    seen = torch.bincount(tokens // 10_000, minlength=5).double()
    assert float(((seen - share * count) ** 2 / (share * count)).sum()) < CHI_SQUARE[4]


def test_what_cannot_be_is_never_drawn():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(20_000, -1)
    tokens = draw(logits, 1.0, torch.Generator().manual_seed(0))
    assert set(tokens.tolist()) == {1, 3}


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 1.0], [9.0, 3.0, 1.0]])
    assert draw(logits, 0, None).tolist() == [1, 0]
    assert draw(logits, 1e-4, torch.Generator().manual_seed(0)).tolist() == [1, 0]


def test_the_first_token_of_many_samples_follows_the_models_softmax():
    backbone = tiny_backbone("policy")
    prompt, count = [10, 20, 30], 4000
    with backbone.role("policy"), torch.no_grad():
        found = sample(backbone, [prompt] * count, max_new_tokens=1, generator=torch.Generator().manual_seed(5))
        share = torch.softmax(backbone.base(input_ids=torch.tensor([prompt])).logits[0, -1].double(), -1)
    order = share.argsort(descending=True)
    groups = torch.empty(len(share), dtype=torch.long)
    # Ten groups of about the same weight, from the few likeliest tokens to the many unlikely ones.
    groups[order] = ((share[order].cumsum(0) - share[order] / 2) * 10).long().clamp(max=9)
    expected = torch.zeros(10, dtype=torch.double).index_add(0, groups, share) * count
    assert expected.min() > 5
    seen = torch.bincount(groups[torch.tensor(found).squeeze(1)], minlength=10).double()
    assert float(((seen - expected) ** 2 / expected).sum()) < CHI_SQUARE[9]


def test_samples_are_repeatable_and_differ_with_the_seed():
    backbone = tiny_backbone()

    def run(seed):
        return sample(backbone, PROMPTS, max_new_tokens=6, generator=torch.Generator().manual_seed(seed))

    assert run(1) == run(1) != run(2)


def test_on_token_hears_the_first_prompt_only_and_training_mode_comes_back():
    backbone = tiny_backbone()
    heard = []
    backbone.train()
    found = sample(backbone, PROMPTS, max_new_tokens=6, temperature=0, on_token=heard.append)
    assert heard == found[0]
    assert backbone.training
    backbone.eval()
    sample(backbone, PROMPTS[:1], max_new_tokens=1)
    assert not backbone.training


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_batches_of_like_length_give_each_prompt_its_own_answer(size):
    backbone, done = tiny_backbone(), []
    found = sample_in_batches(backbone, PROMPTS, batch_size=size, progress=done.append, max_new_tokens=5, temperature=0)
    assert found == [greedy_alone(backbone, None, prompt, 5) for prompt in PROMPTS]
    assert sum(done) == len(PROMPTS)


# ---------------------------------------------------------------- what may be drawn


@pytest.mark.parametrize("count", [1, 3])
def test_top_k_draws_from_the_likeliest_tokens_in_their_proportions(count):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5, -3.0])
    draws, temperature = 20_000, 0.7
    tokens = Drawing(temperature, top_k=count, generator=torch.Generator().manual_seed(0))(logits.expand(draws, -1))
    allowed = [0, 4, 1][:count]
    seen = torch.bincount(tokens, minlength=6).double()
    assert float(seen[allowed].sum()) == draws
    expected = torch.softmax(logits[allowed].double() / temperature, -1) * draws
    assert float(((seen[allowed] - expected) ** 2 / expected).sum()) < CHI_SQUARE[4]  # of fewer degrees of freedom


def test_top_p_draws_from_the_likeliest_tokens_that_make_up_the_share():
    share = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15], dtype=torch.double)
    draws = 20_000
    generator = torch.Generator().manual_seed(0)
    tokens = Drawing(top_p=0.8, generator=generator)(share.log().float().expand(draws, -1))
    # 0.4 + 0.3 are too little, with 0.15 it is enough: three tokens.
    allowed = [1, 3, 4]
    seen = torch.bincount(tokens, minlength=5).double()
    assert float(seen[allowed].sum()) == draws
    expected = share[allowed] / 0.85 * draws
    assert float(((seen[allowed] - expected) ** 2 / expected).sum()) < CHI_SQUARE[4]


def test_temperature_comes_before_top_p():
    logits = torch.tensor([2.0, 1.0, 0.0]).expand(5000, -1)
    # At temperature 1 the first token has 0.67 of the likelihood and is enough; at 5 it has 0.40.
    assert set(Drawing(1.0, top_p=0.6, generator=torch.Generator().manual_seed(0))(logits).tolist()) == {0}
    assert set(Drawing(5.0, top_p=0.6, generator=torch.Generator().manual_seed(0))(logits).tolist()) == {0, 1}


def test_top_k_and_top_p_of_whole_answers_are_those_of_the_models_own_logits():
    backbone = tiny_backbone("policy")
    with backbone.role("policy"), torch.no_grad():
        found = sample(
            backbone, PROMPTS * 20, max_new_tokens=4, top_k=5, stop_token_ids=(),
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        for prompt, response in zip(PROMPTS * 20, found, strict=True):
            logits = backbone.base(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            assert all(t in best for t, best in zip(response, logits.topk(5).indices.tolist(), strict=True))
    assert len({tuple(response) for response in found}) > 50


# ---------------------------------------------------------------- what ends a response


def test_no_response_ends_before_the_least_tokens():
    backbone = tiny_backbone("policy")
    eos = with_eos_often(backbone, boost=30.0)  # EOS is all but certain
    options = {"max_new_tokens": 9, "generator": torch.Generator().manual_seed(1)}
    with backbone.role("policy"):
        assert {len(r) for r in sample(backbone, PROMPTS * 8, **options)} == {1}
        found = sample(backbone, PROMPTS * 8, min_new_tokens=4, **options)
    assert {len(r) for r in found} == {4}
    assert all(eos not in r[:-1] and r[-1] == eos for r in found)


@pytest.mark.parametrize("least", [1, 4])
def test_other_tokens_end_a_response_or_none_does(least):
    backbone = tiny_backbone()
    plain = sample(backbone, PROMPTS, max_new_tokens=10, temperature=0, stop_token_ids=())
    assert all(len(r) == 10 for r in plain)
    stops = {plain[0][2], plain[1][5]}
    options = {"min_new_tokens": least, "stop_token_ids": tuple(stops), "temperature": 0}
    cut = sample(backbone, PROMPTS, max_new_tokens=10, **options)
    for response, whole in zip(cut, plain, strict=True):
        assert not stops & set(response[:-1])
        assert response[-1] in stops or len(response) == 10
        assert len(response) >= least
        if least == 1:
            assert response == whole[: len(response)]
    assert min(map(len, cut)) <= max(3, least)


def test_eos_may_be_said_where_it_ends_nothing():
    backbone = tiny_backbone("policy")
    eos = with_eos_often(backbone, boost=30.0)
    found = sample(backbone, PROMPTS, max_new_tokens=5, stop_token_ids=(), generator=torch.Generator().manual_seed(1))
    assert found == [[eos] * 5] * len(PROMPTS)


def scripted(backbone, response):
    """Makes the model say these tokens, and EOS after them."""
    said = iter([*response, *[backbone.tokenizer.eos_token_id] * 99])
    backbone.next_token_logits = lambda hidden: torch.nn.functional.one_hot(
        torch.tensor([next(said)]), len(backbone.tokenizer)
    ).float()


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("one. two. three", ". t", "one. t"),
        ("abcSTOPdef", "STOP", "abcSTOP"),
        ("zwölf Öfen € und mehr", "€", "zwölf Öfen €"),
        ("日本語の本", "語の", "日本語の"),
        ("no such thing", "€", "no such thing"),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_a_text_ends_a_response_as_soon_as_it_stands_there_whole(text, stop, kept, bytewise):
    backbone = tiny_backbone()
    tokenizer = backbone.tokenizer
    # By the tokenizer's own merges, or a token for each byte: a character of several bytes is then whole only with its
    # last token, and the stop text goes over several.
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    letters = "".join(piece for piece, _ in pieces)
    ids = (
        tokenizer.convert_tokens_to_ids(list(letters))
        if bytewise
        else tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    assert tokenizer.decode(ids) == text
    scripted(backbone, ids)
    (found,) = sample(backbone, [[10, 20]], max_new_tokens=60, temperature=0, stop=["never", stop])
    shown = tokenizer.decode(found)
    ending = Ending((tokenizer.eos_token_id,), 60, ("never", stop))
    assert ending.ended(found, tokenizer)
    if stop in text:
        assert stop in shown and shown.startswith(kept) and stop not in tokenizer.decode(found[:-1])
        assert not bytewise or shown == kept
    else:
        assert shown == text + tokenizer.eos_token


def test_a_stop_text_in_the_prompt_ends_nothing_and_answers_with_it_count_as_ended():
    backbone = tiny_backbone()
    tokenizer = backbone.tokenizer
    prompt, answer = tokenizer("one. two")["input_ids"], tokenizer("three four. five")["input_ids"]
    scripted(backbone, answer)
    (found,) = sample(backbone, [prompt], max_new_tokens=20, temperature=0, stop=["."])
    assert tokenizer.decode(found) == "three four."
    ending = Ending((tokenizer.eos_token_id,), 20, (".",))
    assert ending.ended(found, tokenizer) and not ending.ended(found[:-1], tokenizer)


def test_a_stop_text_waits_for_the_least_tokens():
    backbone = tiny_backbone()
    tokenizer = backbone.tokenizer
    answer = tokenizer.convert_tokens_to_ids(list("a.b.c"))
    scripted(backbone, answer)
    (found,) = sample(backbone, [[10]], max_new_tokens=20, min_new_tokens=3, temperature=0, stop=["."])
    assert tokenizer.decode(found) == "a.b"  # the text stood there before; it ends as soon as it may


# ---------------------------------------------------------------- a prompt that comes several times


def test_a_prompt_that_comes_several_times_is_read_once():
    backbone = tiny_backbone("policy")
    order = [2, 0, 2, 2, 4, 0, 1, 2]
    prompts, read = [PROMPTS[i] for i in order], []
    backbone.decoder.register_forward_pre_hook(
        lambda _, __, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with backbone.role("policy"):
        found = sample(backbone, prompts, max_new_tokens=6, temperature=0)
        assert read[0] == (4, 7)  # four different prompts, as wide as the longest
        assert read[1] == (8, 1)
        assert found == [greedy_alone(backbone, "policy", prompt, 6) for prompt in prompts]


def test_samples_of_one_prompt_are_drawn_each_for_itself():
    backbone = tiny_backbone("policy")
    with backbone.role("policy"):
        found = sample(backbone, [PROMPTS[0]] * 20, max_new_tokens=6, generator=torch.Generator().manual_seed(2))
    assert len({tuple(r) for r in found}) > 15


# -------------------------------------------------------------------- beam search


@pytest.mark.parametrize("name", [None, "policy"])
def test_one_beam_is_greedy(name):
    backbone = tiny_backbone("policy")
    with backbone.role(name):
        found = [beam_search(backbone, prompt, beams=1, max_new_tokens=8) for prompt in PROMPTS]
        assert found == sample(backbone, PROMPTS, max_new_tokens=8, temperature=0)


def test_as_many_beams_as_tokens_find_the_likeliest_of_all_responses_of_two_tokens():
    """Every response of at most two tokens, each by the mean of its log-probabilities."""
    backbone = tiny_backbone("policy")
    eos, prompt = backbone.tokenizer.eos_token_id, PROMPTS[0]
    with torch.no_grad(), backbone.role("policy"):
        first = backbone.base(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        rows = torch.tensor([[*prompt, token] for token in range(len(first))])
        second = backbone.base(rows).logits[:, -1].log_softmax(-1)
        means = (first[:, None] + second) / 2
        means[eos] = first[eos]  # ends after one token
        best = divmod(int(means.argmax()), len(first))
        found = beam_search(backbone, prompt, beams=len(first), max_new_tokens=2)
    assert found == ([eos] if best[0] == eos else list(best))


def test_a_beam_ends_with_eos_and_nothing_behind_it():
    backbone = tiny_backbone("policy")
    eos = backbone.tokenizer.eos_token_id
    with torch.no_grad():
        backbone.base.get_output_embeddings().weight[eos] *= 40
        found = [beam_search(backbone, prompt, beams=3, max_new_tokens=12) for prompt in PROMPTS]
    assert any(eos in response for response in found)
    assert all(eos not in response[:-1] and 1 <= len(response) <= 12 for response in found)
    assert not backbone.training


@pytest.mark.parametrize("beams", [1, 3])
def test_beam_search_is_not_changed_by_what_the_model_asks_for_itself(beams):
    backbone = tiny_backbone("policy")
    with backbone.role("policy"):
        plain = [beam_search(backbone, prompt, beams=beams, max_new_tokens=6) for prompt in PROMPTS]
        asks = GenerationConfig(
            repetition_penalty=3.0,
            no_repeat_ngram_size=1,
            forced_eos_token_id=2,
            suppress_tokens=list(range(100, 400)),
            length_penalty=-5.0,
            return_dict_in_generate=True,
        )
        backbone.base.generation_config = asks
        assert [beam_search(backbone, prompt, beams=beams, max_new_tokens=6) for prompt in PROMPTS] == plain
    assert backbone.base.generation_config is asks
