//! Which slice of which weight goes to which chip, as data.

use std::fmt;

use crate::config::LlamaConfig;
use crate::names::{LayerWeight, WeightName};

/// How many chips are tried when an error says what would fit.
const MAX_CHIPS_TRIED: usize = 32;

/// How a weight is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Column-parallel: along the output channels (rows of `[out, in]`).
    Output,
    /// Row-parallel: along the input channels; the products are summed.
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
    weights: Vec<WeightShard>,
}

/// The model cannot be cut for this many chips.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{dimensions} fit {}, not {num_chips}", Chips(.fitting))]
pub struct PlanError {
    /// How many chips were asked for.
    pub num_chips: usize,
    /// Chip counts that fit.
    pub fitting: Vec<usize>,
    dimensions: String,
}

impl ShardPlan {
    /// Cuts `config` for `num_chips` chips.
    ///
    /// # Errors
    /// [`PlanError`] when KV heads, heads, FFN or vocabulary do not divide by
    /// the chips; it names the counts that fit.
    pub fn new(config: &LlamaConfig, num_chips: usize) -> Result<Self, PlanError> {
        if !fits(config, num_chips) {
            return Err(PlanError {
                num_chips,
                fitting: chips_that_fit(config, MAX_CHIPS_TRIED),
                dimensions: format!(
                    "{} KV heads, {} heads, FFN {} and vocabulary {}",
                    config.num_key_value_heads,
                    config.num_attention_heads,
                    config.intermediate_size,
                    config.vocab_size
                ),
            });
        }
        let names = [WeightName::EmbedTokens]
            .into_iter()
            .chain(LayerWeight::ALL.map(|weight| WeightName::Layer(0, weight)))
            .chain([WeightName::Norm, WeightName::LmHead]);
        let weights = names
            .map(|name| {
                let (split, shape) = (split_of(name), name.shape(config));
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
/// bound the parallelism; the vocabulary is cut for the LM head.
fn fits(config: &LlamaConfig, num_chips: usize) -> bool {
    num_chips > 0
        && [
            config.num_key_value_heads,
            config.num_attention_heads,
            config.intermediate_size,
            config.vocab_size,
        ]
        .iter()
        .all(|size| size.is_multiple_of(num_chips))
}

fn split_of(name: WeightName) -> Split {
    match name {
        WeightName::EmbedTokens | WeightName::Norm => Split::Replicated,
        WeightName::LmHead => Split::Output,
        WeightName::Layer(_, weight) => match weight {
            LayerWeight::InputLayernorm | LayerWeight::PostAttentionLayernorm => Split::Replicated,
            LayerWeight::QProj
            | LayerWeight::KProj
            | LayerWeight::VProj
            | LayerWeight::GateProj
            | LayerWeight::UpProj => Split::Output,
            LayerWeight::OProj | LayerWeight::DownProj => Split::Input,
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
            "3 KV heads, 9 heads, FFN 1536 and vocabulary 49152 fit 1 or 3 chips, not 2"
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
        assert_eq!(per_chip(LayerWeight::OProj), [8192, 1024]);
        assert_eq!(per_chip(LayerWeight::GateProj), [3584, 8192]);
        assert_eq!(per_chip(LayerWeight::DownProj), [8192, 3584]);
        assert_eq!((plan.heads_per_chip(), plan.kv_heads_per_chip()), (8, 1));
        let lm_head = plan.weights().last().unwrap();
        assert_eq!((lm_head.split, lm_head.per_chip), (Split::Output, [16032, 8192]));
    }

    proptest! {
        #[test]
        fn shards_cover_every_weight_exactly(
            kv_heads in 1_usize..9, groups in 1_usize..5, half_dim in 1_usize..9,
            ffn in 1_usize..65, vocab in 1_usize..129, num_chips in 1_usize..9,
        ) {
            let config = LlamaConfig {
                num_key_value_heads: kv_heads,
                num_attention_heads: kv_heads * groups,
                head_dim: half_dim * 2,
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
                    prop_assert!(!error.fitting.contains(&num_chips));
                    for fitting in error.fitting {
                        prop_assert!(ShardPlan::new(&config, fitting).is_ok());
                    }
                }
            }
        }
    }
}
