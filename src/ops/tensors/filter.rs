//! Which tensors are meant: patterns on their names.

use crate::error::{Error, Kind, Result};
use globset::{Glob, GlobSet, GlobSetBuilder};

/// Patterns; a name that any of them matches is meant, and every name if there are none.
///
/// `*` matches any characters, dots and slashes too; `?`, `[a-z]` and `{a,b}` are understood. A pattern that is itself
/// the name matches, whatever signs are in it.
#[derive(Debug, Clone)]
pub struct TensorFilter {
    literal: Vec<String>,
    globs: GlobSet,
}

impl TensorFilter {
    /// The filter of these patterns. [`Kind::Usage`] names one that is none.
    pub fn new(patterns: &[String]) -> Result<TensorFilter> {
        let unusable = |pattern: &str, error: globset::Error| {
            let text = format!("the pattern {pattern:?} for tensors is invalid: {}", error.kind());
            Error::new(Kind::Usage, text).with_hint("write [[] for a name with [ in it")
        };
        let mut globs = GlobSetBuilder::new();
        for pattern in patterns {
            globs.add(Glob::new(pattern).map_err(|error| unusable(pattern, error))?);
        }
        let globs = globs.build().map_err(|error| unusable(&patterns.join(" "), error))?;
        Ok(TensorFilter { literal: patterns.to_vec(), globs })
    }

    /// True if every tensor is meant.
    pub fn is_everything(&self) -> bool {
        self.literal.is_empty()
    }

    /// True if the tensor of this name is meant.
    pub fn matches(&self, name: &str) -> bool {
        self.is_everything() || self.literal.iter().any(|literal| literal == name) || self.globs.is_match(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(patterns: &[&str]) -> TensorFilter {
        TensorFilter::new(&patterns.iter().map(|&p| p.to_owned()).collect::<Vec<_>>()).expect("valid patterns")
    }

    #[test]
    fn stars_match_dots_and_slashes_and_literal_names_match_themselves() {
        assert!(filter(&[]).matches("anything"));
        assert!(filter(&["model.*.weight"]).matches("model.layers.0.q.weight"));
        assert!(filter(&["*"]).matches("optimizer/state/0"));
        assert!(!filter(&["model.*.weight"]).matches("model.layers.0.q.bias"));
        assert!(filter(&["layers[0].w"]).matches("layers[0].w"), "itself");
        assert!(filter(&["layers[0].w"]).matches("layers0.w"), "a class of characters");
        assert!(filter(&["a", "b.{c,d}"]).matches("b.d"));
        let error = TensorFilter::new(&["layers[0".to_owned()]).expect_err("no pattern");
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains("layers[0"), "{error}");
    }
}
