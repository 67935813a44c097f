"""From records to token ids: against the tokenizer's own rendering of a conversation, and counted by hand."""

import json

import pytest
from tiny import make_tiny_tokenizer

from rlhf_kit.data import Encoder, RankedCollator, RankedIds, prompt_texts, rated_items, rating_shares, split_by_prompt
from rlhf_kit.errors import DataError
from rlhf_kit.parsing import parse
from rlhf_kit.records import Demonstration, Message, Prompt, Ranking

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
USER = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "The capital of France is Paris."}
NEXT = {"role": "user", "content": "Thank you very much. Who wrote this book?"}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tiny_tokenizer()


def conversation(*messages):
    return tuple(Message(**message) for message in messages)


def own_rendering(tokenizer, *messages):
    return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True, return_dict=False)


def test_a_prompt_is_what_the_chat_template_makes_of_it(tokenizer):
    encoder = Encoder(tokenizer, max_prompt_length=500)
    for messages in ((USER,), (SYSTEM, USER), (USER, ANSWER, NEXT), (SYSTEM, USER, ANSWER, NEXT)):
        assert encoder.prompt(conversation(*messages)) == own_rendering(tokenizer, *messages)
    assert encoder.prompt(USER["content"]) == own_rendering(tokenizer, USER)
    assert encoder.shortened_prompts == 0


def test_prompt_and_response_make_the_conversation_that_the_template_would_render(tokenizer):
    encoder = Encoder(tokenizer, max_prompt_length=500)
    prompt = encoder.prompt(USER["content"])
    whole = tokenizer.apply_chat_template([USER, ANSWER], tokenize=False)
    ours = tokenizer.decode(prompt + encoder.response(ANSWER["content"], len(prompt)))
    assert ours == whole.rstrip("\n")  # the template's newline after EOS is nothing that the model has to say


def test_oldest_whole_turns_go_first_and_the_system_message_stays(tokenizer):
    turns = (SYSTEM, USER, ANSWER, USER, ANSWER, NEXT)
    one, two = own_rendering(tokenizer, SYSTEM, NEXT), own_rendering(tokenizer, SYSTEM, USER, ANSWER, NEXT)
    whole = own_rendering(tokenizer, *turns)
    for room, expected in (
        (len(whole), whole),
        (len(whole) - 1, two),
        (len(two), two),
        (len(two) - 1, one),
        (len(one), one),
    ):
        encoder = Encoder(tokenizer, max_prompt_length=room)
        assert encoder.prompt(conversation(*turns)) == expected
        assert encoder.shortened_prompts == (0 if room == len(whole) else 1)


def test_a_last_turn_that_is_too_long_alone_keeps_its_end(tokenizer):
    encoder = Encoder(tokenizer, max_prompt_length=12)
    kept = encoder.prompt(conversation(SYSTEM, USER, ANSWER, NEXT))
    assert len(kept) == 12
    assert kept == own_rendering(tokenizer, NEXT)[-12:]
    assert tokenizer.decode(kept).endswith("<|im_start|>assistant\n")
    encoder.prompt("x")
    encoder.prompt(NEXT["content"] * 5)
    assert encoder.shortened_prompts == 2


def test_eos_is_put_where_a_response_has_ended_and_only_there(tokenizer):
    encoder = Encoder(tokenizer, max_prompt_length=100)
    ended, cut = encoder.response("Yes.", 5), encoder.response("Yes.", 5, ended=False)
    assert ended == [*cut, tokenizer.eos_token_id]
    assert tokenizer.eos_token_id not in cut
    assert tokenizer.pad_token_id not in ended
    assert encoder.text(ended) == "Yes."


def test_a_response_that_is_too_long_loses_its_end_and_its_eos_and_is_counted(tokenizer, caplog):
    encoder = Encoder(tokenizer, max_prompt_length=100, max_length=20)
    whole = encoder.response(ANSWER["content"], 0)
    assert encoder.cut_responses == 0 and whole[-1] == tokenizer.eos_token_id
    room = len(whole) - 1
    assert encoder.response(ANSWER["content"], 20 - len(whole)) == whole
    assert encoder.response(ANSWER["content"], 20 - room) == whole[:room]
    assert encoder.response(ANSWER["content"], 30) == whole[:1]  # never an empty response
    assert encoder.cut_responses == 2
    with caplog.at_level("WARNING"):
        encoder.report("sft")
    assert "2 responses went beyond 20 tokens" in caplog.text


def test_labels_are_the_response_and_nothing_of_the_prompt(tokenizer):
    encoder = Encoder(tokenizer, max_prompt_length=100)
    row = encoder.demonstration(Demonstration(prompt=USER["content"], completion=ANSWER["content"]))
    prompt = own_rendering(tokenizer, USER)
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [-100] * len(prompt)
    assert row["labels"][len(prompt) :] == row["input_ids"][len(prompt) :]
    assert tokenizer.decode(row["labels"][len(prompt) :]) == ANSWER["content"] + "<|im_end|>"


def ranking(prompt, *answers, **fields):
    responses = [{"text": text, "rank": rank, "ended": ended} for text, rank, ended in answers]
    return parse({"prompt": prompt, "responses": responses, **fields}, "ranking", "here")


def test_a_ranking_keeps_ranks_with_their_answers_and_collates_to_one_row_an_answer(tokenizer):
    encoder = Encoder(tokenizer, max_prompt_length=100)
    first = encoder.ranking(ranking("Why?", ("No.", 2, True), ("Yes and no and yes", 1, False)))
    second = encoder.ranking(ranking(USER["content"], ("a", 1, True), ("b", 1, True), ("c", 3, True)))
    assert [tokenizer.decode(r) for r in first.responses] == ["No.<|im_end|>", "Yes and no and yes"]
    assert first.ranks == [2, 1]

    batch = RankedCollator(tokenizer.pad_token_id, packed=False)([first, second])["batch"]
    assert batch.group.tolist() == [0, 0, 1, 1, 1]
    assert batch.rank.tolist() == [[2], [1], [1], [1], [3]]
    assert batch.ranked.all() and not batch.rated.any() and batch.weight.eq(1).all() and batch.margin.eq(0).all()
    expected = ["No.<|im_end|>", "Yes and no and yes", "a<|im_end|>", "b<|im_end|>", "c<|im_end|>"]
    rows = batch.responses
    for row, text in enumerate(expected):
        real = rows.input_ids[row][rows.attention_mask[row]].tolist()
        source = first if row < 2 else second
        assert tokenizer.decode(real) == tokenizer.decode(source.prompt) + text
        assert rows.input_ids[row][~rows.attention_mask[row]].eq(tokenizer.pad_token_id).all()


def test_axes_ratings_weight_and_margin_reach_the_batch(tokenizer):
    encoder = Encoder(tokenizer, max_prompt_length=100)
    row = {
        "prompt": "Why?",
        "weight": 2.5,
        "margin": 0.5,
        "responses": [
            {"text": "a", "rank": 1, "axes": {"helpful": 2, "harmless": 1}},
            {"text": "b", "rank": 2, "axes": {"helpful": 1}},
        ],
    }
    ranked = encoder.ranking(parse(row, "ranking", "here"))
    rows = [
        {"prompt": "Who?", "response": "c", "score": 4.0, "scale": [1, 5], "axis": "helpful"},
        {"prompt": "Who?", "response": "d", "thumb": True},
    ]
    rated = rated_items(encoder, [parse(r, "rating", "here") for r in rows])
    assert len(rated) == 1  # one copy of the prompt
    batch = RankedCollator(tokenizer.pad_token_id, ("overall", "helpful", "harmless"))([ranked, *rated])["batch"]
    assert batch.rank.tolist() == [[1, 2, 1], [2, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert batch.ranked.tolist() == [[True] * 3, [True, True, False], [False] * 3, [False] * 3]
    assert batch.rating.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0.75, 0], [1, 0, 0]]
    assert batch.rated.tolist() == [[False] * 3, [False] * 3, [False, True, False], [True, False, False]]
    assert batch.weight.tolist() == [2.5, 2.5, 1, 1] and batch.margin.tolist() == [0.5, 0.5, 0, 0]


def test_ratings_without_a_scale_are_measured_by_the_others_of_their_axis():
    def rating(**fields):
        return parse({"prompt": "Why?", "response": "x", **fields}, "rating", "here")

    free = [rating(score=2.0), rating(score=6.0), rating(score=3.0), rating(score=100.0, axis="helpful")]
    free += [rating(score=0.0, axis="helpful"), rating(thumb=False), rating(score=3.0, scale=[0, 4])]
    assert rating_shares(free) == [0, 1, 0.25, 1, 0, 0, 0.75]
    with pytest.raises(DataError, match="all scores of the whole are equal"):
        rating_shares([rating(score=2.0), rating(score=2.0)])


def test_a_prompt_leaves_room_for_its_longest_response(tokenizer):
    """Beyond the context the prompt loses whole turns from the left; the answers stay whole."""
    turns = [SYSTEM, USER, ANSWER, USER, ANSWER, NEXT]
    row = {"prompt": turns, "responses": [{"text": "cat " * 20, "rank": 1}, {"text": "No.", "rank": 2}]}
    record = parse(row, "ranking", "here")
    whole, two = own_rendering(tokenizer, *turns), own_rendering(tokenizer, SYSTEM, USER, ANSWER, NEXT)
    longest = len(tokenizer("cat " * 20, add_special_tokens=False)["input_ids"]) + 1
    encoder = Encoder(tokenizer, max_prompt_length=500, max_length=len(two) + longest)
    item = encoder.ranking(record)
    assert item.prompt == two and len(item.responses[0]) == longest
    assert (encoder.shortened_prompts, encoder.cut_responses) == (1, 0)
    roomy = Encoder(tokenizer, max_prompt_length=500, max_length=len(whole) + longest)
    assert roomy.ranking(record).prompt == whole and roomy.shortened_prompts == 0


def test_a_model_without_chat_template_gets_the_text_as_it_is():
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = None
    encoder = Encoder(tokenizer, max_prompt_length=100)
    assert tokenizer.decode(encoder.prompt("Name three colours.")) == "Name three colours."
    joined = encoder.prompt(conversation(SYSTEM, USER))
    assert tokenizer.decode(joined) == SYSTEM["content"] + "\n\n" + USER["content"]
    short = Encoder(tokenizer, max_prompt_length=4)
    assert short.prompt(USER["content"]) == tokenizer(USER["content"])["input_ids"][-4:]


def test_what_a_text_says_about_special_tokens_does_not_end_a_prompt_early(tokenizer):
    encoder = Encoder(tokenizer, max_prompt_length=100)
    assert encoder.text([*encoder.response("Good.", 0), tokenizer.pad_token_id, tokenizer.pad_token_id]) == "Good."


# ---------------------------------------------------------------- the split


def many(prompts, each=3):
    pair = (("a", 1, True), ("b", 2, True))
    return [ranking(f"prompt {i}", *pair, labeler=str(j)) for j in range(each) for i in range(prompts)]


def key(record):
    """A prompt by what the model would read."""
    if isinstance(record.prompt, str):
        return json.dumps([["user", record.prompt]])
    return json.dumps([[m.role, m.content] for m in record.prompt])


@pytest.mark.parametrize("seed", range(5))
def test_the_split_never_has_a_prompt_on_both_sides(seed):
    records = many(20)
    records += [
        r.model_copy(update={"prompt": conversation({"role": "user", "content": r.prompt})}) for r in many(20, 1)
    ]
    training, held = split_by_prompt(records, 0.25, seed)
    assert len({key(r) for r in held}) == 5
    assert not {key(r) for r in training} & {key(r) for r in held}
    assert len(training) + len(held) == len(records)
    assert [r for r in records if r in training] == training  # in the order given


def test_the_split_depends_on_the_seed_and_not_on_the_order():
    records = many(30)
    held = {r.prompt for r in split_by_prompt(records, 0.2, 1)[1]}
    assert held == {r.prompt for r in split_by_prompt(records[::-1], 0.2, 1)[1]}
    assert held != {r.prompt for r in split_by_prompt(records, 0.2, 2)[1]}


def test_the_split_at_its_limits():
    records = many(4)
    assert split_by_prompt(records, 0.0, 0) == (records, [])
    with pytest.raises(DataError, match="1 prompts are too few"):
        split_by_prompt(many(1), 0.9, 0)


def test_prompt_texts():
    prompts = [Prompt(prompt="Why?"), Prompt(prompt=conversation(SYSTEM, USER))]
    expected = "system: You are a helpful assistant.\nuser: What is the capital of France?"
    assert prompt_texts(prompts) == ["Why?", expected]


def test_ranked_ids_of_a_record_without_pairs_are_still_made(tokenizer):
    tied: Ranking = ranking("Why?", ("a", 1, True), ("b", 1, True))
    assert tied.pairs == ()
    assert isinstance(Encoder(tokenizer, max_prompt_length=50).ranking(tied), RankedIds)
