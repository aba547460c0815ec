//! Control flow, barriers, and what lanes of a warp do together.

use super::{Decoder, Mods, Result};
use crate::emulator::isa::{Barrier, Op, Reduce, Shuffle, Ty, Vote};
use crate::emulator::ptx::Operand;

/// Decodes an instruction of this kind; `false` if it is none.
pub(super) fn decode<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<bool> {
    match mods.name {
        "bra" => {
            mods.take("uni");
            let [Operand::Word(label)] = operands else { return d.problem("a label was expected") };
            d.open.push((d.code.len(), d.scopes.clone(), label));
            d.emit(Op::Branch, vec![], vec![]);
        }
        "brx" => {
            mods.take("idx");
            mods.take("uni");
            let [index, Operand::Word(table)] = operands else {
                return d.problem("an index and a table were expected");
            };
            let index = d.read(index, Ty::U32)?;
            d.open.push((d.code.len(), d.scopes.clone(), table));
            d.emit(Op::BranchIndexed, vec![], vec![index]);
        }
        "ret" | "exit" => {
            mods.take("uni");
            d.emit(Op::Exit, vec![], vec![]);
        }
        "call" => return d.problem("calls of functions are not supported"),
        "trap" | "brkpt" => d.emit(Op::Trap, vec![], vec![]),
        "bar" | "barrier" => barrier(d, mods, operands)?,
        "fence" => {
            let asynchronous = mods.take("proxy") && mods.take("async");
            // Only shared memory has a check; all other fences order what is in the order of the program anyway.
            let shared = !mods.take("global");
            mods.rest.clear();
            d.emit(if asynchronous && shared { Op::ProxyFence } else { Op::Nothing }, vec![], vec![]);
        }
        "setmaxnreg" => {
            let known =
                (mods.take("inc") || mods.take("dec")) && mods.take("sync") && mods.take("aligned") && mods.take("u32");
            let [Operand::Int(count)] = operands else { return d.problem("a number of registers was expected") };
            if !known || !(24..=256).contains(count) || !count.is_multiple_of(8) {
                return d.problem("setmaxnreg takes a multiple of 8 from 24 to 256");
            }
            d.emit_at(Op::SetRegisters, vec![], vec![], *count as i64, false);
        }
        "membar" | "griddepcontrol" | "nanosleep" | "pmevent" => {
            // Memory here is in the order of the program, and there is nothing to wait for.
            mods.rest.clear();
            d.emit(Op::Nothing, vec![], vec![]);
        }
        "shfl" => {
            if !mods.take("sync") {
                return d.problem("shfl without .sync does not exist since sm_70");
            }
            let modes = [("up", Shuffle::Up), ("down", Shuffle::Down), ("bfly", Shuffle::Bfly), ("idx", Shuffle::Idx)];
            let Some(mode) = mods.one_of(&modes) else { return d.problem("shfl without a mode") };
            mods.take("b32");
            let [to, value, by, clamp, mask] = d.operands(operands)?;
            let mut defs = Vec::new();
            let paired = match to {
                Operand::Pair(to, p) => {
                    defs.push(d.write(&Operand::Word(to), Ty::B32)?);
                    defs.push(d.write(&Operand::Word(p), Ty::Pred)?);
                    true
                }
                _ => {
                    defs.push(d.write(to, Ty::B32)?);
                    false
                }
            };
            // The mask goes first: whatever waits for a warp finds it there.
            let uses =
                vec![d.read(mask, Ty::B32)?, d.read(value, Ty::B32)?, d.read(by, Ty::B32)?, d.read(clamp, Ty::B32)?];
            d.emit(Op::Shuffle(mode, paired), defs, uses);
        }
        "vote" => {
            if !mods.take("sync") {
                return d.problem("vote without .sync does not exist since sm_70");
            }
            let kinds = [("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uni), ("ballot", Vote::Ballot)];
            let Some(kind) = mods.one_of(&kinds) else { return d.problem("vote without a mode") };
            let ty = if mods.take("b32") { Ty::B32 } else { Ty::Pred };
            mods.take("pred");
            let [to, p, mask] = d.operands(operands)?;
            let uses = vec![d.read(mask, Ty::B32)?, d.read(p, Ty::Pred)?];
            let to = d.write(to, ty)?;
            if (kind == Vote::Ballot) != (ty == Ty::B32) {
                return d.problem("vote.ballot gives 32 bits, the others a predicate");
            }
            d.emit(Op::Vote(kind), vec![to], uses);
        }
        "match" => {
            let all = mods.take("all");
            mods.take("any");
            mods.take("sync");
            let Some(ty) = mods.ty() else { return d.problem("match without a type") };
            let [to, value, mask] = d.operands(operands)?;
            let mut defs = Vec::new();
            let pred = match to {
                Operand::Pair(to, p) if all => {
                    defs.push(d.write(&Operand::Word(to), Ty::B32)?);
                    defs.push(d.write(&Operand::Word(p), Ty::Pred)?);
                    true
                }
                _ => {
                    defs.push(d.write(to, Ty::B32)?);
                    false
                }
            };
            let uses = vec![d.read(mask, Ty::B32)?, d.read(value, ty)?];
            d.emit(Op::Match { all, wide: ty.bits() == 64, pred }, defs, uses);
        }
        "redux" => {
            mods.take("sync");
            let ops = [
                ("add", Reduce::Add),
                ("min", Reduce::Min),
                ("max", Reduce::Max),
                ("and", Reduce::And),
                ("or", Reduce::Or),
                ("xor", Reduce::Xor),
            ];
            let Some(op) = mods.one_of(&ops) else { return d.problem("redux without an operation") };
            let ty = match mods.ty() {
                Some(ty @ (Ty::U32 | Ty::S32)) => ty,
                Some(Ty::B32) => Ty::U32,
                _ => return d.problem("redux of this type is not supported"),
            };
            let [to, value, mask] = d.operands(operands)?;
            let uses = vec![d.read(mask, Ty::B32)?, d.read(value, ty)?];
            let to = d.write(to, ty)?;
            d.emit(Op::Redux(op, ty), vec![to], uses);
        }
        "elect" => {
            mods.take("sync");
            let [to, mask] = d.operands(operands)?;
            let Operand::Pair(to, p) = to else { return d.problem("elect gives a register and a predicate") };
            let uses = vec![d.read(mask, Ty::B32)?];
            let defs = vec![d.write(&Operand::Word(to), Ty::B32)?, d.write(&Operand::Word(p), Ty::Pred)?];
            d.emit(Op::Elect, defs, uses);
        }
        "activemask" => {
            mods.take("b32");
            let [to] = d.operands(operands)?;
            let to = d.write(to, Ty::B32)?;
            d.emit(Op::ActiveMask, vec![to], vec![]);
        }
        "mbarrier" => mbarrier(d, mods, operands)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn barrier<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    if mods.take("warp") {
        mods.take("sync");
        let [mask] = d.operands(operands)?;
        let uses = vec![d.read(mask, Ty::B32)?];
        d.emit(Op::WarpSync, vec![], uses);
        return Ok(());
    }
    mods.take("cta");
    if mods.take("cluster") {
        let aligned = mods.take("aligned");
        let op = if mods.take("arrive") {
            mods.take("release");
            Op::ClusterArrive { aligned, release: !mods.take("relaxed") }
        } else if mods.take("wait") {
            mods.take("acquire");
            Op::ClusterWait { aligned }
        } else {
            return d.problem("a barrier of this kind is not supported");
        };
        d.operands::<0>(operands)?;
        d.emit(op, vec![], vec![]);
        return Ok(());
    }
    let aligned = mods.take("aligned") || mods.name == "bar";
    if mods.take("red") {
        let kinds = [("popc", Barrier::Popc), ("and", Barrier::And), ("or", Barrier::Or)];
        let Some(kind) = mods.one_of(&kinds) else { return d.problem("bar.red without an operation") };
        let ty = if kind == Barrier::Popc { Ty::U32 } else { Ty::Pred };
        mods.take("u32");
        mods.take("pred");
        let (to, id, count, p) = match operands {
            [to, id, p] => (to, id, None, p),
            [to, id, count, p] => (to, id, Some(count), p),
            _ => return d.problem("a wrong number of operands"),
        };
        let mut uses = vec![d.read(id, Ty::U32)?];
        if let Some(count) = count {
            uses.push(d.read(count, Ty::U32)?);
        }
        uses.push(d.read(p, Ty::Pred)?);
        let to = d.write(to, ty)?;
        d.emit(Op::Barrier { kind, aligned, counted: count.is_some() }, vec![to], uses);
        return Ok(());
    }
    let arrive = mods.take("arrive");
    if !arrive && !mods.take("sync") {
        return d.problem("a barrier of this kind is not supported");
    }
    if operands.is_empty() || operands.len() > 2 || (arrive && operands.len() != 2) {
        return d.problem("a wrong number of operands");
    }
    let uses = operands.iter().map(|operand| d.read(operand, Ty::U32)).collect::<Result<_>>()?;
    let kind = if arrive { Barrier::Arrive } else { Barrier::Sync };
    d.emit(Op::Barrier { kind, aligned, counted: operands.len() == 2 }, vec![], uses);
    Ok(())
}

fn mbarrier<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    let remote = mods.take("shared::cluster");
    let orders = mods.take("cluster") && !mods.take("relaxed");
    for word in ["shared", "shared::cta", "b64", "release", "acquire", "relaxed", "cta"] {
        mods.take(word);
    }
    d.shared_granule(8);
    if mods.take("init") {
        let [at, count] = d.operands(operands)?;
        let (base, offset, wide) = d.address(at)?;
        let uses = vec![base, d.read(count, Ty::U32)?];
        d.emit_at(Op::MbarrierInit, vec![], uses, offset, wide);
    } else if mods.take("inval") {
        let [at] = d.operands(operands)?;
        let (base, offset, wide) = d.address(at)?;
        d.emit_at(Op::MbarrierInvalidate, vec![], vec![base], offset, wide);
    } else if mods.take("arrive") {
        let expect = mods.take("expect_tx");
        let (state, rest) = match operands {
            [Operand::Address(..), ..] => (None, operands),
            [state, rest @ ..] => (Some(state), rest),
            [] => return d.problem("operands are missing"),
        };
        let Some((at, extra)) = rest.split_first() else { return d.problem("operands are missing") };
        let (base, offset, wide) = d.address(at)?;
        let mut uses = vec![base];
        for operand in extra {
            uses.push(d.read(operand, Ty::U32)?);
        }
        if extra.len() > 1 || (expect && extra.len() != 1) {
            return d.problem("a wrong number of operands");
        }
        let mut defs = Vec::new();
        if let Some(state) = state
            && *state != Operand::Word("_")
        {
            defs.push(d.write(state, Ty::B64)?);
        }
        let (count, returns) = (!expect && !extra.is_empty(), !defs.is_empty());
        if remote && returns {
            return d.problem("an arrival at another block's mbarrier gives no state");
        }
        let op = Op::MbarrierArrive { count, expect, returns, remote, orders };
        d.emit_at(op, defs, uses, offset, wide);
    } else if mods.take("expect_tx") {
        let [at, bytes] = d.operands(operands)?;
        let (base, offset, wide) = d.address(at)?;
        let uses = vec![base, d.read(bytes, Ty::U32)?];
        d.emit_at(Op::MbarrierExpect { remote }, vec![], uses, offset, wide);
    } else if mods.take("test_wait") || mods.take("try_wait") {
        let parity = mods.take("parity");
        let (to, at, state) = match operands {
            // A time limit is a hint.
            [to, at, state] | [to, at, state, _] => (to, at, state),
            _ => return d.problem("a wrong number of operands"),
        };
        let (base, offset, wide) = d.address(at)?;
        let uses = vec![base, d.read(state, if parity { Ty::U32 } else { Ty::B64 })?];
        let to = d.write(to, Ty::Pred)?;
        d.emit_at(Op::MbarrierTest { parity, orders }, vec![to], uses, offset, wide);
    } else {
        return d.problem("an mbarrier of this kind is not supported");
    }
    Ok(())
}
