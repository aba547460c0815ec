//! From PTX's statements to instructions with their names resolved.
//!
//! Every modifier of an opcode must be understood: one that is left over is an error, never ignored.

mod alu;
mod bulk;
mod compare;
mod layout;
mod memory;
mod sync;

use std::collections::HashMap;

use layout::special;

use super::isa::{Access, Bank, Init, Inst, Kernel, Op, Place, Space, Ty};
use super::ptx::{Entry, File, Operand, Problem, Raw, Statement, bytes_of};
use super::slots::{Draft, assign};

type Result<T> = std::result::Result<T, Problem>;

/// The most registers of a kernel; PTX of real kernels has some thousands.
const MOST_REGISTERS: u64 = 1 << 17;

/// The words of an opcode.
pub(crate) struct Mods<'a> {
    name: &'a str,
    rest: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    fn new(opcode: &'a str) -> Self {
        // `.shared::cta` is one word.
        let mut words = opcode.split('.');
        Self { name: words.next().unwrap_or_default(), rest: words.collect() }
    }

    /// Takes a modifier away, if it is there.
    fn take(&mut self, word: &str) -> bool {
        let at = self.rest.iter().position(|part| *part == word);
        if let Some(at) = at {
            self.rest.remove(at);
        }
        at.is_some()
    }

    /// The first of several modifiers that is there.
    fn one_of<T: Copy>(&mut self, words: &[(&str, T)]) -> Option<T> {
        words.iter().find(|(word, _)| self.take(word)).map(|(_, value)| *value)
    }

    /// The last modifier as a type.
    fn ty(&mut self) -> Option<Ty> {
        let ty = Ty::parse(self.rest.last()?)?;
        self.rest.pop();
        Some(ty)
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
struct Register {
    bank: Bank,
    bits: u32,
}

/// Variables of a module: name to address. Constants are global memory that nothing may write.
pub(crate) type Globals = HashMap<String, u64>;

struct Decoder<'a> {
    entry: &'a Entry<'a>,
    globals: &'a Globals,
    registers: Vec<Register>,
    pinned: Vec<bool>,
    inits: Vec<(u32, Init)>,
    constants: HashMap<(Bank, Init), u32>,
    /// Registers by scope and name, and ranges `%r<n>` by scope, prefix and first register.
    names: HashMap<(u32, &'a str), u32>,
    families: Vec<(u32, &'a str, u64, u32)>,
    /// Shared and local variables and parameters: space and address.
    symbols: HashMap<&'a str, (Space, u64)>,
    labels: HashMap<(u32, &'a str), u32>,
    targets: HashMap<(u32, &'a str), u32>,
    scopes: Vec<u32>,
    code: Vec<Draft>,
    places: Vec<Place>,
    place: Place,
    /// Branches whose target is still a name: instruction, scopes, label.
    open: Vec<(usize, Vec<u32>, &'a str)>,
    tables: Vec<(Vec<u32>, Vec<&'a str>)>,
    granule: u32,
    ordered: bool,
    /// Guard of the instruction at hand.
    guard: Option<(u32, bool)>,
}

/// A line for messages: blanks instead of tabs.
pub(crate) fn tidy(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Decodes a kernel.
pub(crate) fn decode(file: &File<'_>, entry: &Entry<'_>, globals: &Globals, text: &[&str]) -> Result<Kernel> {
    let mut decoder = Decoder {
        entry,
        globals,
        registers: Vec::new(),
        pinned: Vec::new(),
        inits: Vec::new(),
        constants: HashMap::new(),
        names: HashMap::new(),
        families: Vec::new(),
        symbols: HashMap::new(),
        labels: HashMap::new(),
        targets: HashMap::new(),
        scopes: vec![0],
        code: Vec::new(),
        places: Vec::new(),
        place: Place::default(),
        open: Vec::new(),
        tables: Vec::new(),
        granule: 16,
        ordered: false,
        guard: None,
    };
    let (parameters, parameter_bytes) = decoder.lay_out_parameters()?;
    let (static_shared, local_bytes) = decoder.lay_out_variables(file)?;
    decoder.statements()?;
    decoder.finish(file, text, parameters, parameter_bytes, static_shared, local_bytes)
}

impl<'a> Decoder<'a> {
    fn statements(&mut self) -> Result<()> {
        let entry = self.entry;
        let mut scope = 0;
        for statement in &entry.body {
            match statement {
                Statement::Open => {
                    scope += 1;
                    self.scopes.push(scope);
                }
                Statement::Close => {
                    self.scopes.pop();
                }
                Statement::Register { kind, name, count } => self.declare(kind, name, *count)?,
                Statement::Label(name) => {
                    let key = (self.scope(), *name);
                    let at = self.code.len() as u32;
                    if self.labels.insert(key, at).is_some() {
                        return Err(Problem::new(self.place.line, format!("the label {name} stands twice")));
                    }
                }
                Statement::Location(file, line) => self.place.source = (*file as u32, *line),
                Statement::Targets(name, labels) => {
                    self.targets.insert((self.scope(), name), self.tables.len() as u32);
                    self.tables.push((self.scopes.clone(), labels.clone()));
                }
                Statement::Variable(_) => {}
                Statement::Instruction(raw) => {
                    self.place.line = raw.line;
                    self.instruction(raw).map_err(|problem| Problem { line: raw.line, ..problem })?;
                }
            }
        }
        Ok(())
    }

    fn scope(&self) -> u32 {
        self.scopes.last().copied().unwrap_or(0)
    }

    fn declare(&mut self, kind: &'a str, name: &'a str, count: Option<u64>) -> Result<()> {
        let bits = match kind {
            ".pred" => 1,
            _ => match bytes_of(kind) {
                Some(bytes @ (1 | 2 | 4 | 8)) => bytes as u32 * 8,
                _ => return self.problem(format!("registers of type {kind} are not supported")),
            },
        };
        let bank = match bits {
            1 => Bank::Pred,
            64 => Bank::Wide,
            _ => Bank::Word,
        };
        let first = self.registers.len() as u32;
        let many = count.unwrap_or(1);
        if self.registers.len() as u64 + many > MOST_REGISTERS {
            return self.problem(format!("more than {MOST_REGISTERS} registers"));
        }
        for _ in 0..many {
            self.register(Register { bank, bits });
        }
        match count {
            Some(count) => self.families.push((self.scope(), name, count, first)),
            None => {
                self.names.insert((self.scope(), name), first);
            }
        }
        Ok(())
    }

    fn register(&mut self, register: Register) -> u32 {
        self.registers.push(register);
        self.pinned.push(false);
        self.registers.len() as u32 - 1
    }

    /// A register that the code does not name.
    fn temporary(&mut self, bank: Bank) -> u32 {
        let bits = match bank {
            Bank::Pred => 1,
            Bank::Word => 32,
            Bank::Wide => 64,
        };
        self.register(Register { bank, bits })
    }

    fn problem<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(Problem::new(self.place.line, what))
    }

    /// The register of a name, innermost scope first.
    fn lookup(&self, name: &str) -> Option<u32> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = &name[prefix.len()..];
        let number: Option<u64> = if digits.len() > 1 && digits.starts_with('0') { None } else { digits.parse().ok() };
        for scope in self.scopes.iter().rev() {
            if let Some(register) = self.names.get(&(*scope, name)) {
                return Some(*register);
            }
            if let Some(number) = number {
                for (of, family, count, first) in &self.families {
                    if of == scope && *family == prefix && number < *count {
                        return Some(first + number as u32);
                    }
                }
            }
        }
        None
    }

    fn constant(&mut self, bank: Bank, init: Init) -> u32 {
        if let Some(register) = self.constants.get(&(bank, init)) {
            return *register;
        }
        let register = self.temporary(bank);
        self.pinned[register as usize] = true;
        self.inits.push((register, init));
        self.constants.insert((bank, init), register);
        register
    }

    fn value(&mut self, ty: Ty, bits: u64) -> u32 {
        let masked = if ty.bits() == 64 { bits } else { bits & ((1 << ty.bits()) - 1) };
        self.constant(ty.bank(), Init::Value(masked))
    }

    fn address_of(&self, name: &str) -> Option<(Space, u64)> {
        self.symbols.get(name).copied().or_else(|| self.globals.get(name).map(|address| (Space::Global, *address)))
    }

    /// An operand that is read.
    fn read(&mut self, operand: &Operand<'a>, ty: Ty) -> Result<u32> {
        self.read_as(operand, ty, false)
    }

    /// `wider`: the register may be wider than the type, as PTX allows for loads, stores and conversions.
    fn read_as(&mut self, operand: &Operand<'a>, ty: Ty, wider: bool) -> Result<u32> {
        match operand {
            Operand::Word(name) => {
                if let Some(register) = self.lookup(name) {
                    let Register { bank, bits } = self.registers[register as usize];
                    let fits = bits == ty.bits() || (wider && bits > ty.bits() && ty != Ty::Pred);
                    if !fits || (!wider && bank != ty.bank()) {
                        return self.problem(format!("{name} has {bits} bits where {} are needed", ty.bits()));
                    }
                    return Ok(register);
                }
                if let Some(special) = special(name) {
                    let bank = if ty.bits() == 64 { Bank::Wide } else { Bank::Word };
                    return Ok(self.constant(bank, Init::Special(special)));
                }
                if let Some((_, address)) = self.address_of(name) {
                    return Ok(self.value(ty, address));
                }
                self.problem(format!("{name} is not declared, or not supported"))
            }
            Operand::Plus(name, offset) => match self.address_of(name) {
                Some((_, address)) => Ok(self.value(ty, address.wrapping_add_signed(*offset))),
                None => self.problem(format!("{name} is not declared")),
            },
            Operand::Int(value) if ty == Ty::Pred => {
                let logic = if *value == 0 { super::isa::Logic::False } else { super::isa::Logic::True };
                let to = self.temporary(Bank::Pred);
                self.emit(Op::Logic(logic), vec![to], vec![]);
                Ok(to)
            }
            Operand::Int(_) if matches!(ty, Ty::F32 | Ty::F64) => self.problem("an integer where a float is needed"),
            Operand::Int(value) => Ok(self.value(ty, *value)),
            Operand::F32(bits) if ty.bits() == 32 => Ok(self.value(ty, u64::from(*bits))),
            Operand::F64(bits) if ty.bits() == 64 => Ok(self.value(ty, *bits)),
            Operand::F64(bits) if ty == Ty::F32 => {
                Ok(self.value(ty, u64::from((f64::from_bits(*bits) as f32).to_bits())))
            }
            Operand::Not(name) if ty == Ty::Pred => {
                let from = self.read(&Operand::Word(name), Ty::Pred)?;
                let to = self.temporary(Bank::Pred);
                self.emit(Op::Logic(super::isa::Logic::Not), vec![to], vec![from]);
                Ok(to)
            }
            _ => self.problem("an operand of the wrong kind"),
        }
    }

    /// An operand that is written. `_` is a register that nobody reads.
    fn write(&mut self, operand: &Operand<'a>, ty: Ty) -> Result<u32> {
        self.write_as(operand, ty, false)
    }

    fn write_as(&mut self, operand: &Operand<'a>, ty: Ty, wider: bool) -> Result<u32> {
        match operand {
            Operand::Word("_") => Ok(self.temporary(ty.bank())),
            Operand::Word(name) if self.lookup(name).is_some() => self.read_as(operand, ty, wider),
            _ => self.problem("a register was expected as the destination"),
        }
    }

    fn bits_of(&self, register: u32) -> u32 {
        self.registers[register as usize].bits
    }

    fn emit(&mut self, op: Op, defs: Vec<u32>, uses: Vec<u32>) {
        self.emit_at(op, defs, uses, 0, false);
    }

    fn emit_at(&mut self, op: Op, defs: Vec<u32>, uses: Vec<u32>, imm: i64, wide: bool) {
        self.code.push(Draft { op, guard: self.guard, defs, uses, imm, wide });
        self.places.push(self.place);
    }

    /// The base register, offset and width of `[…]`.
    fn address(&mut self, operand: &Operand<'a>) -> Result<(u32, i64, bool)> {
        let Operand::Address(base, offset, rest) = operand else { return self.problem("an address was expected") };
        if !rest.is_empty() {
            return self.problem("an address with coordinates is not supported here");
        }
        match base.as_ref() {
            Operand::Word(name) => {
                if let Some(register) = self.lookup(name) {
                    return match self.registers[register as usize] {
                        Register { bits: 32, .. } => Ok((register, *offset, false)),
                        Register { bits: 64, .. } => Ok((register, *offset, true)),
                        _ => self.problem(format!("{name} is too narrow for an address")),
                    };
                }
                match self.address_of(name) {
                    Some((_, address)) => Ok((self.value(Ty::U64, address), *offset, true)),
                    None => self.problem(format!("{name} is not declared")),
                }
            }
            Operand::Int(value) => Ok((self.value(Ty::U64, *value), *offset, true)),
            _ => self.problem("an address of the wrong kind"),
        }
    }

    fn instruction(&mut self, raw: &'a Raw<'a>) -> Result<()> {
        self.guard = None;
        if let Some((name, negated)) = raw.guard {
            self.guard = Some((self.read(&Operand::Word(name), Ty::Pred)?, negated));
        }
        let mut mods = Mods::new(raw.opcode);
        let known = alu::decode(self, &mut mods, &raw.operands)?
            || memory::decode(self, &mut mods, &raw.operands)?
            || sync::decode(self, &mut mods, &raw.operands)?;
        if !known {
            return self.problem(format!("the instruction {} is not supported", raw.opcode));
        }
        if !mods.rest.is_empty() {
            return self.problem(format!("the modifier .{} of {} is not supported", mods.rest.join("."), mods.name));
        }
        Ok(())
    }

    /// Just so many operands.
    fn operands<const N: usize>(&self, operands: &'a [Operand<'a>]) -> Result<&'a [Operand<'a>; N]> {
        match operands.try_into() {
            Ok(operands) => Ok(operands),
            Err(_) => self.problem(format!("{N} operands were expected, and {} are there", operands.len())),
        }
    }

    fn shared_granule(&mut self, bytes: u32) {
        self.granule = self.granule.min(bytes.max(1));
    }

    fn finish(
        mut self,
        file: &File<'_>,
        text: &[&str],
        parameters: Vec<(u32, u32)>,
        parameter_bytes: u32,
        static_shared: u32,
        local_bytes: u32,
    ) -> Result<Kernel> {
        self.guard = None;
        self.emit(Op::Exit, vec![], vec![]);
        let find = |labels: &HashMap<(u32, &'a str), u32>, scopes: &[u32], name: &'a str| {
            scopes.iter().rev().find_map(|scope| labels.get(&(*scope, name)).copied())
        };
        for (at, scopes, name) in std::mem::take(&mut self.open) {
            let line = self.places[at].line;
            let labels = if self.code[at].op == Op::BranchIndexed { &self.targets } else { &self.labels };
            match find(labels, &scopes, name) {
                Some(target) => self.code[at].imm = i64::from(target),
                None => return Err(Problem::new(line, format!("the label {name} is nowhere"))),
            }
        }
        let mut tables = Vec::new();
        for (scopes, names) in &self.tables {
            let targets: Option<Vec<u32>> = names.iter().map(|name| find(&self.labels, scopes, name)).collect();
            match targets {
                Some(targets) => tables.push(targets),
                None => return self.problem("a label of .branchtargets is nowhere"),
            }
        }
        let banks: Vec<Bank> = self.registers.iter().map(|register| register.bank).collect();
        let (slots, counts) = assign(&self.code, &tables, &banks, &self.pinned);
        if counts.iter().any(|count| *count >= usize::from(u16::MAX)) {
            return self.problem("the kernel needs too many registers at a time");
        }
        let (mut pool, mut words) = (Vec::new(), Vec::new());
        let mut code = Vec::with_capacity(self.code.len());
        for draft in &self.code {
            let at = pool.len() as u32;
            pool.extend(draft.defs.iter().chain(&draft.uses).map(|register| slots[*register as usize] as u16));
            words.extend(draft.defs.iter().chain(&draft.uses).map(|register| banks[*register as usize] == Bank::Word));
            code.push(Inst {
                op: draft.op,
                guard: draft.guard.map_or(u16::MAX, |(register, _)| slots[register as usize] as u16),
                negated: draft.guard.is_some_and(|(_, negated)| negated),
                wide: draft.wide,
                defs: draft.defs.len() as u8,
                uses: draft.uses.len() as u8,
                at,
                imm: draft.imm,
            });
        }
        let init = self
            .inits
            .iter()
            .map(|(register, init)| (banks[*register as usize], slots[*register as usize] as u16, *init))
            .collect();
        let lines = self
            .places
            .iter()
            .filter_map(|place| text.get(place.line as usize - 1).map(|text| (place.line, tidy(text))));
        Ok(Kernel {
            name: self.entry.name.to_owned(),
            pool,
            words,
            text: lines.collect(),
            sources: file.sources.iter().map(|(number, name)| (*number as u32, (*name).to_owned())).collect(),
            places: self.places,
            tables,
            slots: counts,
            init,
            parameters,
            parameter_bytes,
            static_shared,
            local_bytes,
            required_threads: self.entry.required_threads,
            most_threads: self.entry.most_threads,
            granule: self.granule,
            ordered: self.ordered,
            code,
        })
    }
}

/// An access of `count` elements of type `ty`.
fn access(space: Space, ty: Ty, count: u8, register_bits: u32, strong: bool) -> Access {
    Access {
        space,
        bytes: (ty.bits() / 8) as u8,
        count,
        signed: ty.is_signed(),
        register_bits: register_bits as u8,
        strong,
    }
}
