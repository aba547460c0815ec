//! Where parameters and variables lie, and the special registers.

use std::collections::HashSet;

use super::{Decoder, Result};
use crate::emulator::isa::{Space, Special};
use crate::emulator::ptx::{File, Operand, Problem, Statement, Variable};
use crate::emulator::window;

impl<'a> Decoder<'a> {
    pub(super) fn lay_out_parameters(&mut self) -> Result<(Vec<(u32, u32)>, u32)> {
        let (mut at, mut all) = (0_u64, Vec::new());
        for parameter in &self.entry.parameters {
            at = at.next_multiple_of(parameter.align.max(1));
            all.push((at as u32, parameter.bytes as u32));
            self.symbols.insert(parameter.name, (Space::Param, at));
            at += parameter.bytes;
            if at > 32764 {
                return Err(Problem::new(parameter.line, "a kernel has at most 32764 bytes of parameters"));
            }
        }
        Ok((all, at as u32))
    }

    /// Shared and local variables get their addresses.
    pub(super) fn lay_out_variables(&mut self, file: &File<'a>) -> Result<(u32, u32)> {
        let mut words = HashSet::new();
        for statement in &self.entry.body {
            if let Statement::Instruction(raw) = statement {
                mentioned(&raw.operands, &mut words);
            }
        }
        let own = self.entry.body.iter().filter_map(|statement| match statement {
            Statement::Variable(variable) => Some(variable),
            _ => None,
        });
        let used = file.variables.iter().filter(|variable| words.contains(variable.name));
        let (mut shared, mut local) = (window::SHARED_BEGIN, window::LOCAL_BEGIN);
        let mut dynamic: Vec<&Variable<'a>> = Vec::new();
        for variable in used.chain(own) {
            let at = match variable.space {
                ".shared" if variable.dynamic => {
                    dynamic.push(variable);
                    continue;
                }
                ".shared" => &mut shared,
                ".local" => &mut local,
                ".global" | ".const" if self.globals.contains_key(variable.name) => continue,
                space => {
                    let what = format!("{space} variables inside of kernels are not supported");
                    return Err(Problem::new(variable.line, what));
                }
            };
            *at = at.next_multiple_of(variable.align.max(1));
            let space = if variable.space == ".shared" { Space::Shared } else { Space::Local };
            self.symbols.insert(variable.name, (space, *at));
            *at += variable.bytes;
            if *at > 1 << 24 {
                return Err(Problem::new(variable.line, "the variables of the kernel are too large"));
            }
        }
        let static_end = shared;
        for variable in dynamic {
            // All dynamic arrays begin at the same place, behind everything else.
            shared = shared.max(static_end.next_multiple_of(variable.align.max(16)));
        }
        let begin = shared;
        for variable in &file.variables {
            if variable.dynamic && variable.space == ".shared" {
                self.symbols.insert(variable.name, (Space::Shared, begin));
            }
        }
        Ok(((shared - window::SHARED_BEGIN) as u32, (local - window::LOCAL_BEGIN) as u32))
    }
}

fn mentioned<'a>(operands: &[Operand<'a>], words: &mut HashSet<&'a str>) {
    for operand in operands {
        match operand {
            Operand::Word(name) | Operand::Plus(name, _) => {
                words.insert(name);
            }
            Operand::List(inner) => mentioned(inner, words),
            Operand::Address(base, _, rest) => {
                mentioned(std::slice::from_ref(base), words);
                mentioned(rest, words);
            }
            _ => {}
        }
    }
}

/// The special register of a name.
pub(super) fn special(name: &str) -> Option<Special> {
    let axis = |suffix: &str| match suffix {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((register, suffix)) = name.split_once('.') {
        let axis = axis(suffix)?;
        return Some(match register {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" => Special::Ctaid(axis),
            "%nctaid" => Special::Nctaid(axis),
            "%clusterid" => Special::Clusterid(axis),
            "%nclusterid" => Special::Nclusterid(axis),
            "%cluster_ctaid" => Special::ClusterCtaid(axis),
            "%cluster_nctaid" => Special::ClusterNctaid(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::Laneid,
        "%warpid" => Special::Warpid,
        "%nwarpid" => Special::Nwarpid,
        "%smid" => Special::Smid,
        "%nsmid" => Special::Nsmid,
        "%gridid" => Special::Gridid,
        "%lanemask_eq" => Special::MaskEq,
        "%lanemask_lt" => Special::MaskLt,
        "%lanemask_le" => Special::MaskLe,
        "%lanemask_gt" => Special::MaskGt,
        "%lanemask_ge" => Special::MaskGe,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" | "%aggr_smem_size" => Special::TotalShared,
        "%cluster_ctarank" => Special::ClusterCtarank,
        "%cluster_nctarank" => Special::ClusterNctarank,
        _ => return None,
    })
}
