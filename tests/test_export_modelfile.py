"""Ollama's Modelfile: its TEMPLATE renders conversations as the tokenizer does, by a small renderer of Go templates
that knows nothing of how they were made."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tiny import make_tiny_tokenizer
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from rlhf_kit.export.modelfile import modelfile

# -------------------------------------------------------------------- Go's text/template, as far as it is used

_ACTION = re.compile(r'\{\{(-(?=\s))?((?:"(?:\\.|[^"\\])*"|[^"}]|\}(?!\}))*?)((?<=\s)-)?\}\}', re.DOTALL)
_WORD = re.compile(r'\s*("(?:\\.|[^"\\])*"|\d+|\$?\.\w+|\$\w*|\w+|[().]|:=|,|\.)')


_FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda *values: next((v for v in values if not v), values[-1]),
    "not": lambda a: not a,
    "len": len,
    "slice": lambda items, start: items[start:],
    "index": lambda items, n: items[n],
}


class Go:
    """pkg.go.dev/text/template: text, trim markers, range, if, else if, variables, strings and a few functions."""

    def __init__(self, template: str) -> None:
        pieces, position, trim = [], 0, False
        for match in _ACTION.finditer(template):
            text = template[position : match.start()]
            text = text.lstrip(" \t\r\n") if trim else text
            pieces += [("text", text.rstrip(" \t\r\n") if match[1] else text), ("action", match[2].strip())]
            position, trim = match.end(), bool(match[3])
        assert "{{" not in template[position:]
        self.pieces = [*pieces, ("text", template[position:].lstrip() if trim else template[position:])]
        self.nodes, end = self._block(0)
        assert end == len(self.pieces), "an end too many"

    def _block(self, at: int) -> tuple[list[Any], int]:
        nodes: list[Any] = []
        while at < len(self.pieces):
            kind, text = self.pieces[at]
            word = text.split()[0] if kind == "action" else ""
            if word in ("end", "else"):
                return nodes, at
            if word in ("range", "if"):
                body, at = self._block(at + 1)
                branches = [(text[len(word) :], body)]
                while self.pieces[at][1] != "end":
                    condition = self.pieces[at][1].removeprefix("else").strip().removeprefix("if")
                    body, at = self._block(at + 1)
                    branches.append((condition, body))
                nodes.append((word, branches))
            else:
                nodes.append((kind, text))
            at += 1
        return nodes, at

    def render(self, messages: list[dict[str, str]]) -> str:
        root = {"Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
        return self._run(self.nodes, root, {"$": root})

    def _run(self, nodes: list[Any], dot: Any, variables: dict[str, Any]) -> str:
        out = ""
        for kind, content in nodes:
            if kind == "text":
                out += content
            elif kind == "if":
                chosen = next((b for c, b in content if not c.strip() or self._value(c, dot, variables)), [])
                out += self._run(chosen, dot, dict(variables))
            elif kind == "range":
                ((declared, body),) = content
                names, _, source = declared.partition(":=")
                number, item = (name.strip() for name in names.split(","))
                for n, value in enumerate(self._value(source, dot, variables)):
                    out += self._run(body, value, variables | {number: n, item: value})
            elif ":=" in content and not content.startswith('"'):
                name, _, source = content.partition(":=")
                variables[name.strip()] = self._value(source, dot, variables)
            else:
                out += self._value(content, dot, variables)
        return out

    def _value(self, text: str, dot: Any, variables: dict[str, Any]) -> Any:
        words = _WORD.findall(text)
        assert not _WORD.sub("", text).strip(), text
        value, rest = self._call(words, dot, variables)
        assert rest == []
        return value

    def _call(self, words: list[str], dot: Any, variables: dict[str, Any]) -> tuple[Any, list[str]]:
        if words[0] not in _FUNCTIONS:
            return self._operand(words, dot, variables)
        function, rest, values = _FUNCTIONS[words[0]], words[1:], []
        while rest and rest[0] != ")":
            value, rest = self._operand(rest, dot, variables)
            values.append(value)
        return function(*values), rest

    def _operand(self, words: list[str], dot: Any, variables: dict[str, Any]) -> tuple[Any, list[str]]:
        word, rest = words[0], words[1:]
        if word == "(":
            value, rest = self._call(rest, dot, variables)
            assert rest[0] == ")"
            rest = rest[1:]
            if rest and rest[0].startswith("."):
                return value[rest[0][1:]], rest[1:]
            return value, rest
        if word.startswith('"'):
            escapes = {"n": "\n", '"': '"', "\\": "\\"}
            return re.sub(
                r"\\(?:U([0-9a-f]{8})|(.))", lambda m: chr(int(m[1], 16)) if m[1] else escapes[m[2]], word[1:-1]
            ), rest
        if word.isdecimal():
            return int(word), rest
        if word.startswith("$."):
            return variables["$"][word[2:]], rest
        return (variables[word] if word.startswith("$") else dot[word[1:]]), rest


def test_the_renderer_by_the_examples_of_go_s_documentation() -> None:
    assert Go('{{"output"}}').render([]) == "output"
    assert Go("{{ 23 -}} < {{- 45 }}".replace("23", '"23"').replace("45", '"45"')).render([]) == "23<45"
    messages = [{"role": "a", "content": "1"}, {"role": "b", "content": "2"}]
    assert Go("{{ range $i, $m := .Messages }}{{ if eq $i 0 }}first{{ else }}{{ .Role }}{{ end }}\n{{ end }}").render(
        messages
    ) == ("first\nb\n")
    assert Go('{{ "\\"a}}b\\\\\\n\\U0000200b" }}').render([]) == '"a}}b\\\n\u200b'


# -------------------------------------------------------------------- chat templates in the style of families

LLAMA = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\\n\\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}[INST] {% if loop.first %}{{ system }}{% endif %}"
    "{{ m['content'] }} [/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {% if loop.first %}{{ system }}{% endif %}"
    "{{ m['content'] }} [/INST]{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
HOSTILE = (
    "{% for m in messages %}{{ '{{ end }}' }} \"\"\" {{ m['role'] }}\u200b\u00a0\\n {{ '{' }}{{ m['content'] }}"
    "\"{{ '}}' }}{% endfor %}{% if add_generation_prompt %}{{ '{{- ' }}\"\"{% endif %}"
)


def chatml(content: str) -> str:
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n" + content + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


STYLES = {
    "chatml": (None, None, "<|im_end|>"),
    "llama": (LLAMA, "<|begin_of_text|>", "<|end_of_text|>"),
    "gemma": (GEMMA, "<bos>", "<eos>"),
    "qwen": (QWEN, None, "<|im_end|>"),
    "thinking": (THINKING, None, "<|im_end|>"),
    "mistral": (MISTRAL, "<s>", "</s>"),
    "llama2": (LLAMA2, "<s>", "</s>"),
    "hostile": (HOSTILE, None, "<|im_end|>"),
}
SPECIAL = ["<|eot_id|>", "<end_of_turn>", "<start_of_turn>", "<|start_header_id|>"]


def tokenizer_of(
    template: str | None, bos: str | None = None, eos: str = "<|im_end|>", *, add_bos: bool = True
) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with another template; a BOS that it has it also puts before texts, as a Llama's does."""
    tokenizer = make_tiny_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.add_tokens([AddedToken(t, special=True) for t in (*SPECIAL, eos, *([bos] if bos else []))])
    tokenizer.eos_token = eos
    if bos is not None:
        tokenizer.bos_token = bos
        if add_bos:
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
            )
    return tokenizer


def template_in(text: str) -> str:
    """The value of TEMPLATE as Ollama's parser reads it: the text in threefold quotes, without unseen characters."""
    match = re.search(r'^TEMPLATE """(.*?)"""', text, re.DOTALL | re.MULTILINE)
    assert match is not None, text
    assert text.endswith(match[0] + "\n")
    return "".join(c for c in match[1] if c.isprintable() or c in "\n\t")


def conversation(roles: str, *contents: str) -> list[dict[str, str]]:
    names = {"s": "system", "u": "user", "a": "assistant"}
    words = contents or ("What is it?", "It is 7.\n\nNo: 8.", 'Why "8"?', "{{ .Role }} </s>", "Ça va 🙂", "Bye")
    return [{"role": names[role], "content": word} for role, word in zip(roles, words[: len(roles)], strict=True)]


@pytest.mark.parametrize("style", STYLES)
def test_template_renders_as_the_tokenizer_does(style: str) -> None:
    tokenizer = tokenizer_of(*STYLES[style])
    go = Go(template_in(modelfile("gguf", ("model-f16.gguf",), tokenizer, "x")))
    first = tokenizer.bos_token if STYLES[style][1] else ""
    for roles in ("u", "uau", "uauau", *(() if style == "gemma" else ("su", "suau", "suauau"))):
        messages = conversation(roles)
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert first + go.render(messages) == expected, roles
        prefilled = [*messages, {"role": "assistant", "content": "The first words"}]
        expected = tokenizer.apply_chat_template(prefilled, continue_final_message=True, tokenize=False)
        assert first + go.render(prefilled) == expected, roles


@pytest.mark.parametrize("before", ["{{ '{' }}", "{{ '{{ .' }}", '"""', "\u200b", "\u00a0", "\\n", "{{ '\r' }}", '""'])
def test_text_that_go_or_ollama_would_read_otherwise(before: str) -> None:
    tokenizer = tokenizer_of(chatml(before + "{{ m['content'] }}"))
    go = Go(template_in(modelfile("gguf", ("m.gguf",), tokenizer, "x")))
    messages = conversation("suau")
    assert go.render(messages) == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def test_the_default_system_message_stands_once() -> None:
    text = modelfile("gguf", ("m.gguf",), tokenizer_of(*STYLES["qwen"]), "x")
    assert (
        '{{ else if eq .Role "user" }}{{ if eq $i 0 }}<|im_start|>system\nYou are Tiny.<|im_end|>\n'
        "{{ end }}<|im_start|>user\n{{ .Content }}<|im_end|>\n"
    ) in text


def test_the_file_by_hand() -> None:
    assert modelfile("gguf", ("model-f16.gguf",), make_tiny_tokenizer(), "x") == (
        "# ollama create NAME -f Modelfile\n"
        "FROM ./model-f16.gguf\n"
        "\n"
        'PARAMETER stop "<|im_end|>"\n'
        "\n"
        'TEMPLATE """{{- range $i, $m := .Messages }}\n'
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}\n"
        '{{- if eq .Role "system" }}<|im_start|>system\n'
        "{{ .Content }}<|im_end|>\n"
        '{{ else if eq .Role "user" }}<|im_start|>user\n'
        "{{ .Content }}<|im_end|>\n"
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n'
        "{{ .Content }}{{ if not $last }}<|im_end|>\n"
        "{{ end }}{{ end }}\n"
        '{{- if and $last (ne .Role "assistant") }}<|im_start|>assistant\n'
        "{{ end }}\n"
        '{{- end }}"""\n'
    )


def test_an_adapter_names_what_its_base_must_be() -> None:
    text = modelfile("gguf-adapter", ("adapter-f16.gguf",), make_tiny_tokenizer(), "someone/tiny\nFROM evil")
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("FROM")] == ["FROM ./base.gguf"]
    assert lines[lines.index("FROM ./base.gguf") + 1] == "ADAPTER ./adapter-f16.gguf"
    assert any(line.startswith("#") and "someone/tiny" in line for line in lines)
    assert "convert_hf_to_gguf.py" in text


@pytest.mark.parametrize(
    ("style", "stops"),
    [
        ("chatml", ["<|im_end|>"]),
        ("llama", ["<|end_of_text|>", "<|eot_id|>"]),
        ("gemma", ["<eos>", "<end_of_turn>"]),
        ("mistral", ["</s>"]),
    ],
)
def test_what_ends_an_answer(style: str, stops: list[str]) -> None:
    text = modelfile("gguf", ("m.gguf",), tokenizer_of(*STYLES[style]), "x")
    assert re.findall(r'^PARAMETER stop "(.*)"$', text, re.MULTILINE) == stops


def test_what_is_said_of_a_template() -> None:
    def said(style: str, **options: Any) -> str:
        text = modelfile("gguf", ("m.gguf",), tokenizer_of(*STYLES[style], **options), "x")
        return "\n".join(line for line in text.splitlines() if line.startswith("#"))

    assert said("chatml").count("\n") == 0
    assert "strips white space" in said("llama") and "<|begin_of_text|> is not in TEMPLATE" in said("llama")
    assert "no place for a system message" in said("gemma")
    assert "<think>" in said("thinking") and "strips" not in said("thinking")
    assert "BOS" not in said("mistral", add_bos=False) and "<s>" not in said("mistral", add_bos=False)


def test_bos_stands_in_the_template_where_nothing_else_adds_it() -> None:
    tokenizer = tokenizer_of(*STYLES["mistral"], add_bos=False)
    go = Go(template_in(modelfile("gguf", ("m.gguf",), tokenizer, "x")))
    messages = conversation("suau")
    assert go.render(messages) == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    chatml = tokenizer_of(None, "<s>")  # BOS before every text, and a template without it
    assert "trained without <s>" in modelfile("gguf", ("m.gguf",), chatml, "x")


def test_a_system_message_that_is_refused_is_left_out() -> None:
    go = Go(template_in(modelfile("gguf", ("m.gguf",), tokenizer_of(*STYLES["gemma"]), "x")))
    assert go.render(conversation("suau")) == go.render(conversation("suau")[1:])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (chatml("{{ loop.index }}. {{ m['content'] }}"), "number of the messages"),
        (chatml("{{ m['content'] | replace('2', 'two') }}"), "depends on the contents"),
        (chatml("{{ m['content'] }}{{ m['content'] | length }}"), "depends on the contents"),
        (chatml("{{ m['content'] | upper }}"), "leaves out the text"),
        (chatml("{{ m['content'] }} {{ m['content'] }}"), "repeats"),
        (chatml("{{ strftime_now('%d %b') }} {{ m['content'] }}"), "date"),
        (chatml("{{ m['content'] }}{% if loop.last %}!{% endif %}"), "at the end"),
        # The system message in the last of the user's messages, as Mistral's later models have it.
        (
            "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}[INST] "
            "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
            "{{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}",
            "number of the messages",
        ),
        ("{{ raise_exception('never') }}", "refuses a conversation"),
    ],
)
def test_a_template_that_does_not_come_apart_is_not_written(template: str, reason: str) -> None:
    text = modelfile("gguf", ("m.gguf",), tokenizer_of(template), "x")
    assert not re.search(r"^TEMPLATE", text, re.MULTILINE)
    assert reason in text and "# No TEMPLATE" in text
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_a_model_without_chat_template() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = None
    assert template_in(modelfile("gguf", ("m.gguf",), tokenizer, "x")) == "{{ .Prompt }}"
