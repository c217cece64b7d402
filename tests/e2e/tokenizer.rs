//! The packaged model's tokenizer and chat template against golden ids, on which
//! llama.cpp and Hugging Face's tokenizers agree (`golden/make_tokenizer.py`).

use gateway::text::chat_template::ChatMessage;
use gateway::text::detokenizer::IncrementalDetokenizer;
use gateway::text::tokenizer::SpecialTokens;
use gateway::text::{ChatFormat, TextModel};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    texts: Vec<Text>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/smollm2_tokenizer.json"))
        .expect("the script's output")
}

fn model() -> TextModel {
    TextModel::from_gguf(&integration_tests::packaged_model()).expect("loads")
}

#[test]
fn texts_become_the_ids_of_the_references() {
    let (golden, tokenizer) = (golden(), model().tokenizer);
    assert!(golden.texts.len() >= 60);
    for Text { text, ids } in &golden.texts {
        assert_eq!(&tokenizer.encode_text(text).unwrap(), ids, "{text:?}");
        let mut detokenizer = IncrementalDetokenizer::new(tokenizer.clone(), SpecialTokens::Skip);
        let mut streamed: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        streamed += &detokenizer.flush();
        assert_eq!(streamed, tokenizer.decode(ids, SpecialTokens::Skip));
    }
}

#[test]
fn chats_are_rendered_and_encoded_as_by_transformers() {
    let (golden, model) = (golden(), model());
    for chat in &golden.chats {
        let message = |message: &Message| ChatMessage {
            role: message.role.clone(),
            content: message.content.clone(),
            tool_calls: Vec::new(),
        };
        let messages: Vec<_> = chat.messages.iter().map(message).collect();
        let Some(ChatFormat::Template(template)) = &model.chat_format else {
            panic!("the packaged model has a template");
        };
        let rendered = template.render(&messages, &[], chat.add_generation_prompt).unwrap();
        assert_eq!(rendered.text, chat.text);
        let ids = model.encode_chat(&messages, &[], chat.add_generation_prompt).unwrap();
        assert_eq!(ids, chat.ids, "{:?}", chat.text);
    }
}
