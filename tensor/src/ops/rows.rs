//! Copying and adding whole rows by index: what embedding, index_select and scatter_add share.

use crate::{Float, Real, parallel};

/// out[i] = table[ids[i]] in the compute type; the ids are below the number of rows.
pub(crate) fn take<R: Real, F: Float>(table: &[F], width: usize, ids: &[u32], out: &mut [R]) {
    parallel::chunks(out, width, |start, out| {
        for (out, &id) in out.chunks_exact_mut(width).zip(&ids[start / width..]) {
            let row = &table[id as usize * width..][..width];
            for (o, &x) in out.iter_mut().zip(row) {
                *o = x.widen();
            }
        }
    });
}

/// table[ids[i]] += rows[i], for each row of the table in order of i; the ids are below the number of rows.
///
/// Split over rows of the table: each thread walks all ids and takes those that fall to it, so there is
/// neither a race nor an order that depends on the number of threads.
pub(crate) fn add<R: Real>(rows: &[R], width: usize, ids: &[u32], table: &mut [R]) {
    parallel::chunks(table, width, |start, table| {
        let first = start / width;
        let end = first + table.len() / width;
        for (row, &id) in rows.chunks_exact(width).zip(ids) {
            let id = id as usize;
            if (first..end).contains(&id) {
                for (t, &x) in table[(id - first) * width..][..width].iter_mut().zip(row) {
                    *t += x;
                }
            }
        }
    });
}
