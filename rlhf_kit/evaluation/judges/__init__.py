"""Who says which answer is better: reward models, functions, people, and models behind an endpoint.

`base.py` says what a judge is; `choose.py` finds the one that a user means. `reward.py`, `function.py`, `verdicts.py`
(with `sheet.py`, what people are given), `page.py` (people, asked there and then) and `endpoint.py` (with
`template.py`, `chat.py`, `asking.py`) are the judges; `ledger.py` keeps what was said, `pairs.py` is what judges that
compare have in common.
"""
