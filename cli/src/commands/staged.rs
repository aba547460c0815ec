//! A directory for a result, whole or not there: what is in it stays until nothing can fail any more but the last renaming.

use std::path::{Path, PathBuf};
use std::{fs, io};

use planish_nn::Error;
use planish_nn::weights::{atomic::remove_leftovers, atomic_dir, is_weights_file};
use planish_train::run::{RunDir, RunError};

/// A directory that a result is to be put into.
pub(super) struct Place {
    dir: RunDir,
    /// Whether it is to go again if there is no result.
    new: bool,
}

impl Place {
    /// Refuses a directory with something in it, unless `overwrite`, and one that cannot be written. Nothing is removed.
    ///
    /// # Errors
    /// Those of [`RunDir::claim`].
    pub(super) fn claim(out: &Path, overwrite: bool) -> Result<Place, RunError> {
        let new = !out.exists();
        Ok(Place { dir: RunDir::claim(out, overwrite)?, new })
    }

    /// Has all files written into a directory beside their places and, when all are on the disk, moves them there, in place
    /// of an earlier model's or run's. Beside and not above: the directory may be where a volume is mounted.
    ///
    /// # Errors
    /// Those of `write`; what the disk says.
    pub(super) fn fill(mut self, write: impl FnOnce(&Path) -> planish_nn::Result<()>) -> anyhow::Result<()> {
        let out = self.dir.path().to_owned();
        remove_leftovers(&out).map_err(Error::from)?;
        let staged = out.join(".result.planish.tmp");
        atomic_dir(&staged, write)?;
        // From here on what is there is not taken away again.
        self.new = false;
        let moved = clear_model(&out).and_then(|()| move_into(&staged, &out));
        moved.map_err(|source| Error::Io { path: out, source })?;
        Ok(self.dir.clear()?)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.new {
            fs::remove_dir(self.dir.path()).ok();
        }
    }
}

/// Removes an earlier model's files: one that the new model lacks would be taken for its own. config.json goes first: a
/// directory without it is no model.
fn clear_model(dir: &Path) -> io::Result<()> {
    let mut old: Vec<PathBuf> = fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<io::Result<_>>()?;
    old.retain(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_of_a_model));
    old.sort_by_key(|path| !path.ends_with("config.json"));
    old.iter().try_for_each(|path| if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) })
}

/// Whether a file of that name says what a model, its tokenizer or an adapter is.
fn is_of_a_model(name: &str) -> bool {
    const NAMES: [&str; 11] = [
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "added_tokens.json",
        "special_tokens_map.json",
        "additional_chat_templates",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
    ];
    let of_tokenizer = name.starts_with("tokenizer") && name.ends_with(".json");
    NAMES.contains(&name) || of_tokenizer || name.starts_with("chat_template") || is_weights_file(name)
}

fn move_into(from: &Path, to: &Path) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(from)?.collect::<io::Result<_>>()?;
    // A directory without it is no model yet.
    entries.sort_by_key(|entry| entry.file_name() == "config.json");
    for entry in entries {
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&place)?;
            move_into(&entry.path(), &place)?;
        } else {
            fs::rename(entry.path(), place)?;
        }
    }
    fs::remove_dir(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn an_old_model_stays_until_the_new_one_is_whole_and_leaves_nothing_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let old = [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "chat_template.jinja",
            "adapter_config.json",
            "config.yaml",
            "mine.txt",
        ];
        old.iter().for_each(|name| fs::write(dir.path().join(name), "old").unwrap());
        fs::create_dir_all(dir.path().join("final")).unwrap();
        assert!(Place::claim(dir.path(), false).is_err());
        let before = names(dir.path());
        let failing = |to: &Path| {
            fs::write(to.join("config.json"), "new").unwrap();
            Err(Error::MissingTensor { name: "w".into() })
        };
        Place::claim(dir.path(), true).unwrap().fill(failing).unwrap_err();
        drop(Place::claim(dir.path(), true).unwrap());
        assert_eq!(names(dir.path()), before);
        assert_eq!(fs::read(dir.path().join("config.json")).unwrap(), b"old");
        let new = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let write = |to: &Path| {
            new.iter().for_each(|name| fs::write(to.join(name), "new").unwrap());
            Ok(())
        };
        Place::claim(dir.path(), true).unwrap().fill(write).unwrap();
        assert_eq!(names(dir.path()), ["config.json", "mine.txt", new[1], new[2]]);
        assert_eq!(fs::read(dir.path().join("config.json")).unwrap(), b"new");
    }

    #[test]
    fn a_new_directory_goes_with_what_failed() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        drop(Place::claim(&out, false).unwrap());
        assert!(!out.exists());
        let failing = |_: &Path| Err(Error::MissingTensor { name: "w".into() });
        Place::claim(&out, false).unwrap().fill(failing).unwrap_err();
        assert!(!out.exists());
    }
}
