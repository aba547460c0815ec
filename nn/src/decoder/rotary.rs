//! Tables of the rotations of one forward pass.

use std::collections::HashMap;

use planish_autograd::ops::rope::rope;
use planish_autograd::{Result, Var};
use planish_tensor::replay::Table;
use planish_tensor::{DType, Device, Element, Tensor, dispatch_real};

use crate::config::{ModelConfig, Rope};

/// cos and sin, (tokens, m), of each of the model's rotations at the tokens of a batch.
#[derive(Clone, Debug)]
pub(super) struct Rotations {
    tables: Vec<(Tensor, Tensor)>,
}

impl Rotations {
    /// For tokens at `positions` in segments `cu`. A segment's length, which two kinds of scaling depend
    /// on, is taken to be its last position + 1, as transformers does.
    /// Made on the processor and copied to `device`.
    pub(super) fn new(
        config: &ModelConfig,
        positions: &[u32],
        cu: &[u32],
        dtype: DType,
        device: Device,
    ) -> Result<Rotations> {
        let tables = config.ropes.iter().map(|rope| {
            // One copy for both.
            halves(&table(rope, positions, cu, dtype)?.to_device(device)?)
        });
        let tables = tables.collect::<planish_tensor::Result<_>>()?;
        Ok(Rotations { tables })
    }

    /// In tables that are told later.
    pub(super) fn standing(told: &[Table]) -> Result<Rotations> {
        let tables = told.iter().map(|table| halves(table.tensor()));
        Ok(Rotations { tables: tables.collect::<planish_tensor::Result<_>>()? })
    }

    /// cos and sin of rotation `which`.
    pub(super) fn tables(&self, which: Option<usize>) -> Option<[&Tensor; 2]> {
        which.map(|i| [&self.tables[i].0, &self.tables[i].1])
    }

    /// Turns x, (tokens, heads, size), by rotation `which`; leaves it as it is if there is none.
    pub(super) fn apply(&self, which: Option<usize>, x: &Var) -> Result<Var> {
        match which {
            None => Ok(x.clone()),
            Some(i) => rope(x, &self.tables[i].0, &self.tables[i].1),
        }
    }
}

/// cos and sin of (2, tokens, m).
fn halves(both: &Tensor) -> planish_tensor::Result<(Tensor, Tensor)> {
    let part = |i| both.narrow(0, i, 1)?.reshape(&both.dims()[1..]);
    Ok((part(0)?, part(1)?))
}

/// (2, tokens, m): cos, then sin.
pub(super) fn table(rope: &Rope, positions: &[u32], cu: &[u32], dtype: DType) -> planish_tensor::Result<Tensor> {
    let half = rope.rotary_dim / 2;
    let mut both = Tensor::zeros([2, positions.len(), half], dtype)?;
    dispatch_real!("rope", dtype, R => {
        let (cos, sin) = both.as_slice_mut::<R>()?.split_at_mut(positions.len() * half);
        let mut common = None;
        // Sequences that are decoded together are often at one position: its row is made once.
        let mut made = HashMap::new();
        for segment in cu.windows(2) {
            let rows = segment[0] as usize..segment[1] as usize;
            let Some(&last) = positions[rows.clone()].iter().max() else { continue };
            let (frequencies, factor) = match &common {
                Some(known) if !rope.depends_on_length() => known,
                _ => {
                    made.clear();
                    common.insert(rope.frequencies(last as usize + 1))
                }
            };
            for t in rows {
                let (p, row) = (positions[t], t * half..(t + 1) * half);
                if let Some(first) = made.insert(p, t) {
                    let first = first * half..(first + 1) * half;
                    cos.copy_within(first.clone(), row.start);
                    sin.copy_within(first, row.start);
                    continue;
                }
                for ((&f, cos), sin) in frequencies.iter().zip(&mut cos[row.clone()]).zip(&mut sin[row]) {
                    // The angle is rounded to f32, as in the peers (whose models were trained with that).
                    let (s, c) = ((p as f32 * f) as f64).sin_cos();
                    *cos = R::from_f64(c * *factor);
                    *sin = R::from_f64(s * *factor);
                }
            }
        }
    });
    Ok(both)
}
