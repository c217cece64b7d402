//! The oracle: a Llama in plain f32 loops, in the manner of llama2.c. It knows
//! no mesh, no cache and no batch; it is slow, and meant to be read.

use crate::names::{LayerWeight, WeightName};
use crate::tiny::TinyModel;

/// Logits after every position of one sequence: `[tokens.len(), vocab]`.
pub(crate) fn logits(model: &TinyModel, tokens: &[u32]) -> Vec<Vec<f32>> {
    let config = model.config();
    let eps = config.rms_norm_eps;
    let embedding = model.weight(WeightName::EmbedTokens);
    let mut stream: Vec<Vec<f32>> = tokens
        .iter()
        .map(|&id| embedding[id as usize * config.hidden_size..][..config.hidden_size].to_vec())
        .collect();
    for layer in 0..config.num_hidden_layers {
        let weight = |name| model.weight(WeightName::Layer(layer, name));
        let normed: Vec<_> =
            stream.iter().map(|x| rms_norm(x, weight(LayerWeight::InputLayernorm), eps)).collect();
        let attended = attention(model, layer, &normed);
        for (x, heads) in stream.iter_mut().zip(attended) {
            add(x, &matmul(weight(LayerWeight::OProj), &heads));
            let h = rms_norm(x, weight(LayerWeight::PostAttentionLayernorm), eps);
            let mut gate = matmul(weight(LayerWeight::GateProj), &h);
            let up = matmul(weight(LayerWeight::UpProj), &h);
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate = *gate / (1.0 + (-*gate).exp()) * up;
            }
            add(x, &matmul(weight(LayerWeight::DownProj), &gate));
        }
    }
    stream
        .iter()
        .map(|x| {
            let h = rms_norm(x, model.weight(WeightName::Norm), eps);
            matmul(model.weight(WeightName::LmHead), &h)
        })
        .collect()
}

/// Causal grouped-query attention over the whole sequence, without `o_proj`.
fn attention(model: &TinyModel, layer: usize, x: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let config = model.config();
    let (head_dim, num_heads) = (config.head_dim, config.num_attention_heads);
    let queries_per_kv = num_heads / config.num_key_value_heads;
    let project = |name, turn: bool| -> Vec<Vec<f32>> {
        let weight = model.weight(WeightName::Layer(layer, name));
        let rows = x.iter().map(|x| matmul(weight, x)).enumerate();
        rows.map(|(position, mut row)| {
            if turn {
                rotate(&mut row, position, head_dim, config.rope_theta);
            }
            row
        })
        .collect()
    };
    let q = project(LayerWeight::QProj, true);
    let k = project(LayerWeight::KProj, true);
    let v = project(LayerWeight::VProj, false);
    let mut out = vec![vec![0.0; num_heads * head_dim]; x.len()];
    for position in 0..x.len() {
        for head in 0..num_heads {
            let at = head * head_dim;
            let kv_at = head / queries_per_kv * head_dim;
            let query = &q[position][at..at + head_dim];
            let mut scores: Vec<f32> = (0..=position)
                .map(|t| dot(query, &k[t][kv_at..kv_at + head_dim]) / (head_dim as f32).sqrt())
                .collect();
            softmax(&mut scores);
            for (t, score) in scores.iter().enumerate() {
                for i in 0..head_dim {
                    out[position][at + i] += score * v[t][kv_at + i];
                }
            }
        }
    }
    out
}

/// Turns channels `2i` and `2i + 1` of every head by `position · theta^(-2i/d)`.
fn rotate(row: &mut [f32], position: usize, head_dim: usize, theta: f32) {
    for head in row.chunks_mut(head_dim) {
        for i in 0..head_dim / 2 {
            let frequency = f64::from(theta).powf(-((2 * i) as f64) / head_dim as f64);
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = (f64::from(head[2 * i]), f64::from(head[2 * i + 1]));
            head[2 * i] = (a * cos - b * sin) as f32;
            head[2 * i + 1] = (a * sin + b * cos) as f32;
        }
    }
}

fn rms_norm(x: &[f32], gain: &[f32], eps: f32) -> Vec<f32> {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    x.iter().zip(gain).map(|(x, gain)| x * scale * gain).collect()
}

fn matmul(weight: &[f32], x: &[f32]) -> Vec<f32> {
    weight.chunks(x.len()).map(|row| dot(row, x)).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}
