"""Steps 2 and 3 again and again: the newest policy's answers are labelled, and reward model and policy trained anew.

`places` says where a round stands and what its recipe is, `going` goes one round, `labels` has its answers ranked,
`freshness` and `history` say what came of it.
"""

from .going import go_round
from .history import History, history
from .places import Round, finished, next_round, rounds_of

__all__ = ["History", "Round", "finished", "go_round", "history", "next_round", "rounds_of"]
