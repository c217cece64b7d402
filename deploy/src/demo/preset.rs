//! The named runs: what the original's test names select.

use super::expression::Expression;
use crate::cli::DemoMode;

/// One named run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preset {
    /// As `-k` matches it.
    pub(crate) name: &'static str,
    /// Chat turns or texts.
    pub(crate) mode: DemoMode,
    /// Batches, one after another.
    pub(crate) batches: u32,
    /// The long prompt.
    pub(crate) long: bool,
    /// Number formats, where the name says them.
    pub(crate) optimizations: Option<&'static str>,
}

const fn batches(name: &'static str, mode: DemoMode, batches: u32) -> Preset {
    Preset { name, mode, batches, long: false, optimizations: None }
}

const fn long(name: &'static str, optimizations: &'static str) -> Preset {
    let optimizations = Some(optimizations);
    Preset { name, mode: DemoMode::Instruct, batches: 1, long: true, optimizations }
}

const PRESETS: [Preset; 8] = [
    batches("instruct_weights-1_batch", DemoMode::Instruct, 1),
    batches("instruct_weights-2_batch", DemoMode::Instruct, 2),
    batches("instruct_weights-3_batch", DemoMode::Instruct, 3),
    batches("general_weights-1_batch", DemoMode::General, 1),
    batches("general_weights-2_batch", DemoMode::General, 2),
    batches("general_weights-3_batch", DemoMode::General, 3),
    long("instruct_weights-long-performance", "performance"),
    long("instruct_weights-long-accuracy", "accuracy"),
];

/// The one preset that an expression selects.
///
/// # Errors
/// When it is no expression, or selects none or several; then all names are
/// told.
pub(crate) fn select_preset(expression: &str) -> Result<Preset, String> {
    let parsed = Expression::parse(expression)?;
    let mut selected = PRESETS.iter().filter(|preset| parsed.matches(preset.name));
    match (selected.next(), selected.next()) {
        (Some(preset), None) => Ok(*preset),
        (None, _) => Err(format!("selects no preset; there are:\n{}", list(|_| true))),
        (Some(_), Some(_)) => Err(format!(
            "selects several presets, say which:\n{}",
            list(|preset| parsed.matches(preset.name))
        )),
    }
}

fn list(wanted: impl Fn(&Preset) -> bool) -> String {
    let names = PRESETS.iter().filter(|preset| wanted(preset));
    names.map(|preset| format!("  {}", preset.name)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_originals_expressions_select_its_runs() {
        let cases = [
            ("instruct and 1_batch", "instruct_weights-1_batch"),
            ("instruct_weights-3_batch", "instruct_weights-3_batch"),
            ("general and 2_batch", "general_weights-2_batch"),
            ("general_weights-1_batch", "general_weights-1_batch"),
            ("long-performance", "instruct_weights-long-performance"),
            ("long-accuracy", "instruct_weights-long-accuracy"),
            ("long and not performance", "instruct_weights-long-accuracy"),
        ];
        for (expression, name) in cases {
            assert_eq!(select_preset(expression).map(|preset| preset.name), Ok(name));
        }
        let long = select_preset("long-accuracy").unwrap();
        assert!(long.long && long.optimizations == Some("accuracy"));
        let two = select_preset("general and 2_batch").unwrap();
        assert_eq!((two.mode, two.batches), (DemoMode::General, 2));
    }

    #[test]
    fn none_and_several_say_what_there_is() {
        let none = select_preset("no_such").unwrap_err();
        assert!(PRESETS.iter().all(|preset| none.contains(preset.name)), "{none}");
        let several = select_preset("instruct and batch").unwrap_err();
        assert!(several.contains("instruct_weights-2_batch"), "{several}");
        assert!(!several.contains("general"), "{several}");
    }
}
