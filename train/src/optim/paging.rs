//! States in a file, read ahead and written back while others are updated.
//!
//! The file is scratch: it has no name once it is open, so that nothing is left of it however the process ends, and
//! checkpoints hold what a run goes on from. Its room is reserved when it is made: a full disk is an error before the
//! first step, not in the middle of one.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use planish_tensor::{DType, Mmap, Tensor};

use super::rules::Field;
use crate::Result;
use crate::run::RunError;

/// A file without a name.
pub(super) struct Scratch {
    file: File,
    len: u64,
    /// Where it was made, for messages.
    path: PathBuf,
}

impl Scratch {
    /// One of `len` zeros in `dir`.
    ///
    /// # Errors
    /// [`RunError::NoRoom`]; [`RunError::Io`]: the directory cannot be written to.
    pub(super) fn new(dir: &Path, len: u64) -> Result<Scratch> {
        let path = dir.join(".optimizer.planish.tmp");
        let error = |action, source| RunError::io(action, &path, source);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|e| error("create", e))?;
        let reserved = reserve(&file, len);
        // Systems that keep the name of an open file have it until the next run in this directory.
        let _ = std::fs::remove_file(&path);
        reserved.map_err(|e| match error("reserve room for the optimizer's states in", e) {
            RunError::DiskFull { path } => RunError::NoRoom { bytes: len, path, limit: false },
            RunError::FileTooLarge { path } => RunError::NoRoom { bytes: len, path, limit: true },
            other => other,
        })?;
        Ok(Scratch { file, len, path })
    }

    pub(super) fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        Ok(write_at(&self.file, bytes, at).map_err(|e| RunError::io("write", &self.path, e))?)
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        Ok(read_at(&self.file, bytes, at).map_err(|e| RunError::io("read", &self.path, e))?)
    }

    /// That the thread at the file has ended.
    fn gone(&self) -> RunError {
        RunError::io("read", &self.path, io::ErrorKind::BrokenPipe.into())
    }

    /// Takes the file's bytes away, as nobody should.
    #[cfg(test)]
    pub(super) fn cut(&self) {
        self.file.set_len(0).unwrap();
    }

    /// All of it, as memory.
    pub(super) fn map(&self) -> Result<Arc<Mmap>> {
        debug_assert!(self.len > 0);
        // SAFETY: nobody else has a name for the file; it is not shortened, and what is mapped is dropped before the
        // next step writes to it.
        let map = unsafe { Mmap::map(&self.file) };
        Ok(Arc::new(map.map_err(|e| RunError::io("map", &self.path, e))?))
    }
}

/// Makes a file of `len` zeros whose room nobody can take away.
#[cfg(target_os = "linux")]
fn reserve(file: &File, len: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: the descriptor is open for as long as `file` is.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The same where there is no call for it: by writing it.
#[cfg(not(target_os = "linux"))]
fn reserve(file: &File, len: u64) -> io::Result<()> {
    let zeros = vec![0u8; 1 << 20];
    for at in (0..len).step_by(zeros.len()) {
        write_at(file, &zeros[..zeros.len().min((len - at) as usize)], at)?;
    }
    file.sync_all()
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, at)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => (bytes, at) = (&bytes[n..], at + n as u64),
        }
    }
    Ok(())
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (bytes, at) = (&mut bytes[n..], at + n as u64),
        }
    }
    Ok(())
}

/// Bytes of the file that belong to one field of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) place: u64,
    pub(super) bytes: usize,
}

/// A buffer with the pieces of one run, each at a whole cache line.
pub(super) struct Page {
    buffer: Tensor,
    pieces: Vec<Piece>,
}

impl Page {
    /// Bytes that the fields of `n` numbers take in a buffer.
    pub(super) fn capacity(fields: &[Field], n: usize) -> usize {
        fields.iter().map(|f| f.bytes(n).next_multiple_of(64)).sum()
    }

    /// The pieces, for writing.
    pub(super) fn parts(&mut self) -> Vec<&mut [u8]> {
        let mut rest: &mut [u8] = self.buffer.as_slice_mut::<u8>().expect("bytes of its own");
        let mut all = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            let (part, after) = rest.split_at_mut(piece.bytes.next_multiple_of(64));
            all.push(&mut part[..piece.bytes]);
            rest = after;
        }
        all
    }

    fn read(&mut self, pieces: &[Piece], from: &Scratch) -> Result<()> {
        self.pieces = pieces.to_vec();
        self.parts().into_iter().zip(pieces).try_for_each(|(to, piece)| from.read(to, piece.place))
    }

    fn write(&mut self, to: &Scratch) -> Result<()> {
        let pieces = self.pieces.clone();
        self.parts().into_iter().zip(pieces).try_for_each(|(from, piece)| to.write(from, piece.place))?;
        self.pieces.clear();
        Ok(())
    }
}

/// What is done to a page.
pub(super) type Change<'a> = dyn FnMut(&mut Page) -> Result<()> + 'a;
/// Gives the next page.
pub(super) type Next<'a> = dyn FnMut(&mut Change<'_>) -> Result<()> + 'a;

/// Takes runs through memory: one is updated, the next one is there already, and the last one is written back.
pub(super) struct Pager {
    scratch: Scratch,
    pages: Vec<Page>,
}

impl Pager {
    /// Buffers that it has.
    pub(super) const PAGES: usize = 3;

    /// With buffers of `capacity` bytes.
    pub(super) fn new(scratch: Scratch, capacity: usize) -> Result<Pager> {
        let page = |_| Ok(Page { buffer: Tensor::zeros([capacity], DType::U8)?, pieces: Vec::new() });
        Ok(Pager { scratch, pages: (0..Self::PAGES).map(page).collect::<Result<_>>()? })
    }

    pub(super) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Calls `work` with a function that gives it the pages of `runs`, one after the other, each to be changed by what
    /// is passed in. A thread reads the next ones meanwhile, and writes those that were changed.
    ///
    /// # Errors
    /// Those of the file and of `work`.
    pub(super) fn through(
        &mut self,
        runs: &[Vec<Piece>],
        mut work: impl FnMut(&mut Next<'_>) -> Result<()>,
    ) -> Result<()> {
        if self.pages.is_empty() {
            return Err(self.scratch.gone().into());
        }
        let (ready, next) = channel::<Page>();
        let (done, back) = channel::<Page>();
        for page in self.pages.drain(..) {
            done.send(page).expect("the other end is here");
        }
        let scratch = &self.scratch;
        let (pages, worked) = std::thread::scope(|scope| {
            let files = scope.spawn(move || serve(scratch, runs, &ready, &back));
            let worked = work(&mut |change| {
                // No page: the thread met an error, which is the one to tell.
                let Ok(mut page) = next.recv() else { return Err(scratch.gone().into()) };
                change(&mut page)?;
                let _ = done.send(page);
                Ok(())
            });
            drop(done);
            (files.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), worked)
        });
        self.pages = pages?;
        worked
    }
}

/// The thread at the file: writes each page that comes back, and reads the next run into it.
fn serve(scratch: &Scratch, runs: &[Vec<Piece>], ready: &Sender<Page>, back: &Receiver<Page>) -> Result<Vec<Page>> {
    let mut runs = runs.iter();
    let mut free = Vec::with_capacity(Pager::PAGES);
    for mut page in back {
        page.write(scratch)?;
        match runs.next() {
            Some(run) => {
                page.read(run, scratch)?;
                if ready.send(page).is_err() {
                    break;
                }
            }
            None => free.push(page),
        }
    }
    Ok(free)
}
