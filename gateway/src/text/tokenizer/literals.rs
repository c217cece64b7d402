//! Finding tokens that are written out literally in a text.

use std::collections::HashMap;
use std::ops::Range;

/// A set of texts, each of which is one token.
#[derive(Debug, Clone, Default)]
pub(super) struct Literals {
    ids: HashMap<Box<str>, u32>,
    /// Which first bytes there are, so that most positions cost one look.
    first_bytes: Vec<bool>,
    /// The lengths there are, longest first.
    lens: Vec<usize>,
}

impl Literals {
    pub(super) fn new<'t>(literals: impl Iterator<Item = (&'t str, u32)>) -> Self {
        let mut set = Self { first_bytes: vec![false; 256], ..Self::default() };
        for (text, id) in literals {
            let Some(&first) = text.as_bytes().first() else { continue };
            set.first_bytes[usize::from(first)] = true;
            set.lens.push(text.len());
            set.ids.insert(text.into(), id);
        }
        set.lens.sort_unstable_by(|a, b| b.cmp(a));
        set.lens.dedup();
        set
    }

    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.ids.keys().map(AsRef::as_ref)
    }

    pub(super) fn get(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The first occurrence at or after `from` that `accept` takes, the longest
    /// of those that start there.
    pub(super) fn find(
        &self,
        text: &str,
        from: usize,
        mut accept: impl FnMut(&Range<usize>) -> bool,
    ) -> Option<(Range<usize>, u32)> {
        if self.ids.is_empty() {
            return None;
        }
        for (start, &byte) in text.as_bytes().iter().enumerate().skip(from) {
            if !self.first_bytes[usize::from(byte)] {
                continue;
            }
            for &len in &self.lens {
                let Some(found) = text.get(start..start.saturating_add(len)) else { continue };
                let range = start..start + len;
                if let Some(&id) = self.ids.get(found)
                    && accept(&range)
                {
                    return Some((range, id));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_accepted_literal_at_the_first_place_is_found() {
        let literals = Literals::new([("<a>", 1), ("<a><b>", 2), ("é", 3)].into_iter());
        let any = |_: &Range<usize>| true;
        assert_eq!(literals.find("x<a><b>", 0, any), Some((1..7, 2)));
        assert_eq!(literals.find("x<a><b", 0, any), Some((1..4, 1)));
        assert_eq!(literals.find("x<a><b>", 0, |range| range.end < 7), Some((1..4, 1)));
        assert_eq!(literals.find("<a>é", 1, any), Some((3..5, 3)));
        assert_eq!(literals.find("<a", 0, any), None);
        assert_eq!(Literals::default().find("<a>", 0, any), None);
    }
}
