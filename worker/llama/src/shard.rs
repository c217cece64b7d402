//! Which slice of which weight goes to which chip, as data.

use std::fmt;

use crate::config::{Llama3Size, LlamaConfig};
use crate::names::{LayerWeight, WeightName};

/// How many chips are tried when an error says what would fit.
const MAX_CHIPS_TRIED: usize = 32;
/// Chips that are wired as a ring (a T3000): only there is the output
/// projection of attention cut by its output.
const RING_CHIPS: usize = 8;
/// Llama 3.1 70B is served by a T3000 or not at all.
const CHIPS_OF_70B: usize = 8;
/// Rows and columns of a tile.
const TILE: usize = 32;

/// How a weight is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Column-parallel: along the output channels (rows of `[out, in]`).
    Output,
    /// Row-parallel: along the input channels; the products are summed. An
    /// embedding table is cut the same way, along the channels of its rows.
    Input,
    /// Whole on every chip.
    Replicated,
}

/// One weight's place on the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightShard {
    /// Name; a layer's weights are listed once, as layer 0.
    pub name: WeightName,
    /// How it is cut.
    pub split: Split,
    /// `[out, in]` in the checkpoint.
    pub shape: [usize; 2],
    /// `[out, in]` on each chip.
    pub per_chip: [usize; 2],
    /// How many such weights the model has.
    pub count: usize,
}

/// Tensor parallelism of one model over `num_chips` chips.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPlan {
    num_chips: usize,
    heads_per_chip: usize,
    kv_heads_per_chip: usize,
    output_projection: Split,
    weights: Vec<WeightShard>,
}

/// The model cannot be cut for this many chips.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Some dimension is no multiple of the number of chips.
    #[error("{dimensions} fit {}, not {num_chips}", Chips(.fitting))]
    DoesNotDivide {
        /// How many chips were asked for.
        num_chips: usize,
        /// Chip counts that fit.
        fitting: Vec<usize>,
        /// The dimensions that are cut.
        dimensions: String,
    },
    /// A model that is made for a larger mesh.
    #[error(
        "{model} needs {needed} chips, not {num_chips}: use --device T3K, on a host without the \
         cards together with --simulate"
    )]
    TooFewChips {
        /// Which.
        model: Llama3Size,
        /// How many chips were asked for.
        num_chips: usize,
        /// How many it takes.
        needed: usize,
    },
}

impl ShardPlan {
    /// Cuts `config` for `num_chips` chips.
    ///
    /// # Errors
    /// [`PlanError`] when hidden size, KV heads, heads, FFN or vocabulary do not
    /// divide by the chips (it names the counts that fit), or for Llama 3.1 70B
    /// on fewer than 8 chips, of whatever kind they are.
    pub fn new(config: &LlamaConfig, num_chips: usize) -> Result<Self, PlanError> {
        let model = Llama3Size::B70;
        if config.llama3_size() == Some(model) && num_chips < CHIPS_OF_70B {
            return Err(PlanError::TooFewChips { model, num_chips, needed: CHIPS_OF_70B });
        }
        if !fits(config, num_chips) {
            return Err(PlanError::DoesNotDivide {
                num_chips,
                fitting: chips_that_fit(config, MAX_CHIPS_TRIED),
                dimensions: format!(
                    "{} KV heads, {} heads, hidden size {}, FFN {} and vocabulary {}",
                    config.num_key_value_heads,
                    config.num_attention_heads,
                    config.hidden_size,
                    config.intermediate_size,
                    config.vocab_size
                ),
            });
        }
        let output_projection = output_projection(config, num_chips);
        let names = [WeightName::EmbedTokens]
            .into_iter()
            .chain(LayerWeight::ALL.map(|weight| WeightName::Layer(0, weight)))
            .chain([WeightName::Norm, WeightName::LmHead]);
        let weights = names
            .map(|name| {
                let (split, shape) = (split_of(name, output_projection), name.shape(config));
                let [out, input] = shape;
                let per_chip = match split {
                    Split::Output => [out / num_chips, input],
                    Split::Input => [out, input / num_chips],
                    Split::Replicated => shape,
                };
                let count = match name {
                    WeightName::Layer(..) => config.num_hidden_layers,
                    _ => 1,
                };
                WeightShard { name, split, shape, per_chip, count }
            })
            .collect();
        Ok(Self {
            num_chips,
            heads_per_chip: config.num_attention_heads / num_chips,
            kv_heads_per_chip: config.num_key_value_heads / num_chips,
            output_projection,
            weights,
        })
    }

    /// Degree of tensor parallelism.
    pub fn num_chips(&self) -> usize {
        self.num_chips
    }

    /// Query heads on each chip.
    pub fn heads_per_chip(&self) -> usize {
        self.heads_per_chip
    }

    /// KV heads on each chip.
    pub fn kv_heads_per_chip(&self) -> usize {
        self.kv_heads_per_chip
    }

    /// How a weight is cut.
    pub fn split(&self, name: WeightName) -> Split {
        split_of(name, self.output_projection)
    }

    /// Every weight's place, in the order of use.
    pub fn weights(&self) -> &[WeightShard] {
        &self.weights
    }
}

/// The chip counts up to `max` that `config` can be cut for, ascending.
pub fn chips_that_fit(config: &LlamaConfig, max: usize) -> Vec<usize> {
    (1..=max).filter(|&num_chips| fits(config, num_chips)).collect()
}

/// Whole KV heads go to a chip together with their query heads, so KV heads
/// bound the parallelism; the vocabulary is cut for the LM head, the channels
/// of the residual stream for the embedding.
fn fits(config: &LlamaConfig, num_chips: usize) -> bool {
    num_chips > 0
        && [
            config.num_key_value_heads,
            config.num_attention_heads,
            config.hidden_size,
            config.intermediate_size,
            config.vocab_size,
        ]
        .iter()
        .all(|size| size.is_multiple_of(num_chips))
}

/// On a ring the output projection is cut by its output, behind a gather of the
/// heads (the two are one operation there), if every chip's channels are whole
/// tiles that divide by the chips once more; else by its input.
fn output_projection(config: &LlamaConfig, num_chips: usize) -> Split {
    let on_ring = num_chips == RING_CHIPS;
    if on_ring && config.hidden_size.is_multiple_of(TILE * num_chips * num_chips) {
        Split::Output
    } else {
        Split::Input
    }
}

fn split_of(name: WeightName, output_projection: Split) -> Split {
    match name {
        WeightName::EmbedTokens => Split::Input,
        WeightName::Norm => Split::Replicated,
        WeightName::LmHead => Split::Output,
        WeightName::Layer(_, weight) => match weight {
            LayerWeight::InputLayernorm | LayerWeight::PostAttentionLayernorm => Split::Replicated,
            LayerWeight::QProj
            | LayerWeight::KProj
            | LayerWeight::VProj
            | LayerWeight::GateProj
            | LayerWeight::UpProj => Split::Output,
            LayerWeight::OProj => output_projection,
            LayerWeight::DownProj => Split::Input,
        },
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Output => "output",
            Self::Input => "input",
            Self::Replicated => "replicated",
        })
    }
}

/// "1 or 3 chips".
struct Chips<'a>(&'a [usize]);

impl fmt::Display for Chips<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("no number of chips"),
            [1] => f.write_str("1 chip"),
            [rest @ .., last] => {
                let rest: Vec<_> = rest.iter().map(usize::to_string).collect();
                match rest.len() {
                    0 => write!(f, "{last} chips"),
                    _ => write!(f, "{} or {last} chips", rest.join(", ")),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Llama3Size;
    use crate::config::tests::{llama3, smollm2};

    #[test]
    fn a_model_that_does_not_fit_says_what_does() {
        let error = ShardPlan::new(&smollm2(), 2).unwrap_err();
        assert_eq!(
            error.to_string(),
            "3 KV heads, 9 heads, hidden size 576, FFN 1536 and vocabulary 49152 fit 1 or 3 \
             chips, not 2"
        );
        let error = ShardPlan::new(&llama3(Llama3Size::B8), 3).unwrap_err();
        assert!(error.to_string().ends_with("fit 1, 2, 4 or 8 chips, not 3"), "{error}");
        assert!(ShardPlan::new(&smollm2(), 0).is_err());
        let one = LlamaConfig { num_key_value_heads: 1, ..smollm2() };
        assert!(ShardPlan::new(&one, 3).unwrap_err().to_string().contains("fit 1 chip, not 3"));
    }

    #[test]
    fn llama_70b_on_8_chips_has_the_shards_of_metas_files() {
        let plan = ShardPlan::new(&llama3(Llama3Size::B70), 8).unwrap();
        let per_chip = |weight| {
            let name = WeightName::Layer(0, weight);
            plan.weights().iter().find(|w| w.name == name).unwrap().per_chip
        };
        assert_eq!(per_chip(LayerWeight::QProj), [1024, 8192]);
        assert_eq!(per_chip(LayerWeight::KProj), [128, 8192]);
        // Meta's files cut this one by its input; a ring gathers the heads.
        assert_eq!(per_chip(LayerWeight::OProj), [1024, 8192]);
        assert_eq!(per_chip(LayerWeight::GateProj), [3584, 8192]);
        assert_eq!(per_chip(LayerWeight::DownProj), [8192, 3584]);
        assert_eq!((plan.heads_per_chip(), plan.kv_heads_per_chip()), (8, 1));
        let lm_head = plan.weights().last().unwrap();
        assert_eq!((lm_head.split, lm_head.per_chip), (Split::Output, [16032, 8192]));
    }

    #[test]
    fn llama_70b_is_refused_on_fewer_than_8_chips() {
        for num_chips in [1, 2, 4] {
            let error = ShardPlan::new(&llama3(Llama3Size::B70), num_chips).unwrap_err();
            assert_eq!(
                error,
                PlanError::TooFewChips { model: Llama3Size::B70, num_chips, needed: 8 }
            );
            let text = error.to_string();
            assert!(text.contains("needs 8 chips") && text.contains("--device T3K"), "{text}");
        }
        // The same widths in another model, if it is small, are not refused.
        let shallow = LlamaConfig { num_hidden_layers: 2, ..llama3(Llama3Size::B70) };
        assert!(ShardPlan::new(&shallow, 2).is_ok());
    }

    #[test]
    fn only_a_ring_of_8_cuts_the_output_projection_by_its_output() {
        let split = |size, num_chips| {
            let plan = ShardPlan::new(&llama3(size), num_chips).unwrap();
            plan.split(WeightName::Layer(3, LayerWeight::OProj))
        };
        for size in [Llama3Size::B1, Llama3Size::B8, Llama3Size::B70] {
            assert_eq!(split(size, 8), Split::Output, "{size:?}");
        }
        // 12 tiles a chip do not divide by 8.
        assert_eq!(split(Llama3Size::B3, 8), Split::Input);
        for (size, num_chips) in [(Llama3Size::B1, 1), (Llama3Size::B1, 2), (Llama3Size::B8, 4)] {
            assert_eq!(split(size, num_chips), Split::Input, "{size:?} on {num_chips}");
        }
    }

    #[test]
    fn the_embedding_is_cut_along_its_channels() {
        let plan = ShardPlan::new(&llama3(Llama3Size::B8), 8).unwrap();
        let embedding = &plan.weights()[0];
        assert_eq!(embedding.name, WeightName::EmbedTokens);
        assert_eq!((embedding.split, embedding.per_chip), (Split::Input, [128_256, 512]));
    }

    proptest! {
        #[test]
        fn shards_cover_every_weight_exactly(
            kv_heads in 1_usize..9, groups in 1_usize..5, half_dim in 1_usize..9,
            ffn in 1_usize..65, vocab in 1_usize..129, hidden in 1_usize..65,
            num_chips in 1_usize..9,
        ) {
            let config = LlamaConfig {
                num_key_value_heads: kv_heads,
                num_attention_heads: kv_heads * groups,
                head_dim: half_dim * 2,
                hidden_size: hidden,
                intermediate_size: ffn,
                vocab_size: vocab,
                ..smollm2()
            };
            match ShardPlan::new(&config, num_chips) {
                Ok(plan) => for w in plan.weights() {
                    let whole: usize = w.shape.iter().product();
                    let shard: usize = w.per_chip.iter().product();
                    let copies = if w.split == Split::Replicated { num_chips } else { 1 };
                    prop_assert_eq!(shard * num_chips, whole * copies);
                },
                Err(error) => {
                    let PlanError::DoesNotDivide { fitting, .. } = error else {
                        panic!("{error}")
                    };
                    prop_assert!(!fitting.contains(&num_chips));
                    for fitting in fitting {
                        prop_assert!(ShardPlan::new(&config, fitting).is_ok());
                    }
                }
            }
        }
    }
}
