//! Marks that show where users' words went in a rendered text.
//!
//! A mark is a private-use character that occurs in none of the texts, which is
//! looked up and not left to chance, so no user can write one.

use super::Rendered;

/// First of the supplementary private-use characters (planes 15 and 16).
const FIRST: u32 = 0xF_0000;
/// Characters that one set of marks takes: one for each ASCII character.
const WINDOW: u32 = 128;
/// Windows up to the last code point.
const NUM_WINDOWS: usize = 1024;

/// One set of marks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    base: u32,
}

impl Marks {
    /// Marks that occur in none of the texts, unless they use up all there are.
    pub(super) fn unused_in<'t>(texts: impl Iterator<Item = &'t str>) -> Option<Self> {
        let mut used = vec![false; NUM_WINDOWS];
        // The last two code points of each plane are not characters.
        used[NUM_WINDOWS / 2 - 1] = true;
        used[NUM_WINDOWS - 1] = true;
        for char in texts.flat_map(str::chars) {
            if let Some(above) = u32::from(char).checked_sub(FIRST) {
                used[(above / WINDOW) as usize] = true;
            }
        }
        let free = used.iter().position(|&used| !used)?;
        Some(Self { base: FIRST + u32::try_from(free).ok()? * WINDOW })
    }

    /// The content with a mark before its first and after its last visible
    /// character, so that a template trims what it would have trimmed.
    pub(super) fn enclose(self, content: &str) -> String {
        let core = content.trim();
        if core.is_empty() {
            return content.to_owned();
        }
        let lead = content.len() - content.trim_start().len();
        let (head, tail) = (&content[..lead], &content[lead + core.len()..]);
        let (open, close) = self.brackets();
        format!("{head}{open}{core}{close}{tail}")
    }

    /// Takes the marks of [`Marks::enclose`] out of a rendered text; none if the
    /// template tore a pair apart.
    pub(super) fn remove_enclosing(self, marked: &str) -> Option<Rendered> {
        let (open, close) = self.brackets();
        let mut rendered =
            Rendered { text: String::with_capacity(marked.len()), content: Vec::new() };
        let mut started = None;
        for part in marked.split_inclusive([open, close]) {
            let is_open = part.ends_with(open);
            let is_close = part.ends_with(close);
            rendered.text.push_str(part.trim_end_matches([open, close]));
            let at = rendered.text.len();
            match (started, is_open, is_close) {
                (None, true, false) => started = Some(at),
                (Some(start), false, true) => {
                    rendered.content.push(start..at);
                    started = None;
                }
                (None, false, false) => {}
                _ => return None,
            }
        }
        started.is_none().then_some(rendered)
    }

    /// The content with every visible ASCII character replaced by its mark. All
    /// control tokens have such characters.
    pub(super) fn mark_all(self, content: &str) -> String {
        let mark =
            |char: char| if char.is_ascii_graphic() { self.at(u32::from(char)) } else { char };
        content.chars().map(mark).collect()
    }

    /// Takes the marks of [`Marks::mark_all`] out of a rendered text.
    pub(super) fn remove_all(self, marked: &str) -> Rendered {
        let mut rendered =
            Rendered { text: String::with_capacity(marked.len()), content: Vec::new() };
        for char in marked.chars() {
            let start = rendered.text.len();
            let offset = u32::from(char).checked_sub(self.base).filter(|&offset| offset < WINDOW);
            match offset.and_then(|offset| u8::try_from(offset).ok()) {
                None => rendered.text.push(char),
                Some(ascii) => {
                    rendered.text.push(char::from(ascii));
                    match rendered.content.last_mut() {
                        Some(last) if last.end == start => last.end += 1,
                        _ => rendered.content.push(start..start + 1),
                    }
                }
            }
        }
        rendered
    }

    fn brackets(self) -> (char, char) {
        (self.at(0), self.at(1))
    }

    fn at(self, offset: u32) -> char {
        char::from_u32(self.base + offset).expect("planes 15 and 16 have no surrogates")
    }
}
