//! Keys and values of sequences that are decoded, and attention over them.
//!
//! [`KeyValues`] is the memory of one sequence, [`CachedPass`] takes new tokens of several sequences through the layers.
//! On a device that is a launch a layer to put keys and values in their places, with the rotation of keys and queries in
//! it, and a launch for attention, however many sequences there are; what the host says of the sequences it says once.

use std::ops::Range;

use super::{Attention, BLOCK, Lying, OP, Sizes, check_table, forward_lying, gather};
use crate::device::ops::attention::LONG;
use crate::device::{self, ops::attention::Step};
use crate::ops::rope::{self, Turn};
use crate::parallel::Filled;
use crate::{DType, Device, Error, Real, Result, Tensor, dispatch, dispatch_real, parallel, stream};

/// Elements that a device copies by one launch.
const MOST_AT_ONCE: usize = 1 << 31;

/// Keys that a cache has room for once it has had to grow to `need`.
fn grown(need: usize) -> usize {
    need.next_power_of_two().max(64)
}

/// Keys that a cache on the processor is given room for ahead, where as many may come.
const AHEAD: usize = 256;

/// The same on the processor, of a cache that will have `expected` keys at most, if that is known. Fresh pages are cleared and filled:
/// that is to happen once, and not for what never comes.
fn grown_to(need: usize, expected: Option<usize>) -> usize {
    match expected {
        Some(expected) if need <= expected => grown(need).max(need + AHEAD).min(expected).next_multiple_of(64),
        _ => grown(need),
    }
}

/// Keys and values of one sequence in every layer, in one piece of memory: (layers, 2, capacity, kv_heads, size) on a device;
/// on the processor (layers, 2, kv_heads, capacity, size), so that what a head reads is one stream.
///
/// A clone shares the memory until one of the two is written to.
#[derive(Debug, Clone)]
pub struct KeyValues {
    /// (2 layers, capacity, kv_heads · width), or (2 layers · kv_heads, capacity, size); none while there is no room.
    data: Option<Tensor>,
    layers: usize,
    kv_heads: usize,
    /// Of a head, and what it takes in memory: on a device, what the kernels of attention take.
    size: usize,
    width: usize,
    dtype: DType,
    device: Device,
    expected: Option<usize>,
}

impl KeyValues {
    /// Without room for any key yet.
    pub fn new(layers: usize, kv_heads: usize, size: usize, dtype: DType, device: Device) -> KeyValues {
        let width = if device.is_cpu() { size } else { device::ops::attention::width(size, dtype) };
        KeyValues { data: None, layers, kv_heads, size, width, dtype, device, expected: None }
    }

    /// No more than so many keys are to come: room is taken for no more. A cache that gets more grows all the same.
    pub fn expect(&mut self, keys: usize) {
        self.expected = Some(keys);
    }

    /// And so many besides, if it is known how many.
    pub fn expect_more(&mut self, keys: usize) {
        self.expected = self.expected.map(|expected| expected.saturating_add(keys));
    }

    /// Keys that there is room for.
    pub fn capacity(&self) -> usize {
        self.data.as_ref().map_or(0, |data| data.dims()[1])
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.data.as_ref().map_or(0, |data| data.numel() * self.dtype.size())
    }

    /// What a recorded step that has `need` keys depends on: one of a long cache is not to be replayed over a longer one, where
    /// the device does more. 0 for all that are not long.
    pub fn recorded_for(&self, need: usize) -> usize {
        let capacity = if self.capacity() >= need { self.capacity() } else { grown(need) };
        if capacity < LONG { 0 } else { capacity }
    }

    /// Room for `need` keys in memory that nobody shares, with the first `held` keys as they are. Grows by doubling, or as far as
    /// is expected.
    fn make_room(&mut self, held: usize, need: usize) -> Result<()> {
        let grown = match &mut self.data {
            Some(data) if data.dims()[1] >= need => {
                if data.is_shared() {
                    *data = data.copied()?;
                }
                return Ok(());
            }
            _ => {
                let (apart, together) = if self.device.is_cpu() { (self.kv_heads, 1) } else { (1, self.kv_heads) };
                let room = if self.device.is_cpu() { grown_to(need, self.expected) } else { grown(need) };
                let shape = [2 * self.layers * apart, room, together * self.width];
                Tensor::zeros_on(self.device, shape, self.dtype)?
            }
        };
        let Some(old) = self.data.replace(grown) else { return Ok(()) };
        let data = self.data.as_mut().expect("just put there");
        if self.device.is_cpu() {
            // On all threads, since the pages are fresh: to clear them takes longer than to copy.
            let (from, to) = (old.dims()[1] * self.size, data.dims()[1] * self.size);
            let n = held * self.size;
            return dispatch!(self.dtype, T => {
                let all = old.as_slice::<T>()?;
                parallel::chunks(data.as_slice_mut::<T>()?, to, |start, parts| {
                    for (i, part) in parts.chunks_exact_mut(to).enumerate() {
                        part[..n].copy_from_slice(&all[(start / to + i) * from..][..n]);
                    }
                });
                Ok(())
            });
        }
        if old.numel() < MOST_AT_ONCE {
            return data.write(1, 0, &old.narrow(1, 0, held)?);
        }
        // Part by part, as rows of one table.
        let [parts, capacity, width] = [0, 1, 2].map(|axis| data.dims()[axis]);
        let mut rows = data.reshape([parts * capacity, width])?;
        self.data = None;
        for part in 0..parts {
            let from = old.narrow(0, part, 1)?.narrow(1, 0, held)?.reshape([held, width])?;
            rows.write(0, part * capacity, &from)?;
        }
        self.data = Some(rows.reshape([parts, capacity, width])?);
        Ok(())
    }

    fn kind(&self) -> Kind {
        Kind { layers: self.layers, kv_heads: self.kv_heads, size: self.size, width: self.width, dtype: self.dtype }
    }

    fn data(&self) -> &Tensor {
        self.data.as_ref().expect("a pass makes room")
    }

    /// Where the keys (`part` 0) or values (1) of a layer and head begin. On the processor.
    fn at(&self, layer: usize, part: usize, head: usize) -> usize {
        ((2 * layer + part) * self.kv_heads + head) * self.capacity() * self.size
    }

    /// A layer's first `keys` keys with their values, which `elements` are all of. On the processor.
    fn lying<R: Real>(&self, elements: Filled<R>, layer: usize, keys: usize) -> Lying<R> {
        let (tensor, at) = (self.data().clone(), [self.at(layer, 0, 0), self.at(layer, 1, 0)]);
        Lying { tensor, elements, at, strides: [self.size, self.capacity() * self.size], keys }
    }
}

/// New tokens of a sequence whose keys one task puts in their places: fresh pages are cleared as they are written to.
const TOGETHER: usize = 16;

/// What caches of one batch have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    layers: usize,
    kv_heads: usize,
    size: usize,
    width: usize,
    dtype: DType,
}

impl Kind {
    fn in_memory(self) -> [usize; 3] {
        [self.layers, self.kv_heads, self.width]
    }
}

/// The kind of all of them; `None` without any.
fn common<'c>(caches: impl IntoIterator<Item = &'c KeyValues>) -> Result<Option<Kind>> {
    let mut kinds = caches.into_iter().map(KeyValues::kind);
    let Some(first) = kinds.next() else { return Ok(None) };
    match kinds.find(|kind| *kind != first) {
        None => Ok(Some(first)),
        Some(other) => {
            let dims = |c: Kind| vec![c.layers, c.kv_heads, c.size];
            let (lhs, rhs) = (dims(other), dims(first));
            Err(Error::ShapeMismatch { op: OP, what: "caches of one batch", lhs, rhs })
        }
    }
}

/// What a device was told of the caches of a pass.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one a layer, on the stack")]
enum Told<'a> {
    Once(Step),
    Standing(&'a Step),
}

impl Told<'_> {
    fn step(&self) -> &Step {
        match self {
            Told::Once(step) => step,
            Told::Standing(step) => step,
        }
    }
}

/// New tokens of several sequences on their way through the layers.
#[derive(Debug)]
pub struct CachedPass<'a> {
    caches: Vec<&'a mut KeyValues>,
    held: Vec<usize>,
    cu_q: Vec<u32>,
    cu_k: Vec<u32>,
    kind: Option<Kind>,
    step: Option<Told<'a>>,
    /// On the processor all elements of each cache. Work that a layer leaves to a [`stream`] shares the cache's memory: it is
    /// written to through these while the pass holds the caches.
    elements: Vec<Filled<u8>>,
}

impl<'a> CachedPass<'a> {
    /// Sequence s holds `held[s]` keys in `caches[s]` and gets keys `cu_k[s]..cu_k[s + 1]` of a stream of new ones, which
    /// queries `cu_q[s]..cu_q[s + 1]` see with those before.
    ///
    /// # Errors
    /// Tables that do not agree; caches of several kinds; no room.
    pub fn new(
        mut caches: Vec<&'a mut KeyValues>,
        held: Vec<usize>,
        cu_q: &[u32],
        cu_k: &[u32],
    ) -> Result<CachedPass<'a>> {
        for (what, lhs) in [("cu_q", cu_q.len()), ("cu_k", cu_k.len()), ("numbers of keys", held.len() + 1)] {
            if lhs != caches.len() + 1 {
                return Err(Error::ShapeMismatch { op: OP, what, lhs: vec![lhs], rhs: vec![caches.len() + 1] });
            }
        }
        for (what, cu) in [("cu_q", cu_q), ("cu_k", cu_k)] {
            check_table(what, cu, cu[cu.len() - 1] as usize)?;
        }
        let keys: Vec<usize> = held.iter().zip(cu_k.windows(2)).map(|(h, cu)| h + (cu[1] - cu[0]) as usize).collect();
        for (s, cache) in caches.iter_mut().enumerate() {
            cache.make_room(held[s], keys[s].max(1))?;
        }
        let kind = common(caches.iter().map(|cache| &**cache))?;
        let step = match (device::of(OP, caches.iter().map(|cache| cache.data()))?, kind) {
            (Some(on), Some(kind)) => {
                let data: Vec<&Tensor> = caches.iter().map(|cache| cache.data()).collect();
                Some(Told::Once(Step::new(on, &data, kind.in_memory(), [cu_q, cu_k], &keys)?))
            }
            _ => None,
        };
        let mut elements = Vec::new();
        if let (None, Some(kind)) = (&step, kind) {
            for cache in &mut caches {
                let data = cache.data.as_mut().expect("a pass makes room");
                elements.push(dispatch!(kind.dtype, T => Filled::<T>::of(data)?.bytes()));
            }
        }
        Ok(CachedPass { caches, held, cu_q: cu_q.to_vec(), cu_k: cu_k.to_vec(), kind, step, elements })
    }

    /// Turns q, if it is given, and returns it; puts k, turned alike, and v in their places; `tables`: cos and sin as
    /// [`rope::forward`](crate::ops::rope::forward) takes them, without which nothing is turned. k, v: (new keys, kv_heads, size).
    ///
    /// # Errors
    /// Shapes or dtypes that do not agree.
    pub fn append(
        &mut self,
        layer: usize,
        q: Option<&Tensor>,
        [k, v]: [&Tensor; 2],
        tables: Option<[&Tensor; 2]>,
    ) -> Result<Option<Tensor>> {
        let Some(first) = self.kind else { return Ok(q.cloned()) };
        self.check_new([k, v], first)?;
        if let Some(told) = &self.step {
            return told.step().append(layer, q, [k, v], tables);
        }
        dispatch_real!(OP, first.dtype, R => self.put::<R>(layer, q, [k, v], tables, first))
    }

    /// The same on the processor: a task takes some tokens of a sequence.
    fn put<R: Real>(
        &self,
        layer: usize,
        q: Option<&Tensor>,
        kv: [&Tensor; 2],
        tables: Option<[&Tensor; 2]>,
        kind: Kind,
    ) -> Result<Option<Tensor>> {
        let placing = self.placing::<R>(layer, q, kv, tables, kind)?;
        let mut tasks = Vec::new();
        for (s, cu) in self.cu_k.windows(2).enumerate() {
            let tokens = cu[0] as usize..cu[1] as usize;
            tasks.extend(tokens.clone().step_by(TOGETHER).map(|t| (s, t..tokens.end.min(t + TOGETHER))));
        }
        let mut outs: Vec<Tensor> = self.caches.iter().map(|cache| cache.data().clone()).collect();
        // Without tables queries stay as they are.
        let (mut turned, mut elements) = (q.cloned(), None);
        if let Some(q) = q.filter(|_| tables.is_some()) {
            let mut out = Tensor::scratch(q.shape(), R::DTYPE)?;
            elements = Some(Filled::<R>::of(&mut out)?);
            outs.push(out.clone());
            turned = Some(out);
        }
        stream::leave(tasks.len(), outs, move |i| {
            let (s, tokens) = &tasks[i];
            for (token, g) in tokens.clone().flat_map(|token| (0..kind.kv_heads).map(move |g| (token, g))) {
                // SAFETY: a task owns its tokens; the caches and `elements` are of `outs`.
                unsafe {
                    placing.put(*s, token, g);
                    if let Some(elements) = &elements {
                        let width = placing.query_width();
                        placing.turn_query(token, g, elements.part((token * kind.kv_heads + g) * width, width));
                    }
                }
            }
        });
        Ok(turned)
    }

    /// Where new keys and values of a layer go, and what turns them and queries.
    fn placing<R: Real>(
        &self,
        layer: usize,
        q: Option<&Tensor>,
        [k, v]: [&Tensor; 2],
        tables: Option<[&Tensor; 2]>,
        kind: Kind,
    ) -> Result<Placing<R>> {
        let turn = tables.map(|tables| Turn::new(k, tables)).transpose()?;
        if let (Some(q), Some([cos, sin])) = (q, tables) {
            // Queries are one for each new key, and of heads as large.
            rope::check(q, cos, sin)?;
            let sizes = Sizes::new(q.dims()[1], kind.kv_heads, q.dims()[2])?;
            if q.dtype() != R::DTYPE {
                return Err(Error::DTypeMismatch { op: OP, expected: R::DTYPE, got: q.dtype() });
            }
            if sizes.size != kind.size {
                let (lhs, rhs) = (q.dims().to_vec(), k.dims().to_vec());
                return Err(Error::ShapeMismatch { op: OP, what: "head sizes of q and k", lhs, rhs });
            }
        }
        let mut places = Vec::with_capacity(self.caches.len());
        for (s, (cache, elements)) in self.caches.iter().zip(&self.elements).enumerate() {
            let at = [0, 1].map(|part| cache.at(layer, part, 0) + self.held[s] * kind.size);
            let apart = cache.capacity() * kind.size;
            places.push(Place { elements: elements.elements(), at, apart, first: self.cu_k[s] as usize });
        }
        let (k, v, q) = (k.contiguous()?, v.contiguous()?, q.map(Tensor::contiguous).transpose()?);
        Ok(Placing { turn, k, v, q, places, heads: kind.kv_heads, size: kind.size })
    }

    /// [`CachedPass::append`] and [`CachedPass::attend`]: of few tokens on the processor in one piece of work, where a task puts
    /// the keys and values of a head in their places before it reads them.
    ///
    /// # Errors
    /// As those.
    pub fn append_and_attend(
        &mut self,
        layer: usize,
        q: &Tensor,
        kv: [&Tensor; 2],
        tables: Option<[&Tensor; 2]>,
        options: &Attention,
    ) -> Result<Tensor> {
        let few = self.cu_q == self.cu_k && self.cu_k.windows(2).all(|cu| (cu[1] - cu[0]) as usize <= BLOCK);
        let Some(kind) = self.kind.filter(|_| few && self.step.is_none()) else {
            let q = self.append(layer, Some(q), kv, tables)?;
            return self.attend(layer, q.as_ref().expect("queries were given"), options);
        };
        self.check_new(kv, kind)?;
        let sizes = self.check_queries(q, options)?;
        dispatch_real!(OP, kind.dtype, R => {
            let placing = self.placing::<R>(layer, Some(q), kv, tables, kind)?;
            let queries = move |s: usize, tokens: Range<usize>, g: usize, to: &mut Vec<R>| {
                to.resize(tokens.len() * placing.query_width(), R::ZERO);
                for (token, to) in tokens.zip(to.chunks_exact_mut(placing.query_width())) {
                    // SAFETY: a task owns a head of its sequence, all of whose tokens these are; the caches are written to
                    // by this piece of work.
                    unsafe { placing.put(s, token, g) }
                    placing.turn_query(token, g, to);
                }
            };
            forward_lying(self.lying(layer), sizes, &self.cu_q, options, queries)
        })
    }

    /// Checks new keys and values.
    fn check_new(&self, [k, v]: [&Tensor; 2], kind: Kind) -> Result<()> {
        let new = self.cu_k[self.cu_k.len() - 1] as usize;
        for (what, x) in [("new keys", k), ("new values", v)] {
            let rhs = [new, kind.kv_heads, kind.size];
            if x.dims() != rhs {
                return Err(Error::ShapeMismatch { op: OP, what, lhs: x.dims().to_vec(), rhs: rhs.to_vec() });
            }
            if x.dtype() != kind.dtype {
                return Err(Error::DTypeMismatch { op: OP, expected: kind.dtype, got: x.dtype() });
            }
        }
        Ok(())
    }

    /// Checks queries over caches on the processor.
    fn check_queries(&self, q: &Tensor, options: &Attention) -> Result<Sizes> {
        // Without a cache there is no query either, of any size.
        let none = [1, q.dims().last().copied().unwrap_or(1)];
        let heads = self.kind.map_or(none, |kind| [kind.kv_heads, kind.size]);
        super::over_caches(q, heads, self.kind.map_or(q.dtype(), |kind| kind.dtype), &self.cu_q, options)
    }

    /// Keys that sequence `s` has with its new ones.
    fn keys(&self, s: usize) -> usize {
        self.held[s] + (self.cu_k[s + 1] - self.cu_k[s]) as usize
    }

    /// A layer's keys and values of all sequences, the new ones included. On the processor.
    fn lying<R: Real>(&self, layer: usize) -> Vec<Lying<R>> {
        let caches = self.caches.iter().zip(&self.elements).enumerate();
        caches.map(|(s, (cache, elements))| cache.lying(elements.elements(), layer, self.keys(s))).collect()
    }

    /// Attention of q: (queries, heads, size) over the layer's keys, the new ones included.
    ///
    /// # Errors
    /// As [`forward`](super::forward).
    pub fn attend(&self, layer: usize, q: &Tensor, options: &Attention) -> Result<Tensor> {
        if let (Some(told), Some(first)) = (&self.step, self.kind) {
            let sizes = super::over_caches(q, [first.kv_heads, first.size], first.dtype, &self.cu_q, options)?;
            for (s, q) in self.cu_q.windows(2).enumerate() {
                super::fewer_queries((q[1] - q[0]) as usize, self.keys(s), options)?;
            }
            return told.step().attend(layer, q, sizes, options);
        }
        let sizes = self.check_queries(q, options)?;
        dispatch_real!(OP, q.dtype(), R => {
            let q = q.contiguous()?;
            let queries = move |_, tokens: Range<usize>, g: usize, to: &mut Vec<R>| {
                gather(to, q.checked(), tokens, sizes.heads, g * sizes.group, sizes.group, sizes.size);
            };
            forward_lying(self.lying(layer), sizes, &self.cu_q, options, queries)
        })
    }
}

/// New keys and values of a layer on their way to their places, and queries that are turned as they are.
struct Placing<R> {
    turn: Option<Turn>,
    /// (new keys, heads, size).
    k: Tensor,
    v: Tensor,
    /// (new keys, heads of queries, size).
    q: Option<Tensor>,
    places: Vec<Place<R>>,
    heads: usize,
    size: usize,
}

/// Where a sequence's new keys and values go.
struct Place<R> {
    elements: Filled<R>,
    /// Of the first head the first new key, and value.
    at: [usize; 2],
    /// From a head to the next.
    apart: usize,
    /// Its first new token.
    first: usize,
}

impl<R: Real> Placing<R> {
    /// Puts a token's key and value of head `g` in their places in the cache of sequence `s`.
    ///
    /// # Safety
    /// The cache must live, and nobody else be at these places.
    unsafe fn put(&self, s: usize, token: usize, g: usize) {
        let Place { elements, at, apart, first } = &self.places[s];
        let from = (token * self.heads + g) * self.size;
        let [k, v] = [&self.k, &self.v].map(|x| &x.checked::<R>()[from..from + self.size]);
        // SAFETY: the caller's promise; keys and values lie apart.
        let [to_k, to_v] =
            at.map(|at| unsafe { elements.part(at + g * apart + (token - first) * self.size, self.size) });
        self.turned(token, k, to_k);
        to_v.copy_from_slice(v);
    }

    /// Elements of the queries of a token that share a key/value head.
    fn query_width(&self) -> usize {
        self.q.as_ref().map_or(0, |q| q.dims()[1] / self.heads * self.size)
    }

    /// A token's queries that share head `g`, turned.
    fn turn_query(&self, token: usize, g: usize, to: &mut [R]) {
        if let Some(q) = &self.q {
            let from = (token * self.heads + g) * to.len();
            self.turned(token, &q.checked::<R>()[from..from + to.len()], to);
        }
    }

    fn turned(&self, token: usize, x: &[R], to: &mut [R]) {
        match &self.turn {
            Some(turn) => turn.token(token, x, to),
            None => to.copy_from_slice(x),
        }
    }
}

/// What a recorded step of decoding knows of caches: each of so many sequences gets a new key, which its one new query sees
/// with those before. Which caches they are, and how much they hold, is told before each step.
#[derive(Debug)]
pub struct Standing {
    step: Step,
    kind: Kind,
    rows: usize,
    held: Vec<usize>,
    /// Where rows that no sequence has taken put their keys: row r becomes key r.
    spare: KeyValues,
}

impl Standing {
    /// For up to `rows` sequences with caches like this one.
    ///
    /// # Errors
    /// [`Error::OnlyOnDevice`]; no room.
    pub fn new(like: &KeyValues, rows: usize) -> Result<Standing> {
        let (kind, rows) = (like.kind(), rows.max(1));
        let mut spare = KeyValues { data: None, ..like.clone() };
        spare.make_room(0, rows)?;
        let Some(on) = device::of(OP, [spare.data()])? else { return Err(Error::OnlyOnDevice { op: OP }) };
        let step = Step::standing(on, &vec![spare.data(); rows], kind.in_memory())?;
        Ok(Standing { step, kind, rows, held: (0..rows).collect(), spare })
    }

    /// The caches of the next step, and how many keys each holds before it. Rows beyond them are taken by nobody: they
    /// compute with a cache of their own, where the first of them is at position 0, the second at 1 and so on.
    ///
    /// # Errors
    /// Caches of another kind, or more than there are rows; no room.
    pub fn tell(&mut self, mut caches: Vec<&mut KeyValues>, held: &[usize]) -> Result<()> {
        if caches.len() != held.len() || caches.len() > self.rows {
            let (lhs, rhs) = (vec![caches.len()], vec![held.len(), self.rows]);
            return Err(Error::ShapeMismatch { op: OP, what: "caches against numbers of keys and rows", lhs, rhs });
        }
        common(std::iter::once(&self.spare).chain(caches.iter().map(|cache| &**cache)))?;
        for (cache, held) in caches.iter_mut().zip(held) {
            cache.make_room(*held, held + 1)?;
        }
        let free = self.rows - caches.len();
        let data: Vec<&Tensor> =
            caches.iter().map(|cache| cache.data()).chain((0..free).map(|_| self.spare.data())).collect();
        self.held = held.iter().copied().chain(0..free).collect();
        let keys: Vec<u32> = self.held.iter().map(|held| u32::try_from(held + 1).unwrap_or(u32::MAX)).collect();
        self.step.tell(&data, &keys)
    }

    /// Keys that each row's cache holds before the step, and so the position of its token.
    pub fn held(&self) -> &[usize] {
        &self.held
    }

    /// The step on its way through the layers.
    pub fn pass(&self) -> CachedPass<'_> {
        let cu: Vec<u32> = (0..=self.rows as u32).collect();
        let (held, step) = (self.held.clone(), Some(Told::Standing(&self.step)));
        let kind = Some(self.kind);
        CachedPass { caches: vec![], held, cu_q: cu.clone(), cu_k: cu, kind, step, elements: vec![] }
    }
}
