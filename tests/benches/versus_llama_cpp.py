#!/usr/bin/env python3
"""Our decode and prefill beside llama.cpp's, interleaved in one run.

    python3 -m pip install llama-cpp-python==0.3.36 numpy
    python3 tests/benches/versus_llama_cpp.py MODEL.gguf

The peer runs MODEL as it is and requantized to Q8_0 (8.5 bits a weight, as our
bfp8), with two threads. Its `use_extra_bufts` is off: with it, this version
crashes on some processors with AMX.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import llama_cpp

ROUNDS = 5
DECODED = 128
PROMPT = 512
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

plain_params = llama_cpp.llama_model_default_params


def params_without_extra_buffers():
    params = plain_params()
    params.use_extra_bufts = False
    return params


llama_cpp.llama_model_default_params = params_without_extra_buffers
llama_cpp.llama.llama_cpp.llama_model_default_params = params_without_extra_buffers


class Peer:
    def __init__(self, path):
        self.model = llama_cpp.Llama(
            path, n_ctx=1024, n_batch=512, n_threads=2, n_threads_batch=2, logits_all=False, verbose=False)
        self.ids = list(range(0, 40000, 37))[:PROMPT]

    def run(self):
        """Prefill and decode rates by llama_decode alone, no Python a token but the call."""
        self.model.reset()
        start = time.perf_counter()
        self.model.eval(self.ids)
        prefill = PROMPT / (time.perf_counter() - start)
        self.model.reset()
        self.model.eval(self.ids[:16])
        batch = llama_cpp.llama_batch_get_one
        token = (llama_cpp.llama_token * 1)()
        context = self.model._ctx.ctx
        start = time.perf_counter()
        for i in range(DECODED):
            token[0] = self.ids[i]
            assert llama_cpp.llama_decode(context, batch(token, 1)) == 0
        return prefill, DECODED / (time.perf_counter() - start)


def ours():
    out = subprocess.run(
        ["cargo", "bench", "--quiet", "--locked", "-p", "integration-tests", "--bench", "decode"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    report = json.loads(out.strip().splitlines()[-1])
    return report["prefill_512_tokens_per_second"], report["decode_tokens_per_second"]


def main():
    model = sys.argv[1]
    with tempfile.TemporaryDirectory() as scratch:
        q8 = os.path.join(scratch, "q8_0.gguf")
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
        params.allow_requantize = True
        assert llama_cpp.llama_model_quantize(model.encode(), q8.encode(), params) == 0
        peers = {"llama.cpp Q8_0": q8, "llama.cpp, the file as it is": model}
        ours()  # Builds.
        rows = {"llama-mesh": []} | {name: [] for name in peers}
        for _ in range(ROUNDS):
            rows["llama-mesh"].append(ours())
            for name, path in peers.items():
                # One at a time: its threads spin, also those of an idle context.
                peer = Peer(path)
                rows[name].append(peer.run())
                peer.model.close()
    medians = {name: [statistics.median(column) for column in zip(*runs)] for name, runs in rows.items()}
    print(f"| {'2 threads, tok/s':30} | pp512 | tg128 | ours / peer: pp512 | tg128 |\n|---|---|---|---|---|")
    mine = medians["llama-mesh"]
    for name, (prefill, decode) in medians.items():
        print(f"| {name:30} | {prefill:.0f} | {decode:.1f} | {mine[0] / prefill:.2f} | {mine[1] / decode:.2f} |")


if __name__ == "__main__":
    main()
