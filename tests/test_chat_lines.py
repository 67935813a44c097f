"""What is typed: lines that belong together."""

from rlhf_kit.chat.lines import messages


def test_lines_that_belong_together_are_one() -> None:
    typed = iter(["one", "two \\", "three", '"""four', "", 'five"""', '"""six"""', '"""', "seven", '"""', "eight\\"])
    shown = []

    def read(prompt: str) -> str:
        shown.append(prompt)
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    assert list(messages(read)) == ["one", "two \nthree", "four\n\nfive", "six", "seven", "eight"]
    assert "".join(shown) == "> > ... > ... ... > > ... ... > ... "
