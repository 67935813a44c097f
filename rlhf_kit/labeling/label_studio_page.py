"""The labelling configuration for Label Studio: List and Ranker to rank, Pairwise to compare, Rating to rate.

https://labelstud.io/tags/ranker.html, pairwise.html and rating.html describe the tags. Answers to rank are moved into a
bucket: a Ranker without one takes the order that it shows for the labeler's own where nothing was touched.
"""

from __future__ import annotations

from rlhf_kit.formats.label_studio import ORDERED

from .replies import SCALE
from .tasks import Kind

__all__ = ["configuration"]

# By itself Label Studio joins all lines of an answer, shows the two of a pair as one text, and gives turns times.
_STYLE = """<Style>
    .lsf-richtext__line, .htx-ranker-item p:first-child, [data-testid^="phrase:"] {
      white-space: pre-wrap; overflow-wrap: anywhere
    }
    [class*="authorFilter"], [class*="time--"], [class*="selectAllBtn"] { display: none }
    .kit-prompt { margin-bottom: 1em }
    .kit-answers { display: flex; gap: 1em }
    .kit-answer { flex: 1; min-width: 0; padding: 0.5em; border: 1px solid; border-radius: 4px }
  </Style>"""
_TEXT = '<Text name="prompt" value="$prompt"/>'
_TURNS = '<Paragraphs name="prompt" value="$prompt" nameKey="role" textKey="content" layout="dialogue"/>'


def _answer(name: str) -> str:
    return f'<View className="kit-answer"><Text name="{name}" value="${name}"/></View>'


_CONTROLS = {
    "rank": f"""<List name="answers" value="$items" title="Answers"/>
  <Ranker name="rank" toName="answers">
    <Bucket name="{ORDERED}" title="Put all in order, the best one first"/>
  </Ranker>""",
    "compare": f"""<Header value="Click on the better answer"/>
  <Pairwise name="comparison" toName="answer1,answer2"/>
  <View className="kit-answers">
    {_answer("answer1")}
    {_answer("answer2")}
  </View>""",
    "rate": f"""<Header value="How good is this answer?"/>
  {_answer("response")}
  <Rating name="rating" toName="response" maxRating="{SCALE[1]}" required="true"/>""",
}


def configuration(kind: Kind, *, chat: bool) -> str:
    """The configuration of a project whose tasks `exchange.hand_over` writes.

    Args:
        kind: `rank`, `compare` or `rate`.
        chat: the prompts are lists of turns, not texts.
    """
    prompt = f'<View className="kit-prompt">{_TURNS if chat else _TEXT}</View>'
    return f"<View>\n  {_STYLE}\n  {prompt}\n  {_CONTROLS[kind]}\n</View>\n"
