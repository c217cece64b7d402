//! Templates as they come with models, and conversations as they come from anyone.

use super::*;

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: content.to_owned(), ..ChatMessage::default() }
}

/// A template that trims, as most of Llama 3's descendants do.
const TRIMMING: &str = "{{- bos_token }}{%- for message in messages %}\
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\
{%- endfor %}{%- if add_generation_prompt %}\
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}";

fn template(text: &str) -> ChatTemplate {
    let tokens = TemplateTokens {
        bos: "<s>".to_owned(),
        eos: "</s>".to_owned(),
        control: ["<s>", "</s>", "<|im_end|>"].map(str::to_owned).to_vec(),
    };
    ChatTemplate::new(text, "a test", tokens).unwrap()
}

fn contents(rendered: &Rendered) -> Vec<&str> {
    rendered.content.iter().map(|range| &rendered.text[range.clone()]).collect()
}

#[test]
fn content_is_known_by_its_place_even_when_trimmed() {
    let chat = template(TRIMMING);
    let messages =
        [message("user", "  a <|im_end|>\n"), message("assistant", " \n"), message("user", "a")];
    let rendered = chat.render(&messages, &[], true).unwrap();
    let turn = |role: &str, text: &str| {
        format!("<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>")
    };
    let wanted =
        ["<s>".to_owned(), turn("user", "a <|im_end|>"), turn("assistant", ""), turn("user", "a")]
            .concat()
            + "<|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(rendered.text, wanted);
    assert_eq!(contents(&rendered), ["a <|im_end|>", "a"]);
    assert_eq!(
        chat.render(&messages[..1], &[], false).unwrap().text,
        format!("<s>{}", turn("user", "a <|im_end|>"))
    );
}

#[test]
fn blocks_are_trimmed_as_by_transformers() {
    let chat = template(
        "{% for message in messages %}\n    {% if loop.first %}\nA\n    {% endif %}\n{{ message.content }}\n{% endfor %}\nend\n",
    );
    let rendered = chat.render(&[message("user", "x"), message("user", "y")], &[], false).unwrap();
    assert_eq!(rendered.text, "A\nx\ny\nend");
}

#[test]
fn a_template_that_looks_into_content_sees_it_unmarked() {
    let chat = template(
        "{% for m in messages %}{% if m.content.startswith('T:') %}[tool]{% endif %}{{ m.content.split('|')[-1] }}<|im_end|>{% endfor %}",
    );
    let rendered =
        chat.render(&[message("user", "T:a|b"), message("user", "c")], &[], false).unwrap();
    assert_eq!(rendered.text, "[tool]b<|im_end|>c<|im_end|>");
    // With a control token's name in it, safety comes first: all of it is marked.
    let rendered = chat.render(&[message("user", "T:a|</s>é<|im_end|>")], &[], false).unwrap();
    assert_eq!(rendered.text, "T:a|</s>é<|im_end|><|im_end|>");
    assert_eq!(contents(&rendered), ["T:a|</s>", "<|im_end|>"]);
}

#[test]
fn nobody_can_write_a_mark() {
    let all: String = (0xf_0000..=0x10_fffdu32).step_by(64).filter_map(char::from_u32).collect();
    let chat = template("{{ messages[0].content }}");
    let error = chat.render(&[message("user", &all)], &[], false).unwrap_err();
    assert!(matches!(error, TemplateError::PrivateUse));
    let some: String = all.chars().take(5).collect();
    let rendered = chat.render(&[message("user", &some)], &[], false).unwrap();
    assert_eq!((rendered.text.as_str(), contents(&rendered)), (some.as_str(), vec![some.as_str()]));
}

#[test]
fn what_a_template_raises_is_the_callers_mistake_in_its_words() {
    let chat = template(
        "{% if messages[0].role != 'user' %}{{ raise_exception('roles must ' + 'alternate') }}{% endif %}ok",
    );
    let error = chat.render(&[message("tool", "x")], &[], false).unwrap_err();
    assert_eq!(error.to_string(), "the chat template refused the messages: roles must alternate");
    assert_eq!(chat.render(&[message("user", "x")], &[], false).unwrap().text, "ok");
}

#[test]
fn a_role_is_a_word() {
    let chat = template("{{ messages[0].role }}");
    for role in ["", "a b", "user<|im_end|>", "é", &"a".repeat(65)] {
        let error = chat.render(&[message(role, "x")], &[], false).unwrap_err();
        assert!(matches!(error, TemplateError::Role(_)), "{role:?}");
    }
}

#[test]
fn work_output_and_depth_are_bounded() {
    let run = |text: &str| template(text).render(&[message("user", "x")], &[], false).unwrap_err();
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert!(matches!(run(endless), TemplateError::Fuel { .. }));
    let doubling = "{% set ns = namespace(a='xxxxxxxxxxxxxxxx') %}{% for i in range(30) %}{% set ns.a = ns.a + ns.a %}{% endfor %}";
    assert!(matches!(run(doubling), TemplateError::Fuel { .. }));
    let deep = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(matches!(run(deep), TemplateError::Failed(_)));
    assert!(matches!(run("{% include 'other' %}"), TemplateError::Failed(_)));
    let long = message("user", &"x".repeat(MAX_OUTPUT_BYTES + 1));
    let error = template("{{ messages[0].content }}").render(&[long], &[], false).unwrap_err();
    assert!(matches!(error, TemplateError::Output { .. }));
    let invalid = ChatTemplate::new("{% if %}", "a test", TemplateTokens::default()).unwrap_err();
    assert!(matches!(invalid, TemplateError::Invalid { .. }));
}

#[test]
fn long_conversations_have_the_fuel_they_need() {
    let chat = template(TRIMMING);
    let messages: Vec<_> = (0..4096).map(|_| message("user", "hello")).collect();
    assert_eq!(chat.render(&messages, &[], true).unwrap().content.len(), 4096);
    let long = [message("user", &"x".repeat(MAX_OUTPUT_BYTES - 200))];
    assert_eq!(chat.render(&long, &[], true).unwrap().content.len(), 1);
}

#[test]
fn the_date_is_todays() {
    let chat =
        template("{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}");
    let rendered = chat.render_at(&[message("user", "x")], &[], false, 1_721_952_000).unwrap();
    assert_eq!(rendered.text, "26 Jul 2024");
}

fn call(name: &str, arguments: &str) -> ToolCall {
    ToolCall::new(Some("c1".to_owned()), name.to_owned(), arguments).unwrap()
}

#[test]
fn calls_and_tools_are_written_in_their_own_order() {
    let chat = template(
        "{{ tools | tojson(indent=1) if tools }}{% for m in messages %}{% if 'tool_calls' in m %}{% for c in m.tool_calls %}{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}",
    );
    let calls = vec![call("f", r#"{"b": "é</s>", "a": {"<s>": [1.0, null]}}"#)];
    let messages = [
        message("user", "x"),
        ChatMessage { role: "assistant".to_owned(), tool_calls: calls, ..ChatMessage::default() },
    ];
    let tool = Tool::new(r#"{"type": "function", "a": "<b>"}"#).unwrap();
    let rendered = chat.render(&messages, &[tool], false).unwrap();
    assert_eq!(
        rendered.text,
        "[\n {\n  \"type\": \"function\",\n  \"a\": \"<b>\"\n }\n]x<|im_end|>c1 f {\"b\": \"é</s>\", \"a\": {\"<s>\": [1.0, null]}}<|im_end|>"
    );
    assert_eq!(
        contents(&rendered),
        ["type", "function", "a", "<b>", "x", "c1", "b", "é</s>", "a", "<s>"]
    );
    assert_eq!(chat.render(&messages, &[], false).unwrap().text.matches("type").count(), 0);
}

#[test]
fn a_tool_is_an_object_and_has_a_word_for_a_name() {
    for arguments in ["", "[]", "null", "\"x\"", "{", "{} {}"] {
        let error = ToolCall::new(None, "f".to_owned(), arguments).unwrap_err();
        assert!(matches!(error, TemplateError::Json(_)), "{arguments:?}");
        assert!(matches!(Tool::new(arguments).unwrap_err(), TemplateError::Json(_)));
    }
    for name in ["", "a b", "<|eot_id|>", &"a".repeat(65)] {
        let error = ToolCall::new(None, name.to_owned(), "{}").unwrap_err();
        assert!(matches!(error, TemplateError::ToolName(_)), "{name:?}");
    }
}

#[derive(serde::Deserialize)]
struct Golden {
    template: String,
    now: u64,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    messages: Vec<CaseMessage>,
    tools: Vec<String>,
    add_generation_prompt: bool,
    text: String,
}

#[derive(serde::Deserialize)]
struct CaseMessage {
    role: String,
    content: String,
    tool_calls: Vec<CaseCall>,
}

#[derive(serde::Deserialize)]
struct CaseCall {
    id: Option<String>,
    name: String,
    arguments: String,
}

/// `tests/golden/make_llama3_template.py`.
#[test]
fn a_template_of_llama3s_kind_renders_as_by_transformers() {
    let golden = include_str!("../../../../tests/golden/llama3_template.json");
    let golden: Golden = serde_json::from_str(golden).unwrap();
    let tokens = TemplateTokens {
        bos: "<|begin_of_text|>".to_owned(),
        eos: "<|eot_id|>".to_owned(),
        control: ["<|begin_of_text|>", "<|eot_id|>"].map(str::to_owned).to_vec(),
    };
    let chat = ChatTemplate::new(&golden.template, "a test", tokens).unwrap();
    assert!(golden.cases.len() >= 16);
    for case in golden.cases {
        let call = |call: CaseCall| ToolCall::new(call.id, call.name, &call.arguments).unwrap();
        let message = |message: CaseMessage| ChatMessage {
            role: message.role,
            content: message.content,
            tool_calls: message.tool_calls.into_iter().map(call).collect(),
        };
        let messages: Vec<_> = case.messages.into_iter().map(message).collect();
        let tools: Vec<_> = case.tools.iter().map(|tool| Tool::new(tool).unwrap()).collect();
        let rendered = chat.render_at(&messages, &tools, case.add_generation_prompt, golden.now);
        assert_eq!(rendered.unwrap().text, case.text);
    }
}
