"""Ollama's Modelfile of an exported GGUF: the weights, what ends an answer, and the chat template in Go's language.

The chat template is not translated but measured: rendered around marks in the place of the messages' contents, it shows
the text before, between and behind them. Such a text can depend on the roles beside it, as in nearly all templates;
one that depends on the contents or counts the turns is not written, and a comment says so.

Sources: Ollama's docs/modelfile and docs/template (variables, `range .Messages`), its template/template.go (messages
of one role in a row are made one; `System` and `Messages` are given) and parser/parser.go (how a value is quoted).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_kit.stats.words import shown

Messages = Sequence[dict[str, str]]

_MARKS = ("QxFirstxQ", "QxSecondxQ", "QxThirdxQ")
# What a template might treat in a way of its own: digits, lines, braces, quotes, other scripts; and of several lengths.
_CONTENTS = ("Hello", "2 + 2 = 4, is it?", 'A "{{ .Role }}"\n\n* <b>one</b>\n* two', "Ça va — 你好 🙂", "x" * 300)
_ROLES = ("user", "assistant", "user", "assistant", "user")
_PROBES = {
    "  Hello \n": "strips white space at the ends of a message",
    "<think>Hm.</think>Hello": "cuts or adds the <think> part of earlier answers",
}


class _NoTurns(Exception):
    """Why the renderings of a chat template do not come apart."""


@dataclass(frozen=True)
class Turns:
    """A chat template as the texts around the contents of messages.

    Attributes:
        first: before the content of a user message that opens the conversation.
        behind_system: before that of one behind a system message that opens it.
        system: before and behind a system message; None where the template has no place for one.
        user: before and behind any other user message.
        assistant: before and behind an answer.
        generation: behind the last message, unless that is the beginning of an answer.
    """

    first: str
    behind_system: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str

    def render(self, messages: Messages) -> str:
        """What the Go template makes of a conversation."""
        text = ""
        for number, message in enumerate(messages):
            last = number == len(messages) - 1
            if message["role"] == "system" and self.system is not None:
                text += self.system[0] + message["content"] + self.system[1]
            elif message["role"] == "user":
                opening = self.first if number == 0 else self.user[0]
                if number == 1 and messages[0]["role"] == "system":
                    opening = self.behind_system
                text += opening + message["content"] + self.user[1]
            elif message["role"] == "assistant":
                text += self.assistant[0] + message["content"] + ("" if last else self.assistant[1])
            if last and message["role"] != "assistant":
                text += self.generation
        return text

    def go(self) -> str:
        """The same as a template for Go's text/template with Ollama's variables."""
        system = self.system
        branches = [
            *([f'if eq .Role "system" }}}}{_text(system[0])}{{{{ .Content }}}}{_text(system[1])}'] if system else []),
            f'if eq .Role "user" }}}}{self._opening()}{{{{ .Content }}}}{_text(self.user[1])}',
            f'if eq .Role "assistant" }}}}{_text(self.assistant[0])}{{{{ .Content }}}}'
            f"{{{{ if not $last }}}}{_text(self.assistant[1])}{{{{ end }}}}",
        ]
        # `{{-` takes white space off the text before it: it may only stand behind a line end that is not the model's.
        return (
            "{{- range $i, $m := .Messages }}\n"
            "{{- $last := eq (len (slice $.Messages $i)) 1 }}\n"
            f"{{{{- {'{{ else '.join(branches)}{{{{ end }}}}\n"
            f'{{{{- if and $last (ne .Role "assistant") }}}}{_text(self.generation)}{{{{ end }}}}\n'
            "{{- end }}"
        )

    def _opening(self) -> str:
        first, behind, later = self.first, self.behind_system, self.user[0]
        if first == behind == later:
            return _text(later)
        if behind == later and first.endswith(later):
            return f"{{{{ if eq $i 0 }}}}{_text(first[: len(first) - len(later)])}{{{{ end }}}}{_text(later)}"
        return (
            f"{{{{ if eq $i 0 }}}}{_text(first)}"
            f'{{{{ else if and (eq $i 1) (eq (index $.Messages 0).Role "system") }}}}{_text(behind)}'
            f"{{{{ else }}}}{_text(later)}{{{{ end }}}}"
        )


def _text(text: str) -> str:
    """Text outside of Go's actions as it is, or as a Go string where Go or Ollama's parser would read it otherwise."""
    plain = all(letter.isprintable() or letter in "\n\t" for letter in text)
    if plain and "{{" not in text and '"""' not in text and not text.endswith("{"):
        return text
    escaped = {'"': '\\"', "\\": "\\\\", "\n": "\\n"}
    letters = (escaped.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text)
    return f'{{{{ "{"".join(letters)}" }}}}'


# -------------------------------------------------------------------- measuring a chat template


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, open_end: bool = True) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=open_end, tokenize=False))
    except (TemplateError, TypeError, ValueError, KeyError) as refusal:
        raise _NoTurns(f"refuses a conversation ({shown(str(refusal))})") from refusal


def _around(tokenizer: PreTrainedTokenizerBase, *roles: str, open_end: bool = True) -> list[str]:
    """The texts before, between and behind the contents of messages of these roles, one more than there are roles."""
    marks = _MARKS[: len(roles)]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    rest = _rendered(tokenizer, messages, open_end=open_end)
    texts = []
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            raise _NoTurns("repeats, moves or leaves out the text of a message")
        texts.append(before)
    return [*texts, rest]


def _behind(text: str, beginning: str) -> str:
    if not text.startswith(beginning):
        raise _NoTurns("ends a message in one way before another and in another way at the end")
    return text[len(beginning) :]


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts BOS before a text by itself, as llama.cpp then does too."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def turns_of(tokenizer: PreTrainedTokenizerBase) -> Turns:
    """The chat template as texts around contents, without a BOS that llama.cpp adds.

    Raises:
        _NoTurns: it is none of this kind.
    """
    bos = str(tokenizer.bos_token) if adds_bos(tokenizer) else ""
    if "strftime_now" in tokenizer.get_chat_template():
        raise _NoTurns("writes the date")
    first, end = _around(tokenizer, "user", open_end=False)
    _, to_answer, to_user, open_end = _around(tokenizer, "user", "assistant", "user")
    answered = _around(tokenizer, "user", "assistant", open_end=False)[-1]
    system = _system(tokenizer)
    later, first = _behind(to_user, answered), first.removeprefix(bos)
    behind_system = first
    if system is not None:
        # A system message of its own ends before the text that opens a user's; one inside the user's message does not.
        before, gap = system[0].removeprefix(bos), system[1]
        behind_system = later if gap.endswith(later) else ""
        system = before, gap[: len(gap) - len(behind_system)]
    return Turns(
        first, behind_system, system, (later, end), (_behind(to_answer, end), answered), _behind(open_end, end)
    )


def _system(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """The texts before a system message and between it and the user's; None where it is refused or left out."""
    system, user = {"role": "system", "content": _CONTENTS[1]}, {"role": "user", "content": _CONTENTS[0]}
    try:
        if _rendered(tokenizer, [system, user]) == _rendered(tokenizer, [user]):
            return None
    except _NoTurns:
        return None
    before, gap, _ = _around(tokenizer, "system", "user")
    return before, gap


def _check(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> list[str]:
    """Renders conversations both ways; returns what the template does to odd contents.

    Raises:
        _NoTurns: a conversation of ordinary contents is not rendered the same.
    """
    bos = str(tokenizer.bos_token) if adds_bos(tokenizer) else ""

    def same(roles: Sequence[str], contents: Sequence[str]) -> bool:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        return turns.render(messages) == _rendered(tokenizer, messages).removeprefix(bos)

    for before in [(), ("system",)] if turns.system is not None else [()]:
        for length in (1, 3, 5):
            roles = (*before, *_ROLES[:length])
            for start in range(len(_CONTENTS)):
                contents = [_CONTENTS[(start + number) % len(_CONTENTS)] for number in range(len(roles))]
                if not same(roles, contents):
                    raise _NoTurns("depends on the contents or the number of the messages")
    return [what for content, what in _PROBES.items() if not same(_ROLES[:3], [content] * 3)]


# -------------------------------------------------------------------- the file


def modelfile(
    kind: Literal["gguf", "gguf-adapter"], files: Sequence[str], tokenizer: PreTrainedTokenizerBase, base: str
) -> str:
    """The text of `Modelfile`, for the directory that holds `files`.

    Args:
        kind: a whole model, or an adapter.
        files: the GGUF file, the first of them.
        tokenizer: as the model was trained with it, its chat template included.
        base: the name of the base, for people.
    """
    lines = ["# ollama create NAME -f Modelfile"]
    if kind == "gguf":
        lines += [f"FROM ./{files[0]}"]
    else:
        lines += [
            f"# FROM must be a GGUF of the model that the adapter was trained on: {shown(base, 200)}.",
            "# Write where yours is. llama.cpp makes one from the model's directory:",
            "# python convert_hf_to_gguf.py DIRECTORY --outfile base.gguf",
            "FROM ./base.gguf",
            f"ADAPTER ./{files[0]}",
        ]
    template, end = _template(tokenizer)
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    stops = dict.fromkeys([str(tokenizer.eos_token), *(token for token in special if token in end)])
    lines += ["", *(f'PARAMETER stop "{stop}"' for stop in stops if stop.isprintable()), "", *template]
    return "\n".join(lines) + "\n"


def _template(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], str]:
    """The lines of TEMPLATE with what is to be said of it, and the text that ends an answer."""
    if tokenizer.chat_template is None:
        return [
            "# The model was trained without a chat template: a prompt is taken as it is.",
            _quoted("{{ .Prompt }}"),
        ], ""
    try:
        turns = turns_of(tokenizer)
        remarks = [f"# The chat template {what}; TEMPLATE does not." for what in _check(tokenizer, turns)]
    except _NoTurns as reason:
        return [
            f"# No TEMPLATE: the chat template {reason}, which is not written in Ollama's language here.",
            "# Ollama takes one that it knows and that looks like the GGUF's chat template; compare what it renders.",
        ], ""
    if turns.system is None:
        remarks.append("# The chat template has no place for a system message: TEMPLATE leaves it out.")
    if adds_bos(tokenizer):
        opens = _rendered(tokenizer, [{"role": "user", "content": "a"}]).startswith(str(tokenizer.bos_token))
        remarks.append(
            f"# {tokenizer.bos_token} is not in TEMPLATE: the GGUF's tokenizer puts it in front."
            if opens
            else f"# The model was trained without {tokenizer.bos_token}; the GGUF's tokenizer may put it in front."
        )
    return [*remarks, _quoted(turns.go())], turns.assistant[1]


def _quoted(template: str) -> str:
    return f'TEMPLATE """{template}"""'
