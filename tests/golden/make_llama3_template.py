#!/usr/bin/env python3
"""Makes llama3_template.json: conversations rendered by transformers with a template of ours.

The template does what those of Llama 3.1 and its kin do: it tells dates, folds
the first system message into a header of its own, describes tools as indented
JSON in the first user message, writes one call a message, and results as
`ipython`. It is ours because theirs are not ours to copy; what is tested is that
the same template gives the same text.

    python3 -m pip install transformers==5.24.0 jinja2==3.1.6
    python3 make_llama3_template.py llama3_template.json
"""

import datetime
import json
import sys

from transformers.utils import chat_template_utils

NOW = datetime.datetime(2024, 7, 26, 9, 5, 3)

TEMPLATE = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2024" %}
    {%- endif %}
{%- endif %}
{%- macro open(role) -%}
    {{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
{%- endmacro %}
{#- The first message may be the system's. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- open("system") }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Knowledge ends: December 2023\\nToday: " + date_string + "\\n\\n" }}
{{- system }}
{{- "<|eot_id|>" }}
{%- if tools is not none %}
    {%- if messages | length == 0 or messages[0].role != 'user' %}
        {{- raise_exception("tools need a user message to stand in") }}
    {%- endif %}
    {%- set first = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
    {{- open("user") -}}
    {{- "Functions that you may call, " ~ tools | length ~ " of them:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" if not loop.last else "\\n" }}
    {%- endfor %}
    {{- first + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- open(message['role']) + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call a message") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- open('assistant') -}}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}" }}
        {%- for key, value in call.arguments.items() %}
            {{- " " ~ key ~ "=" ~ value if value is string }}
        {%- endfor %}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- open("ipython") }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- open('assistant') }}
{%- endif %}
"""

WEATHER = {"type": "function", "function": {"name": "weather", "description": "What's the <weather> & why? \u00e9", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}}, "required": ["city"]}}}
EMPTY = {"type": "function", "function": {"name": "now", "parameters": {}, "tags": [], "z": None, "a": [True, 1.5e-7, [1, {"b": "x"}]]}}


def call(name, arguments):
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}]}


def turn(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    ([turn("user", "Hello")], []),
    ([turn("system", "  Be brief.\n"), turn("user", " Hi \n")], []),
    ([turn("user", "Hi"), turn("assistant", "  Hello! "), turn("user", "caf\u00e9 \u4f60\u597d \U0001f642")], []),
    ([turn("system", "s"), turn("system", "t"), turn("user", "")], []),
    ([turn("user", "Weather?")], [WEATHER]),
    ([turn("system", "s"), turn("user", " Weather? "), call("weather", {"days": 2, "city": "K\u00f6ln \"am\" <Rhein>"}), turn("tool", "{\"c\": 21}\n"), turn("assistant", "21 degrees.")], [WEATHER, EMPTY]),
    ([turn("user", "x"), call("now", {}), turn("ipython", "12:00")], []),
    ([turn("user", "x"), call("f", {"b": 1e16, "a": [1, 2.0, None, True, {"z": "y", "c": "d"}], "t": "\n\t\\"})], []),
]


class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def main(out):
    chat_template_utils.datetime = Frozen
    cases = []
    for messages, tools in CONVERSATIONS:
        for add_generation_prompt in (True, False):
            texts, _ = chat_template_utils.render_jinja_template(
                [messages], tools=tools or None, chat_template=TEMPLATE, add_generation_prompt=add_generation_prompt, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
            assert "26 Jul 2024" in texts[0], "the date is frozen"
            ours = []
            for message in messages:
                calls = [{"id": c["id"], "name": c["function"]["name"], "arguments": json.dumps(c["function"]["arguments"])} for c in message.get("tool_calls", [])]
                ours.append({"role": message["role"], "content": message["content"], "tool_calls": calls})
            cases.append({"messages": ours, "tools": [json.dumps(tool) for tool in tools], "add_generation_prompt": add_generation_prompt, "text": texts[0]})
    with open(out, "w", encoding="ascii") as file:
        lines = ",\n".join(json.dumps(case) for case in cases)
        file.write('{"template": %s, "now": %d, "cases": [\n%s\n]}\n' % (json.dumps(TEMPLATE), NOW.replace(tzinfo=datetime.timezone.utc).timestamp(), lines))
    print(f"{len(cases)} conversations")


if __name__ == "__main__":
    main(*sys.argv[1:])
