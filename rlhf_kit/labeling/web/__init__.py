"""What the labelers' browsers talk to: a small Starlette application over a `Store`.

markdown.py  texts of models and people as HTML that can do nothing
security.py  who asks, from where and how often
guard.py     the door, which each request passes before anything of its body is read
bodies.py    what may stand in a body
state.py     what is answered, as JSON
views.py     what is asked of the store
writing.py   changes of many labelers, written at once
pages.py     the files of `static/`
app.py       the routes, and what is said of errors
"""
