"""A page that shows live which worker holds which lock, since when, and who waits; a button steals one.

    python -m examples.board                                       # on a lock server of its own, until Ctrl-C
    python -m examples.board --url redis://127.0.0.1:6379 --port 8080

It needs: pip install 'asynclock[embedded,fastapi]' uvicorn

board.py     what the workers do, by their own account
workers.py   the workers, each with a locker of its own, and the thief
app.py       the page, its events, and the button
page/        what the browser gets
"""
