#!/usr/bin/env python3
"""Makes smollm2.json: what llama.cpp answers on the packaged model's weights.

The weights are dequantized to F32 first, and llama.cpp keeps its KV cache in
F32, so that only arithmetic is compared, not number formats.

    python3 -m pip install llama-cpp-python==0.3.36 gguf==0.19.0 numpy
    python3 make_smollm2.py MODEL.gguf smollm2.json
"""

import json
import os
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np

QUESTIONS = [
    "Why is the sky blue?",
    "Write a haiku about the sea.",
    "What is the capital of France, and what is it known for?",
    "Explain recursion to a ten year old.",
    "List three uses for a paperclip.",
    "Translate 'good morning' into Spanish.",
    "What is 12 times 9?",
    "Give me a short recipe for tomato soup.",
    "Write a Python function that reverses a string.",
    "Who wrote Romeo and Juliet?",
]
GREEDY_TOKENS = 64

# Text of our own for the teacher-forced positions: prose, numbers, code, lists.
PASSAGES = [
    "The harbour was quiet at dawn. Two boats lay against the wall, their ropes stiff with salt, "
    "and a gull walked along the edge of the quay as if it owned the place. By seven the first "
    "trucks had come down from the town, and the smell of diesel mixed with that of coffee from "
    "the small kiosk beside the ice house. Nobody spoke much. The fishermen counted crates, the "
    "drivers signed papers, and the harbour master, who had not slept, wrote the depth of the "
    "water into his book: 4.2 metres at the north pier, 3.8 at the south.",
    "def moving_average(values, window):\n"
    "    \"\"\"Return the mean of each run of `window` consecutive values.\"\"\"\n"
    "    if window <= 0:\n"
    "        raise ValueError(\"window must be positive\")\n"
    "    total = sum(values[:window])\n"
    "    result = [total / window]\n"
    "    for i in range(window, len(values)):\n"
    "        total += values[i] - values[i - window]\n"
    "        result.append(total / window)\n"
    "    return result\n",
    "A computer network is a set of computers that share resources. The first thing to decide is "
    "how they are connected: by cable, by fibre, or by radio. Each choice has its own cost, speed "
    "and reach. Data is sent in small packets, and every packet carries the address of the machine "
    "it is meant for. Routers read the address and pass the packet on, one step at a time, until "
    "it arrives. If a packet is lost, the sender notices that no answer has come back, and sends "
    "it again. In this way a reliable service is built on top of an unreliable one.",
    "Shopping list for the weekend: 2 kg of potatoes, 500 g of butter, 12 eggs, 3 lemons, one "
    "bunch of parsley, olive oil, black pepper, and a loaf of bread. Total so far: 23.40. On "
    "Saturday we cook for six people, so take the big pot. On Sunday the soup can be warmed up, "
    "and there should be enough left for Monday as well. Remember that the shop closes at 20:00.",
    "When the bridge was built, the river was still used by barges, and its middle section could be "
    "raised in less than three minutes. Today the motors are gone. A brass plate tells visitors who "
    "paid for the work, and how many rivets were driven, but not who drove them. My grandfather was "
    "one of those men. He used to say that a bridge is only finished on the day that people stop "
    "noticing it, and that he had waited for that day for forty years.",
]


def write_f32(source, target):
    """Writes `source` again with every tensor dequantized to F32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        item = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=item)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape([int(d) for d in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def chat_prompt(model, question):
    """The packaged template's rendering of one user turn, as ids."""
    text = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    return model.tokenize(text.encode(), add_bos=False, special=True)


def logits_of(model, ids):
    """Logits at every position: [len(ids), vocab]."""
    model.reset()
    model.eval(ids)
    return np.array(model.scores[: len(ids)], dtype=np.float64)


def log_softmax(rows):
    top = rows.max(axis=1, keepdims=True)
    return rows - top - np.log(np.exp(rows - top).sum(axis=1, keepdims=True))


def greedy(model, prompt):
    """GREEDY_TOKENS ids, going on past the end of turn."""
    model.reset()
    model.eval(prompt)
    answer = []
    while len(answer) < GREEDY_TOKENS:
        token = int(np.argmax(model.scores[model.n_tokens - 1]))
        answer.append(token)
        model.eval([token])
    return answer


def main():
    source, output = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "f32.gguf")
        write_f32(source, path)
        model = llama_cpp.Llama(
            path, n_ctx=2048, n_batch=512, n_threads=2, logits_all=True, flash_attn=False,
            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, verbose=False,
        )
        chats = []
        for question in QUESTIONS:
            prompt = chat_prompt(model, question)
            chats.append({"question": question, "prompt": prompt, "greedy": greedy(model, prompt)})
        forced = []
        for passage in PASSAGES:
            ids = model.tokenize(passage.encode(), add_bos=False, special=False)
            rows = log_softmax(logits_of(model, ids))
            forced.append({
                "ids": ids,
                # Entry i belongs to position i, which predicts ids[i + 1].
                "top1": [int(t) for t in rows.argmax(axis=1)],
                "margin": [round(float(np.diff(np.sort(row)[-2:])[0]), 6) for row in rows],
                "next_logprob": [round(float(rows[i, ids[i + 1]]), 6) for i in range(len(ids) - 1)],
            })
        with open(output, "w") as file:
            json.dump({
                "made_by": f"llama-cpp-python {llama_cpp.__version__}, weights dequantized to F32, F32 KV cache",
                "chats": chats,
                "forced": forced,
            }, file, separators=(",", ":"))
            file.write("\n")
        print(sum(len(f["ids"]) for f in forced), "teacher-forced positions")


if __name__ == "__main__":
    main()
