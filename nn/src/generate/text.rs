//! The text of a sequence while it grows: for stop strings and for showing it.

/// Turns ids that arrive one by one into text that never ends inside a character.
pub trait TextStream: Send {
    /// Takes the next id; gives the text that is now complete, if there is any.
    fn push(&mut self, id: u32) -> Option<String>;
    /// Gives what is left at the end.
    fn finish(&mut self) -> Option<String>;
}

impl TextStream for crate::tokenizer::StreamDecoder {
    fn push(&mut self, id: u32) -> Option<String> {
        crate::tokenizer::StreamDecoder::push(self, id)
    }

    fn finish(&mut self) -> Option<String> {
        crate::tokenizer::StreamDecoder::finish(self)
    }
}

/// Watches a text for stop strings.
///
/// What may be the beginning of one is held back until it is known not to be, so what has been let
/// through never needs to be taken back.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stop: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// For these strings; empty ones are ignored.
    pub fn new(stop: &[String]) -> StopMatcher {
        StopMatcher { stop: stop.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes more text. Gives the text that may be shown, and whether a stop string was met: then this is
    /// the last text before it.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        // The earliest place wins, whichever string it is.
        if let Some(at) = self.stop.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.held.len() - self.stop.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Lets go of what was held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that is a beginning of `stop` (and not all of it).
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(i, _)| i).filter(|&i| i <= text.len());
    ends.filter(|&i| text.ends_with(&stop[..i])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut m = StopMatcher::new(&stop.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let mut out = vec![];
        for piece in pieces {
            let (text, stopped) = m.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(m.finish());
        (out, false)
    }

    #[test]
    fn stop_strings_are_found_across_pieces_and_never_shown() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), (vec!["a ".into(), "".into(), "".into()], true));
        assert_eq!(run(&["END"], &["a E", "Nd", "E"]), (vec!["a ".into(), "ENd".into(), "".into(), "E".into()], false));
        assert_eq!(run(&["bc", "ab"], &["xabc"]), (vec!["x".into()], true));
        assert_eq!(run(&["aab"], &["aaa", "b"]), (vec!["a".into(), "".into()], true));
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), (vec!["caf".into(), "".into(), "é?".into(), "".into()], false));
        assert_eq!(run(&[], &["all"]), (vec!["all".into(), "".into()], false));
        assert_eq!(run(&[""], &["all"]), (vec!["all".into(), "".into()], false));
    }
}
