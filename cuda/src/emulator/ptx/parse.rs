//! Tokens to statements.

use super::lex::{Kind, Token, lex};
use super::{Entry, File, Operand, Problem, Raw, Statement, Variable, bytes_of};

type Result<T> = std::result::Result<T, Problem>;

/// Reads a file.
pub(crate) fn parse(text: &str) -> Result<File<'_>> {
    let tokens = lex(text)?;
    let mut parser = Parser { tokens: &tokens, at: 0 };
    let mut file = File::default();
    while let Some(token) = parser.peek() {
        let Kind::Word(word) = token.kind else {
            return Err(Problem::new(token.line, "a directive was expected"));
        };
        match word {
            ".version" => {
                parser.at += 2;
            }
            ".target" => {
                parser.at += 1;
                file.target = parser.word("an architecture")?;
                while parser.takes(b',') {
                    parser.word("a target option")?;
                }
            }
            ".address_size" => {
                parser.at += 1;
                if parser.int("an address size")? != 64 {
                    return Err(Problem::new(token.line, "only 64-bit addresses are supported"));
                }
            }
            ".file" => {
                parser.at += 1;
                let number = parser.int("a file number")?;
                if let Some(Token { kind: Kind::Str(name), .. }) = parser.peek() {
                    file.sources.push((number, name));
                    parser.at += 1;
                }
                while parser.takes(b',') {
                    parser.at += 1;
                }
            }
            ".section" => parser.section()?,
            _ => parser.declaration(&mut file)?,
        }
    }
    Ok(file)
}

struct Parser<'a, 't> {
    tokens: &'t [Token<'a>],
    at: usize,
}

impl<'a> Parser<'a, '_> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn kind(&self) -> Option<Kind<'a>> {
        self.peek().map(|token| token.kind)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    fn wrong<T>(&self, expected: &str) -> Result<T> {
        Err(Problem::new(self.line(), format!("{expected} was expected")))
    }

    fn takes(&mut self, punct: u8) -> bool {
        let is = self.kind() == Some(Kind::Punct(punct));
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, punct: u8) -> Result<()> {
        if self.takes(punct) { Ok(()) } else { self.wrong(&format!("{:?}", char::from(punct))) }
    }

    fn word(&mut self, what: &str) -> Result<&'a str> {
        let Some(Kind::Word(word)) = self.kind() else { return self.wrong(what) };
        self.at += 1;
        Ok(word)
    }

    fn int(&mut self, what: &str) -> Result<u64> {
        let Some(Kind::Int(value)) = self.kind() else { return self.wrong(what) };
        self.at += 1;
        Ok(value)
    }

    /// Debugging data, which nothing here reads.
    fn section(&mut self) -> Result<()> {
        while self.peek().is_some() && !self.takes(b'{') {
            self.at += 1;
        }
        while self.peek().is_some() && !self.takes(b'}') {
            self.at += 1;
        }
        Ok(())
    }

    fn declaration(&mut self, file: &mut File<'a>) -> Result<()> {
        let mut external = false;
        loop {
            match self.kind() {
                Some(Kind::Word(".visible" | ".weak" | ".common")) => self.at += 1,
                Some(Kind::Word(".extern")) => {
                    external = true;
                    self.at += 1;
                }
                Some(Kind::Word(".entry")) => {
                    self.at += 1;
                    let entry = self.entry()?;
                    file.entries.push(entry);
                    return Ok(());
                }
                Some(Kind::Word(".func")) => return self.skip_function(),
                Some(Kind::Word(".alias" | ".pragma")) => {
                    while self.peek().is_some() && !self.takes(b';') {
                        self.at += 1;
                    }
                    return Ok(());
                }
                Some(Kind::Word(".global" | ".const" | ".shared")) => {
                    let variables = self.variables(external)?;
                    file.variables.extend(variables);
                    return Ok(());
                }
                Some(Kind::Word(word)) => {
                    return Err(Problem::new(self.line(), format!("the directive {word} is not supported")));
                }
                _ => return self.wrong("a directive"),
            }
        }
    }

    /// Passes over a function; a kernel that calls it is refused at the call.
    fn skip_function(&mut self) -> Result<()> {
        let mut depth = 0_usize;
        while let Some(kind) = self.kind() {
            self.at += 1;
            match kind {
                Kind::Punct(b';') if depth == 0 => return Ok(()),
                Kind::Punct(b'{') => depth += 1,
                Kind::Punct(b'}') => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
        self.wrong("the end of a function")
    }

    fn entry(&mut self) -> Result<Entry<'a>> {
        let name = self.word("a kernel's name")?;
        let mut entry =
            Entry { name, parameters: Vec::new(), body: Vec::new(), required_threads: None, most_threads: None };
        if self.takes(b'(') {
            while !self.takes(b')') {
                if self.kind() != Some(Kind::Word(".param")) {
                    return self.wrong(".param");
                }
                let mut variable = self.variable_head()?;
                let name = self.word("a parameter's name")?;
                self.variable_tail(&mut variable, name, false)?;
                entry.parameters.push(variable);
                self.takes(b',');
            }
        }
        loop {
            match self.kind() {
                Some(Kind::Punct(b'{')) => break,
                Some(Kind::Word(directive)) => {
                    self.at += 1;
                    let mut numbers = Vec::new();
                    while let Some(Kind::Int(value)) = self.kind() {
                        self.at += 1;
                        numbers.push(value);
                        self.takes(b',');
                    }
                    match directive {
                        ".reqntid" => {
                            let size = |at: usize| numbers.get(at).copied().unwrap_or(1).try_into().unwrap_or(u32::MAX);
                            entry.required_threads = Some([size(0), size(1), size(2)]);
                        }
                        ".maxntid" => {
                            entry.most_threads = Some(numbers.iter().fold(1, |a, b| a.saturating_mul(*b)));
                        }
                        ".minnctapersm" | ".maxnreg" | ".maxnctapersm" | ".noreturn" | ".explicitcluster"
                        | ".blocksareclusters" => {}
                        ".pragma" => {
                            self.at += 1;
                            self.expect(b';')?;
                        }
                        _ => {
                            let what = format!("the directive {directive} is not supported");
                            return Err(Problem::new(self.line(), what));
                        }
                    }
                }
                _ => return self.wrong("the body of a kernel"),
            }
        }
        self.expect(b'{')?;
        let mut depth = 0_usize;
        loop {
            let Some(kind) = self.kind() else { return self.wrong("the end of a kernel") };
            match kind {
                Kind::Punct(b'{') => {
                    self.at += 1;
                    depth += 1;
                    entry.body.push(Statement::Open);
                }
                Kind::Punct(b'}') => {
                    self.at += 1;
                    if depth == 0 {
                        return Ok(entry);
                    }
                    depth -= 1;
                    entry.body.push(Statement::Close);
                }
                Kind::Punct(b';') => self.at += 1,
                _ => self.statement(&mut entry.body)?,
            }
        }
    }

    fn statement(&mut self, body: &mut Vec<Statement<'a>>) -> Result<()> {
        let line = self.line();
        match self.kind() {
            Some(Kind::Word(".reg")) => {
                self.at += 1;
                let kind = self.word("a type")?;
                loop {
                    let name = self.word("a register's name")?;
                    let mut count = None;
                    if self.takes(b'<') {
                        count = Some(self.int("a number of registers")?);
                        self.expect(b'>')?;
                    }
                    body.push(Statement::Register { kind, name, count });
                    if !self.takes(b',') {
                        break;
                    }
                }
                self.expect(b';')
            }
            Some(Kind::Word(".shared" | ".local" | ".global" | ".const" | ".param")) => {
                body.extend(self.variables(false)?.into_iter().map(Statement::Variable));
                Ok(())
            }
            Some(Kind::Word(".loc")) => {
                self.at += 1;
                let (file, line) = (self.int("a file number")?, self.int("a line number")?);
                self.int("a column number")?;
                // `, function_name label, inlined_at file line column`
                while self.takes(b',') {
                    self.word("an attribute of .loc")?;
                    while let Some(Kind::Word(word)) = self.kind() {
                        if !word.starts_with('$') {
                            break;
                        }
                        self.at += 1;
                        if self.takes(b'+') {
                            self.int("an offset")?;
                        }
                    }
                    while let Some(Kind::Int(_)) = self.kind() {
                        self.at += 1;
                    }
                }
                body.push(Statement::Location(file, line.try_into().unwrap_or(0)));
                Ok(())
            }
            Some(Kind::Word(".pragma")) => {
                self.at += 2;
                self.expect(b';')
            }
            Some(Kind::Word(word)) if word.starts_with('.') => {
                Err(Problem::new(line, format!("the directive {word} is not supported")))
            }
            Some(Kind::Word(word))
                if self.tokens.get(self.at + 1).map(|token| token.kind) == Some(Kind::Punct(b':')) =>
            {
                self.at += 2;
                if self.kind() == Some(Kind::Word(".branchtargets")) {
                    self.at += 1;
                    let mut targets = vec![self.word("a label")?];
                    while self.takes(b',') {
                        targets.push(self.word("a label")?);
                    }
                    self.expect(b';')?;
                    body.push(Statement::Targets(word, targets));
                } else {
                    body.push(Statement::Label(word));
                }
                Ok(())
            }
            Some(Kind::Word(_) | Kind::Punct(b'@')) => {
                let raw = self.instruction()?;
                body.push(Statement::Instruction(raw));
                Ok(())
            }
            _ => self.wrong("an instruction"),
        }
    }

    fn instruction(&mut self) -> Result<Raw<'a>> {
        let line = self.line();
        let mut guard = None;
        if self.takes(b'@') {
            let negated = self.takes(b'!');
            guard = Some((self.word("a predicate")?, negated));
        }
        let opcode = self.word("an opcode")?;
        let mut operands = Vec::new();
        if opcode == "call" || opcode.starts_with("call.") {
            // Refused when this kernel is decoded; others of the module may run.
            while self.peek().is_some() && !self.takes(b';') {
                self.at += 1;
            }
            return Ok(Raw { line, guard, opcode, operands });
        }
        while !self.takes(b';') {
            operands.push(self.operand()?);
            if self.takes(b',') {
                continue;
            }
            self.expect(b';')?;
            break;
        }
        Ok(Raw { line, guard, opcode, operands })
    }

    fn operand(&mut self) -> Result<Operand<'a>> {
        if self.takes(b'{') {
            let mut list = Vec::new();
            while !self.takes(b'}') {
                list.push(self.scalar()?);
                if !self.takes(b',') && self.kind() != Some(Kind::Punct(b'}')) {
                    return self.wrong("'}'");
                }
            }
            return Ok(Operand::List(list));
        }
        if self.takes(b'[') {
            let base = self.scalar()?;
            let (base, mut offset) = match base {
                Operand::Plus(name, offset) => (Operand::Word(name), offset),
                Operand::Word(_) | Operand::Int(_) => (base, 0),
                _ => return self.wrong("an address"),
            };
            if self.takes(b'+') {
                offset = self.signed()?;
            }
            let mut rest = Vec::new();
            while self.takes(b',') {
                rest.push(self.operand()?);
            }
            self.expect(b']')?;
            return Ok(Operand::Address(Box::new(base), offset, rest));
        }
        self.scalar()
    }

    fn signed(&mut self) -> Result<i64> {
        let negative = self.takes(b'-');
        let value = self.int("an offset")? as i64;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    fn scalar(&mut self) -> Result<Operand<'a>> {
        let negative = self.takes(b'-');
        let Some(kind) = self.kind() else { return self.wrong("an operand") };
        self.at += 1;
        Ok(match kind {
            Kind::Int(value) => Operand::Int(if negative { value.wrapping_neg() } else { value }),
            Kind::F32(bits) => Operand::F32(bits ^ (u32::from(negative) << 31)),
            Kind::F64(bits) => Operand::F64(bits ^ (u64::from(negative) << 63)),
            Kind::Punct(b'!') => Operand::Not(self.word("a predicate")?),
            Kind::Word(word) => {
                if self.takes(b'|') {
                    Operand::Pair(word, self.word("a register")?)
                } else if self.takes(b'+') || self.kind() == Some(Kind::Punct(b'-')) {
                    Operand::Plus(word, self.signed()?)
                } else {
                    Operand::Word(word)
                }
            }
            _ => {
                self.at -= 1;
                return self.wrong("an operand");
            }
        })
    }

    fn variables(&mut self, external: bool) -> Result<Vec<Variable<'a>>> {
        let head = self.variable_head()?;
        let mut all = Vec::new();
        loop {
            let mut variable = head.clone();
            let name = self.word("a variable's name")?;
            self.variable_tail(&mut variable, name, external)?;
            all.push(variable);
            if !self.takes(b',') {
                break;
            }
        }
        self.expect(b';')?;
        Ok(all)
    }

    /// `.shared .align 16 .b8`, without the name. `bytes` is that of one element.
    fn variable_head(&mut self) -> Result<Variable<'a>> {
        let line = self.line();
        let space = self.word("a state space")?;
        let (mut align, mut lanes) = (0, 1);
        loop {
            let word = self.word("a type")?;
            match word {
                ".align" => align = self.int("an alignment")?,
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                ".ptr" | ".attribute" | ".managed" => {}
                ".global" | ".shared" | ".const" | ".local" | ".param" => {}
                _ => {
                    let Some(bytes) = bytes_of(word) else {
                        return Err(Problem::new(line, format!("variables of type {word} are not supported")));
                    };
                    // `.param .u64 .ptr .global .align 16 name`
                    while let Some(Kind::Word(".ptr" | ".global" | ".shared" | ".const" | ".local" | ".align")) =
                        self.kind()
                    {
                        if self.word("an attribute")? == ".align" {
                            self.int("an alignment")?;
                        }
                    }
                    let bytes = bytes * lanes;
                    let align: u64 = if align == 0 { bytes } else { align };
                    if !align.is_power_of_two() || align > 1 << 20 {
                        return Err(Problem::new(line, "the alignment is no power of two"));
                    }
                    return Ok(Variable { name: "", space, align, bytes, dynamic: false, init: Vec::new(), line });
                }
            }
        }
    }

    fn variable_tail(&mut self, variable: &mut Variable<'a>, name: &'a str, external: bool) -> Result<()> {
        variable.name = name;
        let element = variable.bytes;
        while self.takes(b'[') {
            if self.takes(b']') {
                variable.dynamic = true;
                variable.bytes = 0;
                continue;
            }
            let count = self.int("a number of elements")?;
            self.expect(b']')?;
            let bytes = variable.bytes.checked_mul(count).filter(|bytes| *bytes <= 1 << 32);
            let Some(bytes) = bytes else { return self.wrong("a smaller array") };
            variable.bytes = bytes;
        }
        if variable.dynamic && !(external && variable.space == ".shared") {
            return self.wrong("the size of an array");
        }
        if self.takes(b'=') {
            let mut depth = 0;
            loop {
                match self.kind() {
                    Some(Kind::Punct(b'{')) => depth += 1,
                    Some(Kind::Punct(b'}')) => depth -= 1,
                    Some(Kind::Punct(b',')) => {}
                    Some(_) => {
                        let bits = match self.scalar()? {
                            Operand::Int(value) => value,
                            Operand::F32(bits) if element == 4 => u64::from(bits),
                            Operand::F64(bits) if element == 8 => bits,
                            _ => return self.wrong("a number (addresses in initialisers are not supported)"),
                        };
                        variable.init.extend_from_slice(&bits.to_le_bytes()[..element.min(8) as usize]);
                        self.at -= 1;
                    }
                    None => return self.wrong("the end of an initialiser"),
                }
                self.at += 1;
                if depth == 0 {
                    break;
                }
            }
            if variable.init.len() as u64 > variable.bytes {
                return self.wrong("fewer initial values");
            }
        }
        Ok(())
    }
}
