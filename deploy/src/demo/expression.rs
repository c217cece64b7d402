//! pytest's `-k` expressions: words that a name must contain, with `and`, `or`,
//! `not` and parentheses.
//!
//! `not` binds tighter than `and`, `and` tighter than `or`; words match anywhere
//! in the name, in either case.

/// Most words, operators and parentheses: bounds the recursion.
const MAX_TOKENS: usize = 256;

/// A parsed expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    /// The name contains it; in lower case.
    Word(String),
    Not(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    And,
    Or,
    Not,
    Word(String),
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// Says what is wrong, and where.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens(text)?;
        if tokens.len() > MAX_TOKENS {
            return Err(format!("{} words and operators, at most {MAX_TOKENS}", tokens.len()));
        }
        let mut parser = Parser { tokens: &tokens, at: 0 };
        let expression = parser.or()?;
        match parser.peek() {
            None => Ok(expression),
            Some(token) => Err(format!("{} where the expression should end", name(Some(token)))),
        }
    }

    /// Whether a name is selected.
    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Word(word) => name.to_lowercase().contains(word.as_str()),
            Self::Not(inner) => !inner.matches(name),
            Self::And(left, right) => left.matches(name) && right.matches(name),
            Self::Or(left, right) => left.matches(name) || right.matches(name),
        }
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self, token: &Token) -> bool {
        let there = self.peek() == Some(token);
        self.at += usize::from(there);
        there
    }

    fn or(&mut self) -> Result<Expression, String> {
        let mut left = self.and()?;
        while self.take(&Token::Or) {
            left = Expression::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expression, String> {
        let mut left = self.not()?;
        while self.take(&Token::And) {
            left = Expression::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expression, String> {
        if self.take(&Token::Not) {
            return Ok(Expression::Not(Box::new(self.not()?)));
        }
        if self.take(&Token::Open) {
            let inner = self.or()?;
            if !self.take(&Token::Close) {
                return Err(format!("{} where a ) should be", name(self.peek())));
            }
            return Ok(inner);
        }
        let Some(Token::Word(word)) = self.peek() else {
            return Err(format!("{} where a word should be", name(self.peek())));
        };
        let word = Expression::Word(word.clone());
        self.at += 1;
        Ok(word)
    }
}

fn name(token: Option<&Token>) -> String {
    match token {
        None => "the end".to_owned(),
        Some(Token::Open) => "(".to_owned(),
        Some(Token::Close) => ")".to_owned(),
        Some(Token::And) => "\"and\"".to_owned(),
        Some(Token::Or) => "\"or\"".to_owned(),
        Some(Token::Not) => "\"not\"".to_owned(),
        Some(Token::Word(word)) => format!("{word:?}"),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '(' | ')' => 1,
            _ => rest.find(|c| !is_in_word(c)).unwrap_or(rest.len()),
        };
        if length == 0 {
            return Err(format!("{first:?} belongs to no word and is no parenthesis"));
        }
        let (token, after) = rest.split_at(length);
        tokens.push(match token {
            "(" => Token::Open,
            ")" => Token::Close,
            "and" => Token::And,
            "or" => Token::Or,
            "not" => Token::Not,
            word => Token::Word(word.to_lowercase()),
        });
        rest = after.trim_start();
    }
    Ok(tokens)
}

/// The characters of test names.
fn is_in_word(c: char) -> bool {
    c.is_alphanumeric() || "_:+-.[]\\/".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn selected(expression: &str, name: &str) -> bool {
        Expression::parse(expression).unwrap().matches(name)
    }

    #[test]
    fn words_operators_and_parentheses_mean_what_they_mean_in_pytest() {
        let name = "instruct_weights-1_batch";
        let cases = [
            ("instruct", true),
            ("INSTRUCT and 1_Batch", true),
            ("instruct and 2_batch", false),
            ("general or 1_batch", true),
            ("not general", true),
            ("not not general", false),
            // `and` binds tighter than `or`, `not` tighter than both.
            ("instruct or general and nothing", true),
            ("(instruct or general) and nothing", false),
            ("not general and instruct", true),
            ("not (general and instruct)", true),
            ("not(general)and(1_batch)", true),
            // Operators only as whole words.
            ("android or notable", false),
        ];
        for (expression, expected) in cases {
            assert_eq!(selected(expression, name), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused_by_what_is_wrong() {
        let cases = [
            ("", "the end where a word"),
            ("and", "\"and\" where a word"),
            ("instruct and", "the end where a word"),
            ("instruct general", "\"general\" where the expression should end"),
            ("(instruct", "the end where a )"),
            ("instruct)", ") where the expression"),
            ("not", "the end where a word"),
            ("a & b", "'&' belongs to no word"),
        ];
        for (expression, expected) in cases {
            let error = Expression::parse(expression).unwrap_err();
            assert!(error.contains(expected), "{expression:?}: {error}");
        }
        let deep = format!("{}a{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(Expression::parse(&deep).unwrap_err().contains("at most 256"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ ()a-c&]{0,12}|(and|or|not|x| ){0,12}|.{0,20}") {
            let _ = Expression::parse(&text);
        }
    }
}
