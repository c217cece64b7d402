#!/usr/bin/env python3
"""Counts the tokens of the prompts that come with the program, by Meta's tokenizer.

    pip install tiktoken
    tests/golden/make_prompt_lengths.py /path/to/tokenizer.model

Writes tests/golden/prompt_lengths.json: SHA-256 of each text to its number of
tokens, without a token that starts a text. `tokenizer.model` is the file of a
Llama 3 checkpoint; it is not part of this repository.
"""

import base64
import hashlib
import json
import pathlib
import sys

import tiktoken

# How Llama 3 cuts text before it merges bytes.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main() -> None:
    root = pathlib.Path(__file__).resolve().parents[2]
    lines = pathlib.Path(sys.argv[1]).read_bytes().split(b"\n")
    pairs = (line.split() for line in lines if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    encoding = tiktoken.Encoding(
        "llama3", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    prompts = root / "deploy/prompts"
    texts = [prompts.joinpath("long.txt").read_text(encoding="utf-8")]
    for name in ("instruct", "general", "long"):
        entries = json.loads(prompts.joinpath(f"{name}.json").read_text(encoding="utf-8"))
        texts += [entry["prompt"] for entry in entries]
    lengths = {
        hashlib.sha256(text.encode()).hexdigest(): len(encoding.encode_ordinary(text))
        for text in texts
    }
    out = root / "tests/golden/prompt_lengths.json"
    out.write_text(json.dumps(lengths, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(lengths)} texts, {min(lengths.values())} to {max(lengths.values())} tokens")


if __name__ == "__main__":
    main()
