//! Values as the user wrote them, before anything knows what type they should have.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::error::{ConfigError, Origin};

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw {
    /// The value.
    pub node: Node,
    /// Where it was written.
    pub at: Origin,
}

/// The shape of a value. Scalars stay text until a setting parses them, so that a flag and a YAML
/// key accept exactly the same spellings (`1e-5`, `yes`, a revision named `1234`).
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Nothing: `null`, `~` or an empty value.
    Null,
    /// A scalar, as written but without its quotes.
    Text(String),
    /// A list.
    List(Vec<Raw>),
    /// A map in its order of writing; the origin is that of the key.
    Map(Vec<(String, Origin, Raw)>),
}

impl Raw {
    /// The value of a flag.
    pub fn flag(flag: &str, text: impl Into<String>) -> Raw {
        Raw { node: Node::Text(text.into()), at: Origin::Flag(flag.to_owned()) }
    }

    /// What an error says was found: ``the text `fast` ``, `a list`, `nothing`.
    pub fn found(&self) -> String {
        match &self.node {
            Node::Null => "nothing".to_owned(),
            Node::Text(text) if text.chars().count() > 60 => {
                let start: String = text.chars().take(57).collect();
                format!("`{start}…`")
            }
            Node::Text(text) => format!("`{text}`"),
            Node::List(_) => "a list".to_owned(),
            Node::Map(_) => "a map".to_owned(),
        }
    }
}

/// Parses YAML whose top is a map. An empty document is an empty map. `path` is only quoted.
///
/// # Errors
/// [`ConfigError::Yaml`] with the line, for text that is not YAML, repeats a key, or is no map.
pub fn parse_yaml(text: &str, path: &Path) -> Result<Vec<(String, Origin, Raw)>, ConfigError> {
    let path = Arc::new(path.to_owned());
    let top = parse_node(text, &path)?;
    match top.node {
        Node::Map(entries) => Ok(entries),
        Node::Null => Ok(Vec::new()),
        _ => Err(ConfigError::Yaml {
            problem: format!("expected a map of settings (`key: value`), found {}", top.found()),
            at: top.at,
        }),
    }
}

pub(super) fn parse_node(text: &str, path: &Arc<PathBuf>) -> Result<Raw, ConfigError> {
    // serde-saphyr refuses an empty document where a value is due; for settings it means "none".
    if text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#')
    }) {
        return Ok(Raw { node: Node::Null, at: Origin::File { path: Arc::clone(path), line: 1 } });
    }
    // `.nan` must reach the setting, which names itself and its range; the parser cannot.
    let options = serde_saphyr::options! {
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    let tree: Spanned<Tree> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        let message = error.without_snippet().to_string();
        let problem = in_our_words(message.lines().next().unwrap_or("not YAML").trim());
        ConfigError::Yaml { at: Origin::File { path: Arc::clone(path), line }, problem }
    })?;
    Ok(tree_to_raw(tree, text, path))
}

/// The parser's words where they speak of its own settings. The line is said before them.
fn in_our_words(message: &str) -> String {
    if let Some(rest) = message.strip_prefix("duplicate mapping key: ") {
        let key = rest.split(", set ").next().unwrap_or(rest);
        return format!("`{key}` is set twice; keep one of the two");
    }
    if message.starts_with("budget breached") {
        return "the file is too large, or its aliases (`*name`) repeat too much; write the settings out".to_owned();
    }
    message.to_owned()
}

/// What serde sees. Numbers and booleans are re-read from the source text by their span.
enum Tree {
    Null,
    Plain(String),
    Text(String),
    List(Vec<Spanned<Tree>>),
    Map(Vec<(Spanned<String>, Spanned<Tree>)>),
}

fn tree_to_raw(tree: Spanned<Tree>, source: &str, path: &Arc<PathBuf>) -> Raw {
    let origin = |line: u64| Origin::File { path: Arc::clone(path), line };
    let at = origin(tree.referenced.line());
    let node = match tree.value {
        Tree::Null => Node::Null,
        Tree::Text(text) => Node::Text(text),
        Tree::Plain(parsed) => {
            let span = tree.defined.span();
            let written = span.byte_offset().zip(span.byte_len()).and_then(|(start, len)| {
                let start = usize::try_from(start).ok()?;
                source.get(start..start.checked_add(usize::try_from(len).ok()?)?)
            });
            Node::Text(written.map_or(parsed, |text| text.trim().to_owned()))
        }
        Tree::List(items) => Node::List(items.into_iter().map(|item| tree_to_raw(item, source, path)).collect()),
        Tree::Map(entries) => Node::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let at = origin(key.referenced.line());
                    (key.value, at, tree_to_raw(value, source, path))
                })
                .collect(),
        ),
    };
    Raw { node, at }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E: de::Error>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }
    fn visit_none<E: de::Error>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }
    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Tree, E> {
        Ok(Tree::Plain(v.to_string()))
    }
    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Tree, E> {
        Ok(Tree::Plain(v.to_string()))
    }
    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Tree, E> {
        Ok(Tree::Plain(v.to_string()))
    }
    fn visit_i128<E: de::Error>(self, v: i128) -> Result<Tree, E> {
        Ok(Tree::Plain(v.to_string()))
    }
    fn visit_u128<E: de::Error>(self, v: u128) -> Result<Tree, E> {
        Ok(Tree::Plain(v.to_string()))
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Tree, E> {
        Ok(Tree::Plain(v.to_string()))
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<Tree, E> {
        Ok(Tree::Text(v.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(entries: &[(String, Origin, Raw)], key: &str) -> (Node, u64) {
        let (_, _, raw) = entries.iter().find(|(name, ..)| name == key).expect(key);
        let Origin::File { line, .. } = &raw.at else { panic!("no line") };
        (raw.node.clone(), *line)
    }

    #[test]
    fn scalars_keep_their_spelling_and_line() {
        let yaml = "# head\na: 1e-5\nb: yes\nc: '12'\nd: 0.10\ne:\nf: .nan\ng: [x, 2]\nh: {k: 1}\n";
        let entries = parse_yaml(yaml, Path::new("t.yaml")).unwrap();
        assert_eq!(text(&entries, "a"), (Node::Text("1e-5".into()), 2));
        assert_eq!(text(&entries, "b"), (Node::Text("yes".into()), 3));
        assert_eq!(text(&entries, "c"), (Node::Text("12".into()), 4));
        assert_eq!(text(&entries, "d"), (Node::Text("0.10".into()), 5));
        assert_eq!(text(&entries, "e").0, Node::Null);
        assert_eq!(text(&entries, "f"), (Node::Text(".nan".into()), 7));
        let (Node::List(items), 8) = text(&entries, "g") else { panic!("no list") };
        assert_eq!(items[1].node, Node::Text("2".into()));
        assert!(matches!(text(&entries, "h").0, Node::Map(_)));
    }

    #[test]
    fn anchors_and_merge_keys_work() {
        let yaml = "base: &b {x: 1}\nrun:\n  <<: *b\n  y: 2\n";
        let entries = parse_yaml(yaml, Path::new("t.yaml")).unwrap();
        let (Node::Map(run), _) = text(&entries, "run") else { panic!("no map") };
        assert_eq!(run.len(), 2);
    }

    #[test]
    fn errors_name_the_line() {
        for (yaml, line) in [
            ("a: 1\nb: [1, 2\n", 2),
            ("a: 1\na: 2\n", 2),
            ("a: 1\nb: 2\n\tc: 3\n", 2),
            ("- 1\n- 2\n", 1),
            ("just text\n", 1),
        ] {
            let error = parse_yaml(yaml, Path::new("t.yaml")).unwrap_err().to_string();
            let at: u64 = error.split(':').nth(1).unwrap().parse().unwrap_or(0);
            assert!(error.starts_with("t.yaml:"), "{error}");
            assert!(at >= line && at <= line + 1, "{yaml:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_parsers_own_settings_are_not_spoken_of() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..8 {
            let of = format!("*a{}", i - 1);
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", [of.as_str(); 10].join(", ")));
        }
        for yaml in ["a: 1\na: 2\n", &bomb] {
            let error = parse_yaml(yaml, Path::new("t.yaml")).unwrap_err().to_string();
            assert!(error.contains("keep one of the two") || error.contains("its aliases"), "{error}");
        }
    }

    #[test]
    fn an_empty_file_has_no_settings() {
        assert!(parse_yaml("", Path::new("t")).unwrap().is_empty());
        assert!(parse_yaml("# only\n\n# comments\n", Path::new("t")).unwrap().is_empty());
    }
}
