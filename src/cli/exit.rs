//! How a run ends: exit codes, and the one line that says why.

use super::json::ErrorDocument;
use super::output::{Output, json_text};
use super::render;
use super::signals::Signals;
use ckpt::error::{Error, Kind};

/// How a command ended that did what it could.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Everything was done (exit 0).
    Done,
    /// A snapshot was saved, but is incomplete (exit 3): what is missing.
    Incomplete(String),
    /// Something was restored, but not all that was asked for (exit 3): what is missing, and what to do next.
    Partial(String, &'static str),
    /// Damage, or a difference, was found (exit 5): what it is, and what to do next.
    Damage(String, Option<&'static str>),
    /// Damage was found and all of it mended (exit 6): what it was.
    Mended(String),
}

/// The exit code and the name of an error's kind.
pub fn code_and_name(kind: Kind) -> (u8, &'static str) {
    match kind {
        Kind::Failed => (1, "failed"),
        Kind::Usage => (2, "usage"),
        Kind::Damaged => (5, "damaged"),
        // Inside a report absence counts as damage; as the end of a run it is nothing else.
        Kind::Missing => (5, "missing"),
        Kind::NoRepository => (10, "no_repository"),
        Kind::Busy => (11, "busy"),
        Kind::WrongKey => (12, "wrong_key"),
        Kind::Unreachable => (13, "unreachable"),
        Kind::NoSpace => (14, "no_space"),
        Kind::NotFound => (15, "not_found"),
        Kind::FormatTooNew => (16, "format_too_new"),
        Kind::Denied => (17, "denied"),
        Kind::Interrupted => (130, "interrupted"),
    }
}

/// What to do next, where the error itself does not say.
fn usual_hint(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Failed | Kind::Interrupted => None,
        Kind::Usage => Some("`ckpt COMMAND --help` explains every option"),
        Kind::Damaged | Kind::Missing => {
            Some("`ckpt verify --read-data` lists what is damaged and which files need it")
        }
        Kind::NoRepository => Some("check --repo or CKPT_REPO; `ckpt init -r PATH` creates a repository"),
        Kind::Busy => Some("another run is at work; try again later"),
        Kind::WrongKey => Some("check which key belongs to this repository"),
        Kind::Unreachable => Some("check the mount or the connection, then run the same command again"),
        Kind::NoSpace => {
            Some("free some space, then run the same command again; what is already stored is not stored twice")
        }
        Kind::NotFound => Some("`ckpt snapshots` and `ckpt ls` show what there is"),
        Kind::FormatTooNew => Some("install a newer ckpt"),
        Kind::Denied => Some("check owner, permissions and mount options of the path that is named"),
    }
}

/// Says how the run ended, if there is something to say, and returns the exit code.
pub fn conclude(output: &Output, signals: &Signals, result: Result<Ending, Error>) -> u8 {
    // Before the last word: what was found out stands above it.
    let flushed = output.flush();
    let result = result.and_then(|ending| output.closing(flushed).map(|()| ending));
    let (code, kind, message, hint) = match result {
        Ok(Ending::Done) => return 0,
        Ok(Ending::Incomplete(message)) => {
            let hint = "mend what the lines above name, then run the same command again";
            (3, "incomplete", message, Some(hint.to_owned()))
        }
        Ok(Ending::Partial(message, hint)) => (3, "incomplete", message, Some(hint.to_owned())),
        Ok(Ending::Mended(message)) => (6, "mended", message, None),
        Ok(Ending::Damage(message, hint)) => (5, "damaged", message, hint.map(str::to_owned)),
        // Whoever read the output has seen enough.
        Err(error) if output.is_of_closing(&error) => return 0,
        Err(error) if signals.is_interrupted() && error.kind() == Kind::Interrupted => {
            (signals.exit_code(), "interrupted", error.to_string(), error.hint().map(str::to_owned))
        }
        Err(error) => {
            let (code, name) = code_and_name(error.kind());
            let hint = error.hint().or_else(|| usual_hint(error.kind())).map(str::to_owned);
            (code, name, error.to_string(), hint)
        }
    };
    say(output, code, kind, &message, hint.as_deref());
    code
}

/// Writes the last word to stderr: one line, or two for somebody who watches.
pub fn say(output: &Output, code: u8, kind: &str, message: &str, hint: Option<&str>) {
    if output.manners.log_json {
        let document = ErrorDocument::new(&output.envelope, code, kind, message, hint);
        return output.talk_text(&json_text(&document));
    }
    let (message, hint) = (render::prose(message), hint.map(render::prose));
    let error = output.coloured("31", "error");
    match hint {
        None => output.talk_text(&format!("{error}: {message}")),
        Some(hint) if output.manners.stderr_is_terminal => {
            output.talk_text(&format!("{error}: {message}\n{}: {hint}", output.coloured("36", "hint")));
        }
        Some(hint) => output.talk_text(&format!("{error}: {message}; hint: {hint}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_codes_of_the_contract() {
        let codes = [
            (Kind::Failed, 1),
            (Kind::Usage, 2),
            (Kind::Damaged, 5),
            (Kind::NoRepository, 10),
            (Kind::Busy, 11),
            (Kind::WrongKey, 12),
            (Kind::Unreachable, 13),
            (Kind::NoSpace, 14),
            (Kind::NotFound, 15),
            (Kind::FormatTooNew, 16),
            (Kind::Denied, 17),
            (Kind::Interrupted, 130),
        ];
        for (kind, code) in codes {
            assert_eq!(code_and_name(kind).0, code, "{kind:?}");
        }
    }
}
