//! A teacher's predictions as `planish score --top-k` has written them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::score::ScoreLine;
use crate::{Error, Result};

/// Predictions of a data set, a line an example. Only where the lines begin is kept in memory.
#[derive(Debug)]
pub struct StoredTeacher {
    path: PathBuf,
    file: Mutex<BufReader<File>>,
    /// Where each line begins.
    starts: Vec<u64>,
    k: usize,
    temperature: f64,
}

/// Most bytes of a line: a row of 2²⁰ tokens with 64 predictions each.
const LONGEST: u64 = 1 << 31;

impl StoredTeacher {
    /// Opens a file and finds its lines.
    ///
    /// # Errors
    /// [`Error::TeacherScores`] for a file that cannot be read or has no predictions.
    pub fn open(path: &Path) -> Result<StoredTeacher> {
        let bad = |problem: String| Error::TeacherScores { path: path.to_path_buf(), problem };
        let failed = |e: std::io::Error| bad(e.to_string());
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let (mut starts, mut at, mut line) = (Vec::new(), 0u64, Vec::new());
        loop {
            line.clear();
            let read = file.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(failed)? as u64;
            if read == 0 {
                break;
            }
            if read == LONGEST {
                return Err(bad(format!("line {} has more than {LONGEST} bytes", starts.len() + 1)));
            }
            if !line.iter().all(u8::is_ascii_whitespace) {
                starts.push(at);
            }
            at += read;
        }
        if starts.is_empty() {
            return Err(bad("it is empty".to_owned()));
        }
        let mut stored =
            StoredTeacher { path: path.to_path_buf(), file: Mutex::new(file), starts, k: 0, temperature: 1.0 };
        let first = stored.line(0)?;
        let Some(top) = first.top else {
            return Err(bad("it has no predictions; write it with `planish score --top-k`".to_owned()));
        };
        (stored.k, stored.temperature) = (top.ids.first().map_or(0, Vec::len), top.temperature);
        if stored.k == 0 {
            return Err(bad("line 1 has no predictions".to_owned()));
        }
        Ok(stored)
    }

    /// Tokens that are known at each place.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Temperature of the predictions.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    fn line(&self, example: usize) -> Result<ScoreLine> {
        let bad = |problem: String| Error::TeacherScores { path: self.path.clone(), problem };
        let Some(&start) = self.starts.get(example) else {
            return Err(bad(format!("it has {} lines and the data set a row {}", self.starts.len(), example + 1)));
        };
        let mut text = Vec::new();
        {
            // A panic elsewhere leaves a file that the next seek puts right.
            let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let read = file
                .seek(SeekFrom::Start(start))
                .and_then(|_| file.by_ref().take(LONGEST).read_until(b'\n', &mut text));
            read.map_err(|e| bad(e.to_string()))?;
        }
        serde_json::from_slice(&text).map_err(|e| bad(format!("line {}: {e}", example + 1)))
    }

    /// Appends what is known where the supervised tokens of an example are predicted, k ids and log-probabilities a
    /// token. The example may have been cut at its end.
    ///
    /// # Errors
    /// [`Error::TeacherScores`] if the line is not of these tokens, which is so of another tokenizer or template too.
    pub fn read(
        &self,
        example: usize,
        ids: &[u32],
        mask: &[bool],
        top_ids: &mut Vec<u32>,
        top_logprobs: &mut Vec<f64>,
    ) -> Result<()> {
        let bad = |problem: &str| Error::TeacherScores {
            path: self.path.clone(),
            problem: format!("line {}: {problem}", example + 1),
        };
        let line = self.line(example)?;
        if line.index != example {
            return Err(bad("its index is that of another row; score the data set as a whole"));
        }
        if !line.ids.starts_with(ids) {
            return Err(bad(
                "its tokens are not those of the data set's row: another file, template, or tokenizer than the student's",
            ));
        }
        let top = line.top.ok_or_else(|| bad("it has no predictions"))?;
        let wanted = mask.iter().skip(1).filter(|m| **m).count();
        if top.ids.len() < wanted || top.ids.len() != line.logprobs.len() || top.logprobs.len() != top.ids.len() {
            return Err(bad("it has not a list of predictions for each supervised token"));
        }
        if top.temperature != self.temperature {
            return Err(bad("its temperature is not that of line 1"));
        }
        for (ids, logprobs) in top.ids.iter().zip(&top.logprobs).take(wanted) {
            if ids.len() != self.k || logprobs.len() != self.k {
                return Err(bad("not every list of predictions is as long as those of line 1"));
            }
            top_ids.extend(ids);
            top_logprobs.extend(logprobs);
        }
        Ok(())
    }
}
