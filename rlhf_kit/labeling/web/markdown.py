"""Texts of models and of people as HTML that a page can show without risk.

Two walls stand one behind the other. markdown-it-py escapes all HTML of the text and makes none of its own but that of
CommonMark, tables and struck text; nh3 (ammonia) then parses what came out as a browser does and keeps only the tags,
attributes and schemes of links that are named here. The page's content security policy would be the third.
"""

from __future__ import annotations

import html
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, escape

__all__ = ["ATTRIBUTES", "SCHEMES", "TAGS", "safe_html"]

_BLOCKS = {"blockquote", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "ul"}
_TABLES = {"table", "tbody", "td", "th", "thead", "tr"}
TAGS = frozenset({"a", "br", "code", "em", "s", "strong"} | _BLOCKS | _TABLES)
ATTRIBUTES = {"a": frozenset({"href", "rel", "target"}), "ol": frozenset({"start"}), "pre": frozenset({"tabindex"})}
SCHEMES = frozenset({"http", "https", "mailto"})

_LONGEST = 50_000
"""Characters beyond which a text is shown as it is: a labeler reads no longer one, and the parser's time is bounded."""


_MATH = frozenset({r"\(", r"\)", r"\[", r"\]"})


def _escape(state: StateInline, silent: bool) -> bool:
    """A backslash before a bracket stays: it is how models write math, and a labeler shall see what they wrote."""
    pair = state.src[state.pos : state.pos + 2]
    if pair not in _MATH:
        return escape(state, silent)
    if not silent:
        state.pending += pair
    state.pos += 2
    return True


def _parser(*, breaks: bool) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": breaks}).enable(["table", "strikethrough"])
    # No images: the server that has them would learn who reads what, and when. No definitions of links either: they are
    # shown nowhere, though the model wrote them.
    parser.disable(["image", "reference"])
    parser.inline.ruler.at("escape", _escape)
    parser.render("*x*")  # sorts its rules at the first use, which no two threads may do at once
    return parser


_PARSERS = {breaks: _parser(breaks=breaks) for breaks in (True, False)}
_CLEANER = nh3.Cleaner(
    tags=set(TAGS),
    attributes={"a": {"href"}, "ol": {"start"}, "*": set()},  # "*": otherwise lang and title everywhere
    url_schemes=set(SCHEMES),
    url_relative="deny",  # a link of a text never leads back into this page
    link_rel="noopener noreferrer nofollow",
    # A line of code that is too long is scrolled, which must be possible without a mouse.
    set_tag_attribute_values={"a": {"target": "_blank"}, "pre": {"tabindex": "0"}},
)
# The page has the first two levels for itself.
_HEADINGS = {"h1": "h3", "h2": "h4", "h3": "h5", "h4": "h6", "h5": "h6"}


@lru_cache(maxsize=1024)  # a task is shown to several labelers, and again after a reload
def safe_html(text: str, *, breaks: bool = True) -> str:
    """The text's Markdown as HTML of `TAGS` and `ATTRIBUTES` alone, links to `SCHEMES` only; code is shown as code.

    Args:
        breaks: a new line stays one, as models and people mean it; in a Markdown file lines only end at the margin.
    """
    if len(text) > _LONGEST:
        return f'<pre tabindex="0">{html.escape(text, quote=False)}</pre>'
    parser, environment = _PARSERS[breaks], dict[str, object]()
    tokens = parser.parse(text, environment)
    for token in tokens:
        token.tag = _HEADINGS.get(token.tag, token.tag)
    return _CLEANER.clean(parser.renderer.render(tokens, parser.options, environment))
