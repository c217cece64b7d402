#!/usr/bin/env python3
"""Writes texts and their ids by Meta's own tokenizer (`tiktoken`), one JSON object a line.

    python3 tokenizer_oracle.py SEED COUNT OUT.jsonl

needs the packages llama-models and tiktoken; the vocabulary is the package's own.
A line is {"text": ..., "ids": [...]}. COUNT random texts are followed by fixed
hard ones and by long ones, on which Meta's cutting shows.
"""

import json
import random
import sys

from llama_models.llama3.tokenizer import Tokenizer

CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'\u017f", "\u2019s", "'x", "'"]
SPACES = [" ", "  ", "\t", "\n", "\r", "\r\n", "\n\n", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\u00a0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u3000"]
NUMBERS = list("0123456789") + ["12", "345", "6789", "\u00bd", "\u00b2", "\u2167", "\u0661", "\u0967", "\uff11", "\U0001d7d8", "1,000.5e-3"]
WORDS = "the of and hello world token Tokenizer PANIC iPhone don can we they naïve café Straße Привет мир שלום مرحبا नमस्ते สวัสดี 日本語 你好 한국어 ελληνικά x _y Ω İ ı ß ǆ".split()
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🇫🇷", "👍🏽", "❤️", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\u200d", "\ufe0f"]
MARKS = ["\u0301", "\u0308", "\u20dd", "\u064b", "\u093f", "\u0e31", "e\u0301", "\u200b", "\ufeff", "\u00ad", "\ufffd", "\u0000", "\u007f"]
CODE = ["def f(x):\n    return x", "if (a && b) { c[i++] = d->e; }", "</div>", "#include <stdio.h>", "/* */", "//", "=>", "!=", "...", "----", "====", "\\n", "\\x80", "Ã©", "ï»¿", "â€™", "%20", "::", "$_", "\"'`", "{{ x }}"]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["«", "—", "。", "！", "€", "∑", "\u0e3f"]


def special(rng, names):
    name = rng.choice(names)
    return rng.choice([name, name, name[:-1], name[1:], name[:rng.randrange(1, len(name))], name.upper()])


def any_character(rng):
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x20000, 0x40000), (0xE0000, 0xF0000), (0x40000, 0x110000)]
    return chr(rng.randrange(*rng.choice(planes)))


def any_case(rng, text):
    return "".join(rng.choice([c.lower(), c.upper(), c]) for c in text)


def random_text(rng, names):
    kinds = [
        lambda: rng.choice(WORDS), lambda: " " + rng.choice(WORDS), lambda: any_case(rng, rng.choice(WORDS)),
        lambda: any_case(rng, rng.choice(CONTRACTIONS)), lambda: rng.choice(SPACES), lambda: rng.choice(SPACES) * rng.randrange(1, 9),
        lambda: rng.choice(NUMBERS), lambda: "".join(rng.choices("0123456789", k=rng.randrange(1, 12))), lambda: rng.choice(EMOJI),
        lambda: rng.choice(MARKS), lambda: rng.choice(CODE), lambda: rng.choice(PUNCTUATION) * rng.randrange(1, 5), lambda: special(rng, names),
        lambda: any_character(rng), lambda: "".join(any_character(rng) for _ in range(rng.randrange(1, 12))), lambda: rng.choice(WORDS)[:1] * rng.randrange(1, 200),
    ]
    # Some texts are of few kinds, so that their runs are long.
    chosen = rng.sample(kinds, rng.choice([1, 2, 3, len(kinds)]))
    return "".join(rng.choice(chosen)() for _ in range(rng.randrange(1, 24)))


def hard_texts(names):
    codes = [*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200)]
    everything = "".join(map(chr, codes))
    # Every character of the planes in use, alone and in company, 2,048 to a text.
    for start in range(0, len(everything), 2048):
        part = everything[start:start + 2048]
        yield part
        yield "".join(f"a{c} {c}1" for c in part)
    yield ""
    yield from names
    yield "".join(names)
    for unit in ["a", "ab", "^", "_", " ", "\n", " \n", "\t", "7", "日", "é", "\u0301", "😀", "👩‍👩‍👧‍👦", "<|", "'", "'s", "=", "\u3000", "\x1c"]:
        for count in [1, 2, 3, 4, 5, 7, 8, 16, 31, 63, 95, 96, 97, 98, 127, 128, 129, 200, 1000, 5000]:
            yield unit * count
            yield "x" + unit * count + " y"


def long_texts(rng, names):
    for unit in ["a", " ", "7", "^", "\n", "日", "é", "😀", "ab", "\u3000", "\x1c "]:
        for count in [24_999, 25_000, 25_001, 50_001]:
            text = (unit * count)[:count]
            yield " x " + text + "\n y"
    for count in [400_000, 400_001, 800_002]:
        yield ("hello world! " * count)[:count]
        yield ("don't  \n 1234" * count)[:count]
    for run in (25_009, 25_010, 25_011):
        yield "a " * 199_995 + "b" * run + " end"
    for _ in range(6):
        text = ""
        while len(text) < 450_000:
            text += random_text(rng, names) * rng.randrange(1, 300)
        yield text[rng.randrange(1000):]


def main(seed, count, out):
    tokenizer, rng = Tokenizer.get_instance(), random.Random(int(seed))
    names = list(tokenizer.special_tokens)[:20]
    written = 0
    with open(out, "w", encoding="utf-8", newline="\n") as file:
        def write(text):
            ids = tokenizer.encode(text, bos=False, eos=False)
            file.write(json.dumps({"text": text, "ids": ids}, ensure_ascii=False) + "\n")
        for _ in range(int(count)):
            write(random_text(rng, names))
        for texts in (hard_texts(names), long_texts(rng, names)):
            for text in texts:
                write(text)
                written += 1
    print(f"{count} random texts, {written} others")


if __name__ == "__main__":
    main(*sys.argv[1:])
