//! A gradient while contributions to it come.

use planish_tensor::ops::elementwise::{add_assign, sum_of_halves};
use planish_tensor::{DType, Tensor};

use crate::Result;
use crate::param::widened;

/// What has come so far. Halves on a device are kept as they are and added up where the sum is read: by one kernel, which
/// reads each once. All else is added up in place. Either way the sum is made in f32, in the order in which its terms
/// came, and rounded once.
#[derive(Default)]
pub(crate) struct Sum(Vec<Tensor>);

impl Sum {
    /// Halves that are kept: what the kernel adds.
    const MOST: usize = planish_tensor::ops::elementwise::MOST_HALVES;

    /// The gradient of a leaf, which is one tensor.
    pub(crate) fn whole(&self) -> Option<&Tensor> {
        self.0.first()
    }

    pub(crate) fn add(&mut self, grad: Tensor) -> Result<()> {
        let alike = |first: &Tensor| half(first) && first.dtype() == grad.dtype() && !first.device().is_cpu();
        match self.0.first() {
            None => self.0.push(grad),
            Some(first) if alike(first) && self.0.len() < Sum::MOST => self.0.push(grad),
            Some(_) => {
                let mut sum = self.take_wide()?.expect("just seen");
                add_assign(&mut sum, &grad)?;
                self.0.push(sum);
            }
        }
        Ok(())
    }

    /// The sum in `dtype`; `None` if nothing came.
    pub(crate) fn take(&mut self, dtype: DType) -> Result<Option<Tensor>> {
        if self.0.len() > 1 && self.0[0].dtype() == dtype {
            return Ok(Some(sum_of_halves(&std::mem::take(&mut self.0))?));
        }
        Ok(self.take_wide_if_several()?.map(|sum| sum.to_dtype(dtype)).transpose()?)
    }

    /// The sum in the compute dtype, to be added to.
    pub(crate) fn take_wide(&mut self) -> Result<Option<Tensor>> {
        self.take_wide_if_several()?.map(widened).transpose()
    }

    fn take_wide_if_several(&mut self) -> Result<Option<Tensor>> {
        let mut all = std::mem::take(&mut self.0).into_iter();
        let Some(first) = all.next() else { return Ok(None) };
        if all.len() == 0 {
            return Ok(Some(first));
        }
        let mut sum = widened(first)?;
        all.try_for_each(|grad| add_assign(&mut sum, &grad))?;
        Ok(Some(sum))
    }
}

fn half(t: &Tensor) -> bool {
    matches!(t.dtype(), DType::BF16 | DType::F16)
}
