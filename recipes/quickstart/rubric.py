"""A judge of the quickstart's answers that reads form alone: a mark from 0 to 14, by rules that anyone can check.

It trained nothing, ranked nothing, and knows nothing of truth: an answer that is neat, on the subject and false gets a
high mark. The labelers read for sense as well, so they and this rubric agree on many pairs, not on all; the evaluation
prints on how many.
"""

import re

PREAMBLE = re.compile(
    r"^\W*(sure|certainly|of course|absolutely|great|good|nice|interesting|lovely|ooh|oh|ah|well|okay|ok|hmm|hi|hello|"
    r"hey|thanks|thank you|happy to|glad|i'd be|i would be|i'd love|no problem|no worries|let me|let's see|that's a|"
    r"what a|yes, (this|that) is a)\b[^.!?]*[,.!:]",
    re.IGNORECASE,
)
FAREWELL = re.compile(
    r"(hope (that|this|it) helps|let me know|good luck|enjoy|have fun|happy \w+ing|feel free|take care|you've got this|"
    r"if you have any|all the best|cheers|best of luck)[^.!?]*[.!?]*\s*$",
    re.IGNORECASE,
)
HEDGE = re.compile(
    r"\b(i think|i guess|i suppose|i'm not sure|it depends|maybe|perhaps|probably|i believe|hard to say)\b",
    re.IGNORECASE,
)
LIST = re.compile(r"(^|\n)\s*([-*•]|\d+[.)])\s+|\*\*|^#+ ", re.MULTILINE)
WORD = re.compile(r"[a-z']+", re.IGNORECASE)
COMMON = frozenset(
    [
        "a",
        "an",
        "the",
        "and",
        "or",
        "but",
        "of",
        "to",
        "in",
        "on",
        "at",
        "for",
        "from",
        "with",
        "without",
        "by",
        "as",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "do",
        "does",
        "did",
        "can",
        "could",
        "would",
        "should",
        "will",
        "what",
        "why",
        "how",
        "who",
        "when",
        "where",
        "which",
        "that",
        "this",
        "these",
        "those",
        "it",
        "its",
        "i",
        "you",
        "we",
        "they",
        "he",
        "she",
        "my",
        "your",
        "our",
        "their",
        "me",
        "us",
        "them",
        "any",
        "some",
        "one",
        "give",
        "name",
        "tell",
        "suggest",
        "explain",
        "describe",
        "help",
        "could",
        "please",
        "imagine",
        "someone",
        "if",
        "so",
        "not",
        "no",
        "yes",
        "than",
        "then",
        "there",
        "here",
        "have",
        "has",
        "had",
        "about",
        "into",
        "out",
        "up",
        "way",
    ]
)


def stems(text: str) -> set[str]:
    """Content words, cut to five letters, so that plural and tense do not count."""
    return {word.lower()[:5] for word in WORD.findall(text) if word.lower() not in COMMON and len(word) > 2}


def mark(prompt: str, answer: str) -> int:
    """The mark of one answer."""
    text = answer.strip()
    words = [word.lower() for word in WORD.findall(text)]
    if not words:
        return 0
    sentences = len(re.findall(r"[.!?]+(?=\s|$|[\"')])", text)) or 1
    distinct = len(set(words)) / len(words)
    points = 0
    points += 0 if PREAMBLE.search(text) else 2  # answers from its first word
    points += {1: 2, 2: 2, 3: 1}.get(sentences, 0)  # one or two sentences
    points += 2 if re.search(r"[.!?][\"')]?$", text) else 0  # and an end
    points += 2 if len(words) >= 6 else 1 if len(words) >= 4 else 0  # no bare word
    points += 0 if LIST.search(text) or "\n" in text else 2  # no list, no heading
    points += 0 if FAREWELL.search(text) else 1
    points += 0 if HEDGE.search(text) else 1
    points += 1 if distinct >= 0.7 else 0  # does not go round in circles
    points += 1 if stems(prompt) & stems(text) else 0  # speaks of what was asked
    return points


def grade(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """Marks of many answers; called as TRL calls reward functions."""
    return [float(mark(prompt, answer)) for prompt, answer in zip(prompts, completions, strict=True)]
