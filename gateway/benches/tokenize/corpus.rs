//! Long texts made up from a seed: like real ones in what their pieces look
//! like, how long they are, and that a few are frequent and many are rare.

/// At least this many bytes each.
const BYTES: usize = 2 << 20;

/// Words by falling frequency.
const ENGLISH: &str = "the of and to a in is that it was for on are as with his they at be this \
from have or by one had not but what all were when we there can an your which their said if do will \
each about how up out them then she many some so these would other into has more her two like him see \
time could no make than first been its who now people my made over did down only way find use may \
water long little very after words called just where most know get through back much before go good \
new write our used me man too any day same right look think also around another came come work three \
word must because does part even place well such here take why things help put years different away \
again off went old number great tell men say small every found still between name should home big give \
air line set own under read last never us left end along while might next sound below saw something \
thought both few those always looked show large often together asked house world going want school \
important until form food keep children feet land side without boy once animals life enough took \
sometimes four head above kind began almost live page got earth need far hand high year mother light \
parts country father let night following picture being study second eyes soon times story boys since \
white days ever paper hard near sentence better best across during today others however sure means knew \
temperature government understanding approximately development environment infrastructure relationship";

const SYLLABLES: [&str; 40] = [
    "an", "ber", "cal", "dor", "el", "fin", "gra", "hol", "ing", "jor", "kel", "lan", "mor", "nes",
    "or", "pel", "qui", "ran", "ster", "tion", "ul", "ver", "wen", "xis", "yl", "zan", "ment",
    "ous", "pre", "con", "dis", "tri", "ble", "ness", "ful", "ity", "ize", "ed", "er", "ly",
];

const LANGUAGES: [&str; 9] = [
    "и в не на я быть он с что а по это она этот к но они мы весь который из у свой мочь время человек",
    "der die und in den von zu das mit sich des auf für ist im dem nicht ein Straße größer Übung während",
    "de la que el en y a los se del las un por con no una su para es al lo como más pero información",
    "的 一 是 不 了 人 我 在 有 他 这 为 之 大 来 以 个 中 上 们 到 说 国 和 地 也 子 时 道 出 而 要 于 就 下 得",
    "これ は それ の に を た が で て と し れ さ ある いる も する から な こと として 日本語 東京 時間",
    "이 그 저 것 수 있다 하다 되다 나 사람 우리 때 년 말 일 한국어 서울 시간 문제 생각 사회 정부",
    "في من على إلى أن هذا التي كان عن مع هو كل بين بعد هذه قال حتى عند غير العربية الوقت السلام",
    "है के में की से को का और यह पर नहीं एक ने भी लिए कर हो गया था तो जो समय भारत सरकार",
    "και το να του η της με που την από για ότι στο δεν θα οι είναι τα στην τον ελληνικά χρόνος",
];

/// A multiplicative generator: the same texts on every machine.
struct Seed(u64);

impl Seed {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    /// Low numbers more often than high ones, as words are used.
    fn ranked(&mut self, n: usize) -> usize {
        let bound = self.below(n) + 1;
        let bound = self.below(bound) + 1;
        self.below(bound)
    }

    fn pick<'t>(&mut self, words: &[&'t str]) -> &'t str {
        words[self.ranked(words.len())]
    }
}

/// One of `english`, `multilingual`, `code` and `mixed` (all three in turn).
pub(crate) fn long_text(name: &str) -> String {
    let mut seed = Seed(0x5eed);
    let mut text = String::with_capacity(BYTES + 4096);
    let mut turn = 0;
    while text.len() < BYTES {
        match (name, turn % 3) {
            ("english", _) | ("mixed", 0) => english(&mut seed, &mut text),
            ("code", _) | ("mixed", 1) => code(&mut seed, &mut text),
            _ => multilingual(&mut seed, &mut text),
        }
        turn += 1;
    }
    text
}

fn rare_word(seed: &mut Seed, text: &mut String) {
    for _ in 0..2 + seed.below(3) {
        text.push_str(SYLLABLES[seed.below(SYLLABLES.len())]);
    }
}

fn capitalized(word: &str, text: &mut String) {
    let mut chars = word.chars();
    text.extend(chars.next().into_iter().flat_map(char::to_uppercase));
    text.push_str(chars.as_str());
}

/// A paragraph: one word in eight is rare, one in forty a number.
fn english(seed: &mut Seed, text: &mut String) {
    let words: Vec<&str> = ENGLISH.split_whitespace().collect();
    for _ in 0..3 + seed.below(5) {
        for at in 0..6 + seed.below(18) {
            if at > 0 {
                text.push(' ');
            }
            match seed.below(40) {
                0 => text.push_str(&seed.below(20_000).to_string()),
                1..=5 => rare_word(seed, text),
                _ if at == 0 => capitalized(seed.pick(&words), text),
                _ => text.push_str(seed.pick(&words)),
            }
            text.push_str(["", "", "", "", "", "", "", "", ",", "'s", ";", " -"][seed.below(12)]);
        }
        text.push_str([". ", ". ", ". ", "? ", "! ", ".\n"][seed.below(6)]);
    }
    text.push_str("\n\n");
}

fn multilingual(seed: &mut Seed, text: &mut String) {
    let language = seed.below(LANGUAGES.len());
    let words: Vec<&str> = LANGUAGES[language].split_whitespace().collect();
    // Chinese and Japanese are written without spaces.
    let space = if matches!(language, 3 | 4) { "" } else { " " };
    for _ in 0..2 + seed.below(4) {
        for at in 0..6 + seed.below(14) {
            text.push_str(if at == 0 { "" } else { space });
            text.push_str(words[seed.below(words.len())]);
        }
        text.push_str(if space.is_empty() { "。" } else { ". " });
    }
    text.push_str(["\n", " 😀\n", " — 2024\n", "\n\n"][seed.below(4)]);
}

fn code(seed: &mut Seed, text: &mut String) {
    let words: Vec<&str> = ENGLISH.split_whitespace().collect();
    let name = |seed: &mut Seed| format!("{}_{}", seed.pick(&words), seed.pick(&words));
    let (function, argument) = (name(seed), name(seed));
    text.push_str(&format!("fn {function}({argument}: &[u32]) -> Option<usize> {{\n"));
    for _ in 0..3 + seed.below(6) {
        let (left, right, number) = (name(seed), name(seed), seed.below(4096));
        text.push_str(&match seed.below(4) {
            0 => format!("    let {left} = {argument}.iter().map(|x| x + {number}).max()?;\n"),
            1 => format!("    if {left} != {right} {{\n        return Some({number});\n    }}\n"),
            2 => format!("    // {left} is 0x{number:04x} of \"{right}\".\n"),
            _ => format!("    {left}[{number}] = {right}.unwrap_or_default() as usize;\n"),
        });
    }
    text.push_str("    None\n}\n\n");
}
