"""A conversation on a pseudo-terminal: terminal.py LLAMA_MESH."""

import os
import pty
import select
import sys
import time

child, terminal = pty.fork()
if child == 0:
    os.environ["TERM"] = "xterm"
    os.execv(sys.argv[1], ["llama-mesh", "chat", "--temperature", "0", "--max-tokens", "400"])

seen = b""


def expect(text, limit=60):
    """Reads until `text` has been seen; returns what came before it."""
    global seen
    end = time.monotonic() + limit
    while text not in seen:
        assert time.monotonic() < end, f"no {text!r} in {seen!r}"
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096)
    before, seen = seen.split(text, 1)
    return before.decode("utf-8", "replace")


def say(text):
    os.write(terminal, text.encode())


def prompt_tokens():
    """Of the answer that ends next."""
    expect(b"TTFT ")
    return int(expect(b" prompt + ").rsplit(" ", 1)[1])


expect(b"> ")
say("My name is Anna.\r")
first = prompt_tokens()
expect(b"> ")
say("What is my name?\r")
second = prompt_tokens()
# The second prompt holds the first question and its answer.
assert second > first + 10, (first, second)
expect(b"> ")
say("/help\r")
expect(b"/clear")
expect(b"> ")
say("Write a long story.\r")
expect(b"Write a long story.")
time.sleep(0.5)
say("\x03")
expect(b"stopped", 10)
expect(b"> ")
say("/exit\r")
start = time.monotonic()
try:
    while os.read(terminal, 4096):
        pass
except OSError:
    pass  # The terminal is closed: the program has ended.
status = os.waitpid(child, 0)[1]
assert status == 0, status
assert time.monotonic() - start < 10, "it did not shut down at once"
