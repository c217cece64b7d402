"""The official openai client against a running gateway: openai_client.py URL."""

import math
import sys
import time

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
MODEL = client.models.list().data[0].id
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def models():
    assert client.models.retrieve(MODEL).id == MODEL


def chat():
    reply = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=48)
    choice = reply.choices[0]
    assert "Paris" in choice.message.content, choice.message.content
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 48
    return choice.message.content


def streaming_equals_unary():
    text, finish, usage = "", None, None
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=48,
        stream=True, stream_options={"include_usage": True},
    )
    chunks = 0
    for chunk in stream:
        if chunk.usage is not None:
            assert chunk.choices == []
            usage = chunk.usage
            continue
        chunks += 1
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    assert text == chat(), text
    assert finish is not None and usage.completion_tokens > 0
    assert chunks > 3, "it was not streamed"


def seeds():
    def ask(seed):
        reply = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=1.2, top_p=0.95, seed=seed, max_tokens=24)
        return reply.choices[0].message.content
    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(4)}) > 1


def several_answers():
    reply = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=1.5, seed=1, n=3, max_tokens=16)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in reply.choices}) > 1


def logprobs():
    reply = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3)
    content = reply.choices[0].logprobs.content
    # The token that ends a turn has no text, and so no entry.
    ended = reply.choices[0].finish_reason == "stop"
    assert len(content) == reply.usage.completion_tokens - ended
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        # Greedy: the chosen token is the likeliest.
        assert entry.token == entry.top_logprobs[0].token
        assert math.isclose(entry.logprob, entry.top_logprobs[0].logprob)
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token
    text = b"".join(bytes(entry.bytes) for entry in content).decode("utf-8", "replace")
    assert text.startswith(reply.choices[0].message.content)


def stop_strings():
    full = client.completions.create(model=MODEL, prompt="One, two, three,", temperature=0, max_tokens=16)
    text = full.choices[0].text
    stop = text[4:9]
    cut = client.completions.create(model=MODEL, prompt="One, two, three,", temperature=0, max_tokens=16, stop=stop)
    assert cut.choices[0].text == text[: text.index(stop)], (text, cut.choices[0].text)
    assert cut.choices[0].finish_reason == "stop"


def completions():
    reply = client.completions.create(model=MODEL, prompt=["Hello", "The sky is"], temperature=0, max_tokens=8)
    assert [choice.index for choice in reply.choices] == [0, 1]
    ids = client.completions.create(
        model=MODEL, prompt="The sky is", temperature=0, max_tokens=8,
        extra_body={"return_token_ids": True})
    prompt_ids = ids.choices[0].prompt_token_ids
    again = client.completions.create(model=MODEL, prompt=prompt_ids, temperature=0, max_tokens=8)
    assert again.choices[0].text == reply.choices[1].text
    streamed = client.completions.create(model=MODEL, prompt="The sky is", temperature=0, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == again.choices[0].text


def evaluation_harness():
    reply = client.completions.create(
        model=MODEL, prompt="The capital of France is Paris", echo=True, logprobs=1, max_tokens=0, temperature=0)
    choice = reply.choices[0]
    assert choice.text == "The capital of France is Paris"
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])
    assert choice.logprobs.text_offset[0] == 0
    assert len(choice.logprobs.text_offset) == len(choice.logprobs.tokens)


def logit_bias():
    free = client.completions.create(
        model=MODEL, prompt="The sky is", temperature=0, max_tokens=1, extra_body={"return_token_ids": True})
    token = free.choices[0].token_ids[0]
    biased = client.completions.create(
        model=MODEL, prompt="The sky is", temperature=0, max_tokens=1, logit_bias={str(token): -100},
        extra_body={"return_token_ids": True})
    assert biased.choices[0].token_ids[0] != token


def penalties():
    plain = client.completions.create(model=MODEL, prompt="la la la la la", temperature=0, max_tokens=24)
    penalized = client.completions.create(
        model=MODEL, prompt="la la la la la", temperature=0, max_tokens=24, frequency_penalty=2, presence_penalty=2)
    assert plain.choices[0].text != penalized.choices[0].text


def minimum_length():
    reply = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=80,
        extra_body={"ignore_eos": True, "min_tokens": 70})
    assert reply.usage.completion_tokens == 80 and reply.choices[0].finish_reason == "length"


def errors():
    for kind, arguments in [
        (openai.NotFoundError, {"model": "no-such-model", "messages": QUESTION}),
        (openai.BadRequestError, {"model": MODEL, "messages": QUESTION, "temperature": 9}),
        (openai.BadRequestError, {"model": MODEL, "messages": []}),
        (openai.BadRequestError, {"model": MODEL, "messages": QUESTION, "max_tokens": 10**9}),
        (openai.BadRequestError, {"model": MODEL, "messages": [{"role": "user", "content": "word " * 20000}]}),
    ]:
        try:
            client.chat.completions.create(**arguments)
        except kind as error:
            assert error.body["message"], error
            if kind is openai.BadRequestError and "word" in str(arguments):
                assert error.body["code"] == "context_length_exceeded", error.body
        else:
            raise AssertionError(f"{arguments} was accepted")


def cancellation():
    start = time.monotonic()
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=4000, stream=True, extra_body={"ignore_eos": True})
    for _, _chunk in zip(range(5), stream):
        pass
    stream.close()
    # The slot is free again: a short answer does not wait for the long one.
    chat()
    assert time.monotonic() - start < 30


for test in (models, chat, streaming_equals_unary, seeds, several_answers, logprobs, stop_strings, completions,
             evaluation_harness, logit_bias, penalties, minimum_length, errors, cancellation):
    started = time.monotonic()
    test()
    print(f"ok {test.__name__} ({time.monotonic() - started:.2f} s)")
