//! Stop strings in streamed text, wherever the borders between tokens fall.
//!
//! Text is held back only while it may still turn out to be the beginning of a
//! stop string. The answer does not depend on how the text was cut into pieces:
//! the stop string that is complete first ends the text, and of two that become
//! complete with the same byte the longer one, which starts earlier. (Waiting
//! instead for a longer stop string that started earlier and may never be
//! completed would mean to go on generating behind a stop.)

/// Finds the first stop string in text that arrives in pieces.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    /// Text that arrived and was not given out: a prefix of some stop string.
    held: String,
    stopped: Option<usize>,
}

/// What came of one piece of text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopStep {
    /// Text that is certain not to belong to a stop string.
    pub text: String,
    /// The index of the stop string that was found; `text` ends where it starts,
    /// and nothing comes after it.
    pub stopped: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these stop strings; an empty one never matches.
    #[must_use]
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let stops = stops.iter().map(|stop| Stop::new(stop.as_ref())).collect();
        Self { stops, held: String::new(), stopped: None }
    }

    /// Takes the next piece of text and gives out what is certain. After a match
    /// further text is dropped.
    pub fn push(&mut self, text: &str) -> StopStep {
        if let Some(stopped) = self.stopped {
            return StopStep { text: String::new(), stopped: Some(stopped) };
        }
        let start = self.held.len();
        self.held.push_str(text);
        for (at, byte) in text.bytes().enumerate() {
            if let Some(index) = self.advance(byte) {
                self.stopped = Some(index);
                let end = start + at + 1;
                self.held.truncate(end - self.stops[index].bytes.len());
                return StopStep { text: std::mem::take(&mut self.held), stopped: self.stopped };
            }
        }
        // A stop string begins at a character, so what is held back does too.
        let keep = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        StopStep { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// The text still held back, when no more will come.
    pub fn flush(&mut self) -> String {
        for stop in &mut self.stops {
            stop.matched = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// The index of the stop string that was found, if one was.
    #[must_use]
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    /// Feeds one byte to all stop strings; the longest that it completes wins.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        let mut longest: Option<usize> = None;
        for index in 0..self.stops.len() {
            let longer =
                |other: usize| self.stops[index].bytes.len() > self.stops[other].bytes.len();
            let wins = longest.is_none_or(longer);
            if self.stops[index].advance(byte) && wins {
                longest = Some(index);
            }
        }
        longest
    }
}

/// One stop string with its Knuth-Morris-Pratt table, so that a byte costs
/// constant time however the text repeats itself.
#[derive(Debug, Clone)]
struct Stop {
    bytes: Vec<u8>,
    /// `borders[i]`: the longest proper prefix of `bytes[..=i]` that is also its suffix.
    borders: Vec<usize>,
    /// How many bytes of the stop string the text so far ends with.
    matched: usize,
}

impl Stop {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut borders = vec![0; bytes.len()];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[at] != bytes[matched] {
                matched = borders[matched - 1];
            }
            if bytes[at] == bytes[matched] {
                matched += 1;
            }
            borders[at] = matched;
        }
        Self { bytes, borders, matched: 0 }
    }

    /// Whether this byte completes the stop string.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        if self.bytes.get(self.matched) == Some(&byte) {
            self.matched += 1;
        }
        if self.matched < self.bytes.len() || self.bytes.is_empty() {
            return false;
        }
        // Ready to go on, although the matcher stops at the first match.
        self.matched = self.borders[self.matched - 1];
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same question, asked of the whole text: the match that ends first,
    /// and of those that end together the one that starts first.
    fn oracle(text: &str, stops: &[String]) -> (String, Option<usize>) {
        for end in 0..=text.len() {
            let done = |stop: &String| {
                !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes())
            };
            let mut best: Option<usize> = None;
            for (index, stop) in stops.iter().enumerate() {
                if done(stop) && best.is_none_or(|other| stop.len() > stops[other].len()) {
                    best = Some(index);
                }
            }
            if let Some(index) = best {
                return (text[..end - stops[index].len()].to_owned(), best);
            }
        }
        (text.to_owned(), None)
    }

    fn check(pieces: &[&str], stops: &[&str], texts: &[&str], stopped: Option<usize>) {
        assert_eq!(run(pieces, stops), (texts.iter().map(ToString::to_string).collect(), stopped));
    }

    fn run(pieces: &[&str], stops: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut matcher = StopMatcher::new(stops);
        let mut texts: Vec<String> = pieces.iter().map(|piece| matcher.push(piece).text).collect();
        texts.push(matcher.flush());
        (texts, matcher.stopped())
    }

    #[test]
    fn text_is_held_back_only_while_it_may_still_match() {
        // Pieces, stop strings, what is given out for each piece and at the end, the match.
        check(&["ab", "cd"], &[], &["ab", "cd", ""], None);
        check(&["a", "END", "b"], &["END"], &["a", "", "", ""], Some(0));
        check(&["aE", "N", "x"], &["END"], &["a", "", "ENx", ""], None);
        check(&["aE", "N"], &["END"], &["a", "", "EN"], None);
        check(&["aab", "c"], &["aac", "b"], &["aa", "", ""], Some(1));
        check(&["xabc"], &["bc", "abc"], &["x", ""], Some(1));
        check(&["é", "€x"], &["€"], &["é", "", ""], Some(0));
        check(&["abcdX"], &["abcde", "c"], &["ab", ""], Some(1));
    }

    #[test]
    fn an_empty_stop_string_never_matches() {
        assert_eq!(run(&["abc"], &[""]), (vec!["abc".to_owned(), String::new()], None));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_answer_is_that_of_the_whole_text_however_it_is_cut(
            pieces in prop::collection::vec("[abé€]{0,4}", 0..12),
            stops in prop::collection::vec("[abé€]{0,4}", 0..4),
        ) {
            let mut matcher = StopMatcher::new(&stops);
            let mut text = String::new();
            for piece in &pieces {
                text += &matcher.push(piece).text;
                let longest = stops.iter().map(String::len).max().unwrap_or(0);
                prop_assert!(matcher.held.len() < longest.max(1));
            }
            text += &matcher.flush();
            prop_assert_eq!((text, matcher.stopped()), oracle(&pieces.concat(), &stops));
        }
    }
}
