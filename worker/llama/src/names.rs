//! The weights of a Llama and how the checkpoint formats spell them.

use crate::config::LlamaConfig;

/// One weight of the model. `Display` spells it as Hugging Face does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightName {
    /// The embedding table `[vocab, hidden]`.
    EmbedTokens,
    /// The last norm's gain `[1, hidden]`.
    Norm,
    /// The LM head `[vocab, hidden]`; the embedding table where they are tied.
    LmHead,
    /// A weight of the layer with this index.
    Layer(usize, LayerWeight),
}

/// The weights of one transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerWeight {
    /// Gain of the norm before attention `[1, hidden]`.
    InputLayernorm,
    /// Query projection `[heads · head_dim, hidden]`, interleaved rows.
    QProj,
    /// Key projection `[kv_heads · head_dim, hidden]`, interleaved rows.
    KProj,
    /// Value projection `[kv_heads · head_dim, hidden]`.
    VProj,
    /// Output projection of attention `[hidden, heads · head_dim]`.
    OProj,
    /// Gain of the norm before the MLP `[1, hidden]`.
    PostAttentionLayernorm,
    /// Gate projection (w1) `[intermediate, hidden]`.
    GateProj,
    /// Up projection (w3) `[intermediate, hidden]`.
    UpProj,
    /// Down projection (w2) `[hidden, intermediate]`.
    DownProj,
}

/// Division of a weight among the files of a sharded Meta checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MetaSplit {
    /// Every file has all of it.
    Replicated,
    /// Each file has an equal share of the rows (output channels), in order.
    Rows,
    /// Each file has an equal share of the columns (input channels), in order.
    Cols,
}

impl LayerWeight {
    /// Every weight of a block, in the order of use.
    pub const ALL: [Self; 9] = [
        Self::InputLayernorm,
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::PostAttentionLayernorm,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    fn hugging_face(self) -> &'static str {
        match self {
            Self::InputLayernorm => "input_layernorm",
            Self::QProj => "self_attn.q_proj",
            Self::KProj => "self_attn.k_proj",
            Self::VProj => "self_attn.v_proj",
            Self::OProj => "self_attn.o_proj",
            Self::PostAttentionLayernorm => "post_attention_layernorm",
            Self::GateProj => "mlp.gate_proj",
            Self::UpProj => "mlp.up_proj",
            Self::DownProj => "mlp.down_proj",
        }
    }

    fn meta(self) -> &'static str {
        match self {
            Self::InputLayernorm => "attention_norm",
            Self::QProj => "attention.wq",
            Self::KProj => "attention.wk",
            Self::VProj => "attention.wv",
            Self::OProj => "attention.wo",
            Self::PostAttentionLayernorm => "ffn_norm",
            Self::GateProj => "feed_forward.w1",
            Self::UpProj => "feed_forward.w3",
            Self::DownProj => "feed_forward.w2",
        }
    }

    fn gguf(self) -> &'static str {
        match self {
            Self::InputLayernorm => "attn_norm",
            Self::QProj => "attn_q",
            Self::KProj => "attn_k",
            Self::VProj => "attn_v",
            Self::OProj => "attn_output",
            Self::PostAttentionLayernorm => "ffn_norm",
            Self::GateProj => "ffn_gate",
            Self::UpProj => "ffn_up",
            Self::DownProj => "ffn_down",
        }
    }
}

impl WeightName {
    /// Every weight that a checkpoint of this model stores: with tied
    /// embeddings the LM head is not among them.
    pub fn stored(config: &LlamaConfig) -> Vec<Self> {
        let mut names = vec![Self::EmbedTokens];
        for layer in 0..config.num_hidden_layers {
            names.extend(LayerWeight::ALL.map(|weight| Self::Layer(layer, weight)));
        }
        names.push(Self::Norm);
        if !config.tie_word_embeddings {
            names.push(Self::LmHead);
        }
        names
    }

    /// `[rows, cols]`: output and input channels. A norm gain is one row.
    pub fn shape(self, config: &LlamaConfig) -> [usize; 2] {
        let hidden = config.hidden_size;
        match self {
            Self::EmbedTokens | Self::LmHead => [config.vocab_size, hidden],
            Self::Norm => [1, hidden],
            Self::Layer(_, weight) => match weight {
                LayerWeight::InputLayernorm | LayerWeight::PostAttentionLayernorm => [1, hidden],
                LayerWeight::QProj => [config.query_size(), hidden],
                LayerWeight::KProj | LayerWeight::VProj => [config.key_value_size(), hidden],
                LayerWeight::OProj => [hidden, config.query_size()],
                LayerWeight::GateProj | LayerWeight::UpProj => [config.intermediate_size, hidden],
                LayerWeight::DownProj => [hidden, config.intermediate_size],
            },
        }
    }

    /// The tensor's name in a GGUF file.
    pub fn gguf(self) -> String {
        match self {
            Self::EmbedTokens => "token_embd.weight".to_owned(),
            Self::Norm => "output_norm.weight".to_owned(),
            Self::LmHead => "output.weight".to_owned(),
            Self::Layer(layer, weight) => format!("blk.{layer}.{}.weight", weight.gguf()),
        }
    }

    /// The tensor's name in Meta's files, without the `text_model.` that vision
    /// models put before it.
    pub fn meta(self) -> String {
        match self {
            Self::EmbedTokens => "tok_embeddings.weight".to_owned(),
            Self::Norm => "norm.weight".to_owned(),
            Self::LmHead => "output.weight".to_owned(),
            Self::Layer(layer, weight) => format!("layers.{layer}.{}.weight", weight.meta()),
        }
    }

    /// How Meta's model-parallel files divide the weight among them.
    pub fn meta_split(self) -> MetaSplit {
        match self {
            Self::EmbedTokens | Self::LmHead => MetaSplit::Rows,
            Self::Norm => MetaSplit::Replicated,
            Self::Layer(_, weight) => match weight {
                LayerWeight::InputLayernorm | LayerWeight::PostAttentionLayernorm => {
                    MetaSplit::Replicated
                }
                LayerWeight::OProj | LayerWeight::DownProj => MetaSplit::Cols,
                LayerWeight::QProj
                | LayerWeight::KProj
                | LayerWeight::VProj
                | LayerWeight::GateProj
                | LayerWeight::UpProj => MetaSplit::Rows,
            },
        }
    }

    /// True for the projections whose rows Hugging Face stores half-split.
    pub(crate) fn is_rotated(self) -> bool {
        matches!(self, Self::Layer(_, LayerWeight::QProj | LayerWeight::KProj))
    }
}

impl std::fmt::Display for WeightName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::EmbedTokens => f.write_str("model.embed_tokens.weight"),
            Self::Norm => f.write_str("model.norm.weight"),
            Self::LmHead => f.write_str("lm_head.weight"),
            Self::Layer(layer, weight) => {
                write!(f, "model.layers.{layer}.{}.weight", weight.hugging_face())
            }
        }
    }
}
