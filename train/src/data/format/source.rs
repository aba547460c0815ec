//! A file read by position, from several threads.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::super::error::{At, DataError, Result};
use super::MAX_ROW_BYTES;

/// A file read by position. Not mapped: a file that is cut while it is mapped kills the process.
#[derive(Debug)]
pub(crate) struct SourceFile {
    file: File,
    pub(crate) path: PathBuf,
    pub(crate) len: u64,
}

/// Refuses what cannot be read by position; opening a pipe would wait for its writer without end.
pub(crate) fn check_regular(path: &Path) -> std::io::Result<()> {
    let kind = std::fs::metadata(path)?.file_type();
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(std::io::Error::other("it is a directory")),
        _ => {
            Err(std::io::Error::other("it is a pipe or a device, which has no rows to go back to; write it to a file"))
        }
    }
}

impl SourceFile {
    pub(crate) fn open(path: &Path) -> Result<SourceFile> {
        let io = |source| DataError::Io { file: path.to_path_buf(), action: "open it", source };
        check_regular(path).map_err(io)?;
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        Ok(SourceFile { file, path: path.to_path_buf(), len: meta.len() })
    }

    /// A file without a name, such as a temporary one; `path` is for messages.
    #[cfg(feature = "parquet")]
    pub(crate) fn from_file(file: File, path: &Path, len: u64) -> SourceFile {
        SourceFile { file, path: path.to_path_buf(), len }
    }

    /// Reads up to `buf.len()` bytes at `offset`; 0 at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_at(&self.file, buf, offset);
        #[cfg(windows)]
        return std::os::windows::fs::FileExt::seek_read(&self.file, buf, offset);
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => {
                    let found = offset + done as u64;
                    return Err(DataError::Changed { file: self.path.clone(), found, expected: self.len });
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(DataError::Io { file: self.path.clone(), action: "read it", source }),
            }
        }
        Ok(())
    }

    /// Bytes `start..end`, which must be within the file.
    pub(crate) fn range(&self, start: u64, end: u64, at: &At) -> Result<Vec<u8>> {
        let n = end - start;
        if n > MAX_ROW_BYTES {
            return Err(DataError::RowTooLong { at: at.clone(), limit: MAX_ROW_BYTES });
        }
        let mut buf = vec![0; n as usize];
        self.read_exact_at(&mut buf, start)?;
        Ok(buf)
    }

    /// Hands the file to `f` chunk by chunk from `start`: (offset of the chunk, its bytes).
    pub(crate) fn scan(&self, start: u64, mut f: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut buf = vec![0; (self.len.saturating_sub(start)).min(1 << 20) as usize];
        let mut offset = start;
        while offset < self.len {
            let n = (self.len - offset).min(buf.len() as u64) as usize;
            self.read_exact_at(&mut buf[..n], offset)?;
            f(offset, &buf[..n])?;
            offset += n as u64;
        }
        Ok(())
    }

    /// Length of a byte-order mark at the start: 3, or 0.
    pub(crate) fn bom(&self) -> Result<u64> {
        if self.len < 3 {
            return Ok(0);
        }
        let mut head = [0; 3];
        self.read_exact_at(&mut head, 0)?;
        Ok(if head == [0xEF, 0xBB, 0xBF] { 3 } else { 0 })
    }
}
