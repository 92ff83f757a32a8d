//! The parameters that a script reads, found in its text: any other name is a misspelt one. (Noting the names at run time, in an
//! `__index` of `hmm.params`, would miss one that a script reads first in an event.)

use std::collections::HashSet;

use super::text;
use super::{Failure, Source};

impl Source {
    /// Refuses a parameter that the script does not read. A script that uses `hmm.params` in a way that does not show the names
    /// may read any.
    pub(crate) fn check_params(&self) -> Result<(), Failure> {
        if self.params.is_empty() {
            return Ok(());
        }
        let Some(mut read) = tokens(&self.text).as_deref().and_then(names) else {
            return Ok(());
        };
        let unread = |(name, _): &&(String, String)| !read.contains(&name.as_str());
        let Some((name, _)) = self.params.iter().find(unread) else {
            return Ok(());
        };
        let mut seen = HashSet::new();
        read.retain(|name| seen.insert(*name));
        let read = match &read[..] {
            [] => "none".to_owned(),
            read => read.join(", "),
        };
        let message = format!("{} has no parameter `{name}`; it reads {read}", self.name);
        Err(text::shown(&message))
    }
}

/// A piece of a script's text.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Token<'a> {
    /// A name, a keyword or a number.
    Word(&'a str),
    /// A string literal, as it is written.
    Text(&'a str),
    /// Any other character.
    Sign(u8),
}

use Token::{Sign, Text, Word};

/// Returns the names that the script reads of `hmm.params`, in their order; none if it uses that, or `hmm`, in another way than
/// by a name that stands there.
fn names<'a>(tokens: &[Token<'a>]) -> Option<Vec<&'a str>> {
    let mut names = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let after = &tokens[i + 1..];
        match token {
            Word("hmm") => {
                let (field, after) = field(after)?;
                if field == "params" {
                    names.push(self::field(after)?.0);
                }
            }
            // The global table: its fields by name only, and none that is a string.
            Word("_G") => {
                field(after)?;
            }
            Text("hmm") => return None,
            _ => {}
        }
    }
    Some(names)
}

/// Reads `.NAME` or `["NAME"]`. Returns the name and the tokens after it.
fn field<'a, 't>(tokens: &'t [Token<'a>]) -> Option<(&'a str, &'t [Token<'a>])> {
    match tokens {
        [Sign(b'.'), Word(name), after @ ..] => Some((name, after)),
        [Sign(b'['), Text(name), Sign(b']'), after @ ..] if !name.contains('\\') => {
            Some((name, after))
        }
        _ => None,
    }
}

/// Cuts the text into tokens, without comments; none if a string or a comment has no end, which the compiler will say.
fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    // For each interpolated string around this place, the braces that are open in its expression.
    let mut braces: Vec<usize> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        at += match (byte, opening(rest)) {
            (b'-', _) if rest.starts_with(b"--") => match opening(&rest[2..]) {
                Some(bracket) => 2 + long(&rest[2..], bracket)?,
                None => until(rest, |byte| b"\r\n".contains(&byte)),
            },
            (_, Some(bracket)) => {
                let length = long(rest, bracket)?;
                tokens.push(Text(&text[at + bracket..at + length - bracket]));
                length
            }
            (b'"' | b'\'', _) => {
                let length = 1 + quoted(&rest[1..], |end| end == byte)?;
                tokens.push(Text(&text[at + 1..at + length - 1]));
                length
            }
            (b'`', _) => 1 + interpolated(&rest[1..], &mut braces)?,
            (b'}', _) if braces.last() == Some(&0) => {
                braces.pop();
                1 + interpolated(&rest[1..], &mut braces)?
            }
            (byte, _) if is_word(byte) => {
                let length = until(rest, |byte| !is_word(byte));
                tokens.push(Word(&text[at..at + length]));
                length
            }
            _ => {
                match (byte, braces.last_mut()) {
                    (b'{', Some(open)) => *open += 1,
                    (b'}', Some(open)) => *open -= 1,
                    _ => {}
                }
                if !byte.is_ascii_whitespace() {
                    tokens.push(Sign(byte));
                }
                1
            }
        };
    }
    braces.is_empty().then_some(tokens)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Bytes before the first one that ends it.
fn until(bytes: &[u8], ends: impl Fn(u8) -> bool) -> usize {
    let end = bytes.iter().position(|byte| ends(*byte));
    end.unwrap_or(bytes.len())
}

/// The length of the bracket that opens a long string or comment: `[[`, `[=[`.
fn opening(bytes: &[u8]) -> Option<usize> {
    let inner = bytes.strip_prefix(b"[")?;
    let level = until(inner, |byte| byte != b'=');
    (inner.get(level) == Some(&b'[')).then_some(level + 2)
}

/// The length of a long string or comment with its brackets, each of which has `bracket` bytes.
fn long(bytes: &[u8], bracket: usize) -> Option<usize> {
    let mut closing = vec![b'='; bracket];
    closing[0] = b']';
    closing[bracket - 1] = b']';
    let inner = &bytes[bracket..];
    let end = inner.windows(bracket).position(|it| it == closing)?;
    Some(bracket + end + bracket)
}

/// The length of the rest of a string, with the byte that ends it.
fn quoted(bytes: &[u8], ends: impl Fn(u8) -> bool) -> Option<usize> {
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            b'\\' if bytes.get(at + 1) == Some(&b'z') => {
                at += 2 + until(&bytes[at + 2..], |byte| !byte.is_ascii_whitespace());
            }
            b'\\' => at += 2,
            b'\n' => return None,
            byte if ends(byte) => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// The length of the rest of an interpolated string, up to its end or to where an expression begins.
fn interpolated(bytes: &[u8], braces: &mut Vec<usize>) -> Option<usize> {
    let length = quoted(bytes, |byte| byte == b'`' || byte == b'{')?;
    if bytes[length - 1] == b'{' {
        braces.push(0);
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Vec<&str>> {
        tokens(text).as_deref().and_then(names)
    }

    #[test]
    fn the_names_that_a_script_reads_are_found() {
        for (text, expected) in [
            ("return {}", &[][..]),
            ("local x = hmm.params.window or 16", &["window"]),
            ("hmm.params.b(hmm . params\n.a)", &["b", "a"]),
            ("hmm.params['a'] hmm.params[ \"b c\" ]", &["a", "b c"]),
            ("hmm['params'].a hmm.params[ [=[b]=] ]", &["a", "b"]),
            ("local r = hmm.resident() local n = hmm.BLOCK", &[]),
            ("_G.hmm.params.a", &["a"]),
            ("x = y..hmm.params.a", &["a"]),
            // Comments, and what looks like one.
            ("-- hmm.params.a", &[]),
            ("-- hmm.params.a\nhmm.params.b", &["b"]),
            ("--[[ hmm.params.a\n]] hmm.params.b", &["b"]),
            ("--[==[ hmm.params.a ]] ]==] hmm.params.b", &["b"]),
            ("hmm. --[[ the ]] params --\n .b", &["b"]),
            ("--[ hmm.params.a\nhmm.params.b", &["b"]),
            ("print('--') hmm.params.a", &["a"]),
            ("print(\"\\\"--\") hmm.params.a", &["a"]),
            ("print('\\z \n --') hmm.params.a", &["a"]),
            ("print([[\n--]]) hmm.params.a", &["a"]),
            ("print(`--`) hmm.params.a", &["a"]),
            // Strings may look like code.
            (
                "print(`{hmm.params.a} {`{ {hmm.params.b} }`}`)",
                &["a", "b"],
            ),
            ("print(`\\{`) hmm.params.a", &["a"]),
            ("print('hmm.params', [[hmm.params[x]]])", &[]),
            ("print('ä') -- ö\nhmm.params.a", &["a"]),
        ] {
            assert_eq!(read(text), Some(expected.to_vec()), "{text}");
        }
    }

    #[test]
    fn names_that_do_not_stand_there_may_be_any() {
        for text in [
            "for name, value in hmm.params do end",
            "local p = hmm.params return p.a",
            "f(hmm.params)",
            "hmm.params[name]",
            "hmm.params['a' .. b]",
            "hmm.params['\\97']",
            "(hmm.params :: any).a",
            "local h = hmm",
            "hmm[what].a",
            "_G['hmm'].params.a",
            "for name, value in _G do end",
            "hmm.params.a f(hmm.params)",
            // The compiler refuses these.
            "print('",
            "print('\nhmm.params.a",
            "print([[",
            "--[[ hmm.params.a",
            "print(`{",
            "print(`{x`",
            "'\\",
            "ä hmm",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn the_largest_file_of_anything_is_read_to_its_end() {
        for (piece, refused) in [
            // What has no end is the compiler's to refuse.
            ("[", false),
            ("[=", false),
            ("`{", false),
            ("--[==", true),
            ("{", true),
            ("'", true),
            ("\\", true),
            ("hmm.params.", true),
            ("ä", true),
            ("]==", true),
        ] {
            let text = piece.repeat((256 << 10) / piece.len());
            let source = Source {
                name: "x.luau".to_owned(),
                text: format!("{text} hmm.params.a"),
                params: vec![("b".to_owned(), "1".to_owned())],
            };
            assert_eq!(source.check_params().is_err(), refused, "{piece}");
        }
    }
}
