//! Python's notation of plain values, as far as the headers of numpy arrays use it.
//!
//! Strings, whole numbers that are not negative, `True`, `False`, `None`, tuples, lists, and dictionaries with strings as keys. A
//! strict parser with bounded depth: what it does not know is no value. Nothing is evaluated.

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Literal {
    Text(String),
    Integer(u64),
    Truth(bool),
    None,
    Tuple(Vec<Literal>),
    List(Vec<Literal>),
    /// In the order of the text; a key may be there twice.
    Map(Vec<(String, Literal)>),
}

/// Deeper values are none.
const DEPTH_MAX: u32 = 20;

/// The value that `text` is, with spaces around it; none if it is anything else.
pub(super) fn parse(text: &str) -> Option<Literal> {
    let mut reader = Reader { rest: text };
    let value = reader.value(0)?;
    reader.skip_spaces();
    reader.rest.is_empty().then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    /// Takes `token`, with spaces before it, if it comes next.
    fn takes(&mut self, token: &str) -> bool {
        self.skip_spaces();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn value(&mut self, depth: u32) -> Option<Literal> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.skip_spaces();
        match self.rest.chars().next()? {
            '\'' | '"' => self.text().map(Literal::Text),
            '0'..='9' => self.integer().map(Literal::Integer),
            '[' => Some(Literal::List(self.items("[", "]", depth)?.0)),
            '(' => {
                let (mut items, has_comma) = self.items("(", ")", depth)?;
                // `(x)` is x.
                if items.len() == 1 && !has_comma { items.pop() } else { Some(Literal::Tuple(items)) }
            }
            '{' => self.map(depth),
            _ if self.takes("True") => Some(Literal::Truth(true)),
            _ if self.takes("False") => Some(Literal::Truth(false)),
            _ if self.takes("None") => Some(Literal::None),
            _ => None,
        }
    }

    /// The items between `open` and `close`, and whether there was a comma.
    fn items(&mut self, open: &str, close: &str, depth: u32) -> Option<(Vec<Literal>, bool)> {
        let (mut items, mut has_comma) = (Vec::new(), false);
        if !self.takes(open) {
            return None;
        }
        loop {
            if self.takes(close) {
                return Some((items, has_comma));
            }
            items.push(self.value(depth + 1)?);
            if !self.takes(",") {
                return self.takes(close).then_some((items, has_comma));
            }
            has_comma = true;
        }
    }

    fn map(&mut self, depth: u32) -> Option<Literal> {
        let mut fields = Vec::new();
        if !self.takes("{") {
            return None;
        }
        loop {
            if self.takes("}") {
                return Some(Literal::Map(fields));
            }
            let key = self.text()?;
            let value = if self.takes(":") { self.value(depth + 1)? } else { return None };
            fields.push((key, value));
            if !self.takes(",") {
                return self.takes("}").then_some(Literal::Map(fields));
            }
        }
    }

    fn integer(&mut self) -> Option<u64> {
        let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = self.rest.split_at_checked(digits)?;
        // Python 2 has written `3L`.
        self.rest = rest.strip_prefix('L').unwrap_or(rest);
        number.parse().ok()
    }

    /// A string; of escapes the character itself is kept, which is right for quotes and backslashes.
    fn text(&mut self) -> Option<String> {
        self.skip_spaces();
        let mut text = String::new();
        let mut chars = self.rest.chars();
        let quote = chars.next().filter(|c| matches!(c, '\'' | '"'))?;
        loop {
            match chars.next()? {
                '\n' => return None,
                '\\' => text.push(chars.next()?),
                c if c == quote => break,
                c => text.push(c),
            }
        }
        self.rest = chars.as_str();
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_values_are_read() {
        let text = |text: &str| Literal::Text(text.to_owned());
        assert_eq!(parse(" 'a' "), Some(text("a")));
        assert_eq!(parse("(1, 2L,)"), Some(Literal::Tuple(vec![Literal::Integer(1), Literal::Integer(2)])));
        assert_eq!(parse("(7)"), Some(Literal::Integer(7)));
        assert_eq!(parse("()"), Some(Literal::Tuple(Vec::new())));
        assert_eq!(
            parse(r#"["it's", 'a\'b', None]"#),
            Some(Literal::List(vec![text("it's"), text("a'b"), Literal::None]))
        );
        let map = vec![("a".to_owned(), Literal::Truth(true)), ("b".to_owned(), Literal::Map(Vec::new()))];
        assert_eq!(parse("{'a': True, \"b\":{},}\n"), Some(Literal::Map(map)));
    }

    #[test]
    fn anything_else_is_none() {
        for text in ["", "x", "1 2", "(1", "(,)", "{1:2}", "{'a' 1}", "'a", "-1", "1.5", "os.system('a')", "'\n'"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("99999999999999999999999"), None);
        assert_eq!(parse(&"[".repeat(1_000_000)), None);
        assert_eq!(parse(&"(".repeat(1_000_000)), None);
        assert_eq!(parse(&"{'a':".repeat(1_000_000)), None);
    }
}
