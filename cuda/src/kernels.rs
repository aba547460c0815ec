//! The kernels: a file of CUDA C++ for each op, in `cuda/kernels`, compiled for the device at hand.
//!
//! A file is specialised by macro definitions (the types of its arguments, the function it computes). [`ALL`] lists
//! the files with the variants that are compiled ahead by `planish kernels compile` and in tests; any other
//! combination is compiled when it is first asked for.

use crate::cache::Defines;
use crate::nvrtc::Arch;

/// A macro definition: (name, value).
pub type Define = (&'static str, &'static str);

/// A file of kernels.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its stem: `rms_norm` for `rms_norm.cu`.
    pub name: &'static str,
    /// CUDA C++.
    pub text: &'static str,
    /// Definitions that are compiled ahead.
    pub variants: &'static [&'static [Define]],
    /// Kernels that may use memory in place of registers, which in all others is a failed test. Naive versions only.
    pub may_spill: &'static [&'static str],
    /// The architecture whose instructions it is written in; `None` for kernels of all.
    pub only: Option<Arch>,
}

impl Kernel {
    /// Compute capability of a device on which its op runs this file.
    pub fn capability(&self) -> (u32, u32) {
        self.only.map_or((8, 0), |arch| arch.capability)
    }

    /// Whether it compiles for an architecture.
    pub fn is_for(&self, arch: Arch) -> bool {
        self.only.is_none_or(|only| only == arch)
    }

    /// Whether these definitions are compiled ahead.
    pub fn lists(&self, defines: &Defines) -> bool {
        let same = |a: &Define, b: &(String, String)| a.0 == b.0 && a.1 == b.1;
        let is = |variant: &&[Define]| {
            variant.len() == defines.len() && variant.iter().zip(defines).all(|(a, b)| same(a, b))
        };
        self.variants.iter().any(is)
    }

    /// The first sentence of the file's head: what it computes.
    pub fn about(&self) -> String {
        let head: Vec<&str> = self.text.lines().map_while(|line| line.strip_prefix("//")).map(str::trim).collect();
        let paragraph: Vec<&str> = head.iter().copied().take_while(|line| !line.is_empty()).collect();
        paragraph.join(" ")
    }
}

/// What kernels include, by name.
pub const HEADERS: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../kernels/common.cuh")),
    ("columns.cuh", include_str!("../kernels/columns.cuh")),
    ("pack.cuh", include_str!("../kernels/pack.cuh")),
    ("norm.cuh", include_str!("../kernels/norm.cuh")),
    ("rows.cuh", include_str!("../kernels/rows.cuh")),
    ("act.cuh", include_str!("../kernels/act.cuh")),
    ("mma.cuh", include_str!("../kernels/mma.cuh")),
    ("cache.cuh", include_str!("../kernels/cache.cuh")),
    ("attention.cuh", include_str!("../kernels/attention.cuh")),
    ("running.cuh", include_str!("../kernels/running.cuh")),
    ("product.cuh", include_str!("../kernels/product.cuh")),
    ("hopper.cuh", include_str!("../kernels/hopper.cuh")),
    ("ring.cuh", include_str!("../kernels/ring.cuh")),
    ("nf4.cuh", include_str!("../kernels/nf4.cuh")),
    ("tile_hopper.cuh", include_str!("../kernels/tile_hopper.cuh")),
    ("backward_hopper.cuh", include_str!("../kernels/backward_hopper.cuh")),
    ("keys.cuh", include_str!("../kernels/keys.cuh")),
    ("philox.cuh", include_str!("../kernels/philox.cuh")),
];

const T: &[&[Define]] = &[&[("T", "f32")], &[("T", "bf16")], &[("T", "f16")]];
const TW: &[&[Define]] = &[
    &[("T", "f32"), ("W", "f32")],
    &[("T", "f32"), ("W", "bf16")],
    &[("T", "bf16"), ("W", "bf16")],
    &[("T", "f16"), ("W", "f16")],
];

/// The definitions of a product as the launcher writes them: types of operands and result, which operands are transposed
/// (A_T, B_T), whether it adds; and a tile, those of many rows and of few by name.
macro_rules! matmul {
    ($t:ident -> $o:ident, $a_t:literal, $b_t:literal, $add:literal; many) => {
        matmul!($t -> $o, $a_t, $b_t, $add;
            ("BM", "128"), ("BN", "128"), ("BK", "32"), ("WM", "2"), ("WN", "4"), ("STAGES", "4"))
    };
    ($t:ident -> $o:ident, $a_t:literal, $b_t:literal, $add:literal; few) => {
        matmul!($t -> $o, $a_t, $b_t, $add;
            ("BM", "16"), ("BN", "64"), ("BK", "64"), ("WM", "1"), ("WN", "4"), ("STAGES", "6"))
    };
    ($t:ident -> $o:ident, $a_t:literal, $b_t:literal, $add:literal; wide, $cluster:literal) => {
        matmul!($t -> $o, $a_t, $b_t, $add; ("GROUPS", "2"), ("BN", "256"), ("STAGES", "4"), ("CLUSTER", stringify!($cluster)))
    };
    ($t:ident -> $o:ident, $a_t:literal, $b_t:literal, $add:literal; two_groups, $cluster:literal) => {
        matmul!($t -> $o, $a_t, $b_t, $add; ("GROUPS", "2"), ("BN", "128"), ("STAGES", "6"), ("CLUSTER", stringify!($cluster)))
    };
    ($t:ident -> $o:ident, $a_t:literal, $b_t:literal, $add:literal; one_group) => {
        matmul!($t -> $o, $a_t, $b_t, $add; ("GROUPS", "1"), ("BN", "64"), ("STAGES", "6"), ("CLUSTER", "1"))
    };
    ($t:ident -> $o:ident, $a_t:literal, $b_t:literal, $add:literal; tiny) => {
        matmul!($t -> $o, $a_t, $b_t, $add; ("GROUPS", "1"), ("BN", "32"), ("STAGES", "8"), ("CLUSTER", "1"))
    };
    ($t:ident -> $o:ident, $a_t:literal, $b_t:literal, $add:literal; $($tile:expr),+) => {
        &[
            ("T", stringify!($t)),
            ("O", stringify!($o)),
            ("A_T", stringify!($a_t)),
            ("B_T", stringify!($b_t)),
            ("ADD", stringify!($add)),
            $($tile),+
        ]
    };
}

/// A type of GGUF's blocks, as the launcher defines it.
macro_rules! ggml {
    ($t:ident, $kind:ident, $block:literal, $bytes:literal) => {
        &[("T", stringify!($t)), ("KIND", stringify!($kind)), ("BLOCK", $block), ("BYTES", $bytes)]
    };
}

/// Layouts of forward, input gradient, weight gradient, in the tiles that they take.
const MATMULS: &[&[Define]] = &[
    matmul!(bf16 -> bf16, 0, 0, 0; many),
    matmul!(bf16 -> bf16, 0, 0, 0; few),
    matmul!(bf16 -> bf16, 0, 1, 0; many),
    matmul!(bf16 -> bf16, 0, 1, 0; few),
    matmul!(bf16 -> f32, 1, 1, 1; many),
    matmul!(bf16 -> f32, 0, 0, 0; many),
    matmul!(bf16 -> f32, 0, 0, 0; few),
    matmul!(bf16 -> f32, 0, 1, 0; many),
    matmul!(bf16 -> f32, 0, 1, 0; few),
    matmul!(bf16 -> f32, 0, 1, 1; many),
    matmul!(f16 -> f16, 0, 0, 0; many),
    // Ranks that are no multiple of 8.
    matmul!(bf16 -> bf16, 0, 1, 0; ("PM", "16")),
    matmul!(bf16 -> f32, 1, 1, 1; ("PM", "64")),
    matmul!(bf16 -> f32, 1, 1, 1; ("PM", "16")),
    matmul!(f32 -> f32, 0, 0, 0; ("PM", "64")),
    matmul!(f32 -> f32, 0, 0, 0; ("PM", "16")),
    matmul!(f32 -> f32, 0, 1, 0; ("PM", "64")),
    matmul!(f32 -> f32, 0, 1, 0; ("PM", "16")),
    matmul!(f32 -> f32, 1, 1, 1; ("PM", "64")),
    matmul!(f32 -> f32, 0, 0, 0; ("TB", "bf16"), ("PM", "64")),
    matmul!(f32 -> f32, 0, 0, 0; ("TB", "bf16"), ("PM", "16")),
    matmul!(f32 -> f32, 0, 1, 0; ("TB", "bf16"), ("PM", "64")),
    matmul!(f32 -> f32, 0, 1, 0; ("TB", "bf16"), ("PM", "16")),
];

/// Layouts of forward, input gradient and weight gradient, in the tiles that they take.
const HOPPER_MATMULS: &[&[Define]] = &[
    matmul!(bf16 -> bf16, 0, 0, 0; wide, 2),
    matmul!(bf16 -> bf16, 0, 0, 0; wide, 1),
    matmul!(bf16 -> bf16, 0, 0, 0; two_groups, 2),
    matmul!(bf16 -> bf16, 0, 0, 0; two_groups, 1),
    matmul!(bf16 -> bf16, 0, 0, 0; one_group),
    matmul!(bf16 -> bf16, 0, 0, 0; tiny),
    matmul!(bf16 -> bf16, 0, 1, 0; wide, 2),
    matmul!(bf16 -> bf16, 0, 1, 0; wide, 1),
    matmul!(bf16 -> bf16, 0, 1, 0; two_groups, 2),
    matmul!(bf16 -> bf16, 0, 1, 0; two_groups, 1),
    matmul!(bf16 -> bf16, 0, 1, 0; one_group),
    matmul!(bf16 -> f32, 1, 1, 1; wide, 2),
    matmul!(bf16 -> f32, 1, 1, 1; wide, 1),
    matmul!(bf16 -> f32, 1, 1, 1; two_groups, 2),
    matmul!(bf16 -> f32, 1, 1, 1; two_groups, 1),
    // That of a small matrix, and what joins parts of one that is made in parts, as the next five make them.
    matmul!(bf16 -> f32, 1, 1, 1; one_group),
    matmul!(bf16 -> f32, 1, 1, 0; wide, 2),
    matmul!(bf16 -> f32, 1, 1, 0; wide, 1),
    matmul!(bf16 -> f32, 1, 1, 0; two_groups, 2),
    matmul!(bf16 -> f32, 1, 1, 0; two_groups, 1),
    matmul!(bf16 -> f32, 1, 1, 0; one_group),
    matmul!(bf16 -> f32, 0, 0, 0; wide, 2),
    matmul!(bf16 -> f32, 0, 0, 0; wide, 1),
    matmul!(bf16 -> f32, 0, 0, 0; two_groups, 2),
    matmul!(bf16 -> f32, 0, 0, 0; two_groups, 1),
    matmul!(bf16 -> f32, 0, 0, 0; one_group),
    matmul!(bf16 -> f32, 0, 0, 0; tiny),
    matmul!(bf16 -> f32, 0, 1, 0; wide, 2),
    matmul!(bf16 -> f32, 0, 1, 0; wide, 1),
    matmul!(bf16 -> f32, 0, 1, 0; one_group),
    matmul!(bf16 -> f32, 0, 1, 1; wide, 2),
    matmul!(bf16 -> f32, 0, 1, 1; wide, 1),
    matmul!(f16 -> f16, 0, 0, 0; wide, 2),
    matmul!(f16 -> f16, 0, 0, 0; wide, 1),
];

/// The definitions of a norm: types of activations and weight, threads that take a row, packs of it that each keeps.
macro_rules! norm {
    ($t:ident, $w:ident, $lanes:literal, $packs:literal) => {
        &[("T", stringify!($t)), ("W", stringify!($w)), ("LANES", $lanes), ("PACKS", $packs)]
    };
}

macro_rules! kernels {
    (@only) => { None };
    (@only $only:expr) => { Some($only) };
    (@spills) => { &[] };
    (@spills $spills:expr) => { $spills };
    ($($name:ident = $stem:literal, $variants:expr $(, only $only:expr)? $(, spills $spills:expr)?;)*) => {
        $(
            #[doc = concat!("`", $stem, ".cu`")]
            pub const $name: Kernel = Kernel {
                name: $stem,
                text: include_str!(concat!("../kernels/", $stem, ".cu")),
                variants: $variants,
                may_spill: kernels!(@spills $($spills)?),
                only: kernels!(@only $($only)?),
            };
        )*

        /// Every file.
        pub const ALL: &[Kernel] = &[$($name),*];
    };
}

kernels! {
    RMS_NORM = "rms_norm", &[
        norm!(f32, f32, "128", "2"), norm!(f32, bf16, "64", "2"), norm!(bf16, f32, "128", "4"),
        // Heads of 64, 128 and 256; widths from 576 to 8192; the widest.
        norm!(bf16, bf16, "2", "4"), norm!(bf16, bf16, "4", "4"), norm!(bf16, bf16, "8", "4"),
        norm!(bf16, bf16, "32", "4"), norm!(bf16, bf16, "64", "4"), norm!(bf16, bf16, "96", "4"),
        norm!(bf16, bf16, "128", "4"), norm!(bf16, bf16, "192", "4"),
        norm!(bf16, bf16, "224", "4"), norm!(bf16, bf16, "256", "4"), norm!(bf16, bf16, "512", "4"),
        norm!(f16, f16, "128", "4"),
    ];
    LAYER_NORM = "layer_norm", &[
        norm!(f32, f32, "256", "2"), norm!(f32, bf16, "64", "2"), norm!(bf16, bf16, "256", "2"),
        norm!(bf16, bf16, "512", "2"), norm!(f16, f16, "8", "2"),
    ];
    GLU = "glu", &[
        &[("T", "f32"), ("ACT", "0")], &[("T", "bf16"), ("ACT", "0")], &[("T", "bf16"), ("ACT", "1")],
        &[("T", "bf16"), ("ACT", "2")], &[("T", "f16"), ("ACT", "0")],
    ];
    ACTIVATION = "activation", &[
        &[("T", "f32"), ("ACT", "0")], &[("T", "bf16"), ("ACT", "1")], &[("T", "bf16"), ("ACT", "2")],
        &[("T", "bf16"), ("ACT", "3")],
    ];
    ROPE = "rope", T;
    EMBEDDING = "embedding", TW;
    GATHER = "gather", T;
    COMBINE = "combine", T;
    CHOOSE = "choose", &[
        &[("PER", "1")], &[("PER", "2")], &[("PER", "4")], &[("PER", "8")], &[("PER", "16")],
    ];
    SOFTMAX = "softmax", T;
    ELEMENTWISE = "elementwise", T;
    UNARY = "unary", &[
        &[("T", "f32"), ("F", "0")], &[("T", "f32"), ("F", "1")], &[("T", "f32"), ("F", "2")],
        &[("T", "bf16"), ("F", "3")], &[("T", "bf16"), ("F", "4")], &[("T", "f32"), ("F", "5")],
    ];
    REDUCTION = "reduction", T;
    ADAMW = "adamw", T;
    GRAD_NORM = "grad_norm", T;
    COPY = "copy", &[
        &[("T", "f32"), ("ADDS", "1")], &[("T", "bf16"), ("ADDS", "1")], &[("T", "f16"), ("ADDS", "1")], &[("T", "u32")],
        &[("T", "u8")],
    ];
    CAST = "cast", &[
        &[("S", "f32"), ("T", "bf16")], &[("S", "bf16"), ("T", "f32")], &[("S", "f32"), ("T", "f16")],
        &[("S", "f16"), ("T", "f32")],
    ];
    NF4 = "nf4", &[
        &[("T", "f32"), ("NESTED", "0")], &[("T", "bf16"), ("NESTED", "0")], &[("T", "f16"), ("NESTED", "0")],
        &[("T", "f32"), ("NESTED", "1")], &[("T", "bf16"), ("NESTED", "1")], &[("T", "f16"), ("NESTED", "1")],
    ];
    DEQUANTISE = "dequantise", T;
    GGML = "ggml", &[
        ggml!(bf16, Q4_0, "32", "18"), ggml!(bf16, Q4_1, "32", "20"), ggml!(bf16, Q5_0, "32", "22"),
        ggml!(bf16, Q5_1, "32", "24"), ggml!(bf16, Q8_0, "32", "34"), ggml!(bf16, Q4_K, "256", "144"),
        ggml!(bf16, Q5_K, "256", "176"), ggml!(bf16, Q6_K, "256", "210"), ggml!(f32, Q6_K, "256", "210"),
    ];
    DORA_LINEAR = "dora_linear", T;
    BLOCK_ROTATE = "block_rotate", T;
    CAYLEY = "cayley", &[&[]];
    LSTM = "lstm", &[&[]];
    DROPOUT = "dropout", T;
    MATMUL = "matmul", MATMULS;
    MATMUL_HOPPER = "matmul_hopper", HOPPER_MATMULS, only Arch::specific(9, 0);
    MATMUL_ROWS_HOPPER = "matmul_rows_hopper", &[
        &[("T", "bf16"), ("O", "bf16"), ("ADD", "0"), ("BN", "64"), ("STAGES", "8")],
        &[("T", "bf16"), ("O", "bf16"), ("ADD", "0"), ("BN", "32"), ("STAGES", "16")],
        &[("T", "bf16"), ("O", "f32"), ("ADD", "0"), ("BN", "64"), ("STAGES", "8")],
        &[("T", "bf16"), ("O", "f32"), ("ADD", "0"), ("BN", "32"), ("STAGES", "16")],
    ], only Arch::specific(9, 0);
    MATMUL_RUNS_HOPPER = "matmul_runs_hopper", &[
        matmul!(bf16 -> bf16, 0, 0, 0; wide, 1),
        matmul!(bf16 -> bf16, 0, 0, 0; two_groups, 1),
        matmul!(bf16 -> bf16, 0, 0, 0; one_group),
        matmul!(bf16 -> bf16, 0, 0, 0; tiny),
        matmul!(bf16 -> bf16, 0, 1, 0; wide, 1),
        matmul!(bf16 -> bf16, 0, 1, 0; two_groups, 1),
        matmul!(bf16 -> bf16, 0, 1, 0; one_group),
    ], only Arch::specific(9, 0);
    MATMUL_NF4 = "matmul_nf4", &[
        &[("T", "bf16"), ("O", "bf16"), ("NESTED", "0"), ("BM", "16")],
        &[("T", "bf16"), ("O", "bf16"), ("NESTED", "1"), ("BM", "16")],
        &[("T", "bf16"), ("O", "bf16"), ("NESTED", "1"), ("BM", "64")],
        &[("T", "f16"), ("O", "f32"), ("NESTED", "1"), ("BM", "64")],
    ];
    MATMUL_NF4_HOPPER = "matmul_nf4_hopper", &[
        &[("T", "bf16"), ("O", "bf16"), ("NESTED", "0"), ("STAGES", "6")],
        &[("T", "bf16"), ("O", "bf16"), ("NESTED", "1"), ("STAGES", "6")],
        &[("T", "f16"), ("O", "f32"), ("NESTED", "1"), ("STAGES", "6")],
    ], only Arch::specific(9, 0);
    ATTENTION = "attention", &[
        &[("T", "bf16"), ("D", "64"), ("TENSOR_CORES", "1")], &[("T", "bf16"), ("D", "128"), ("TENSOR_CORES", "1")],
        &[("T", "f16"), ("D", "64"), ("TENSOR_CORES", "1")], &[("T", "f16"), ("D", "128"), ("TENSOR_CORES", "1")],
        &[("T", "bf16"), ("D", "256"), ("TENSOR_CORES", "1")], &[("T", "f16"), ("D", "256"), ("TENSOR_CORES", "1")],
        &[("T", "f32"), ("D", "64")],
    ];
    ATTENTION_LONG = "attention_long", &[
        &[("T", "bf16"), ("D", "64")], &[("T", "bf16"), ("D", "128")], &[("T", "bf16"), ("D", "256")],
        &[("T", "f16"), ("D", "64")], &[("T", "f16"), ("D", "128")],
    ];
    ATTENTION_HOPPER = "attention_hopper", &[
        &[("T", "bf16"), ("D", "64"), ("CAP", "0"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "128"), ("CAP", "0"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "64"), ("CAP", "0"), ("GROUPS", "1")],
        &[("T", "bf16"), ("D", "128"), ("CAP", "0"), ("GROUPS", "1")],
        &[("T", "f16"), ("D", "128"), ("CAP", "1"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "64"), ("CACHED", "1"), ("CAP", "0"), ("GROUPS", "1")],
        &[("T", "bf16"), ("D", "128"), ("CACHED", "1"), ("CAP", "0"), ("GROUPS", "1")],
    ], only Arch::specific(9, 0);
    ATTENTION_WIDE_HOPPER = "attention_wide_hopper", &[
        &[("T", "bf16"), ("D", "256"), ("CAP", "0"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "256"), ("CAP", "1"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "256"), ("CAP", "0"), ("GROUPS", "1")],
        &[("T", "bf16"), ("D", "256"), ("CAP", "1"), ("GROUPS", "1")],
        &[("T", "f16"), ("D", "256"), ("CAP", "0"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "256"), ("CACHED", "1"), ("CAP", "0"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "256"), ("CACHED", "1"), ("CAP", "1"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "256"), ("CACHED", "1"), ("CAP", "0"), ("GROUPS", "1")],
        &[("T", "bf16"), ("D", "256"), ("CACHED", "1"), ("CAP", "1"), ("GROUPS", "1")],
    ], only Arch::specific(9, 0);
    ATTENTION_LONG_HOPPER = "attention_long_hopper", &[
        &[("T", "bf16"), ("D", "64")], &[("T", "bf16"), ("D", "128")], &[("T", "bf16"), ("D", "256")],
        &[("T", "f16"), ("D", "64")], &[("T", "f16"), ("D", "128")],
    ], only Arch::specific(9, 0);
    ATTENTION_BACKWARD = "attention_backward", &[
        &[("T", "bf16"), ("D", "64"), ("QB", "64")], &[("T", "bf16"), ("D", "128"), ("QB", "32")],
        &[("T", "f16"), ("D", "64"), ("QB", "64")], &[("T", "f16"), ("D", "128"), ("QB", "32")],
        &[("T", "bf16"), ("D", "256"), ("QB", "16")], &[("T", "f16"), ("D", "256"), ("QB", "16")],
        &[("T", "f32"), ("D", "64")],
    ];
    ATTENTION_BACKWARD_HOPPER = "attention_backward_hopper", &[
        &[("T", "bf16"), ("D", "64"), ("CAP", "0"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "128"), ("CAP", "0"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "64"), ("CAP", "0"), ("GROUPS", "1")],
        &[("T", "bf16"), ("D", "128"), ("CAP", "0"), ("GROUPS", "1")],
        &[("T", "f16"), ("D", "128"), ("CAP", "1"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "128"), ("CAP", "0"), ("STORED", "1"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "128"), ("CAP", "0"), ("STORED", "1"), ("GROUPS", "1")],
        &[("T", "f16"), ("D", "128"), ("CAP", "1"), ("STORED", "1"), ("GROUPS", "2")],
    ], only Arch::specific(9, 0);
    ATTENTION_SCORES_HOPPER = "attention_scores_hopper", &[
        &[("T", "bf16"), ("D", "128"), ("CAP", "0"), ("GROUPS", "4")],
        &[("T", "bf16"), ("D", "128"), ("CAP", "0"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "128"), ("CAP", "0"), ("GROUPS", "1")],
        &[("T", "f16"), ("D", "128"), ("CAP", "1"), ("GROUPS", "4")],
        &[("T", "bf16"), ("D", "256"), ("CAP", "0"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "256"), ("CAP", "1"), ("GROUPS", "2")],
        &[("T", "bf16"), ("D", "256"), ("CAP", "0"), ("GROUPS", "1")],
    ], only Arch::specific(9, 0);
    // With a soft-cap or a stored dS what dK's group holds is a word more than there are registers, with both eight words.
    ATTENTION_BACKWARD_WIDE_HOPPER = "attention_backward_wide_hopper", &[
        &[("T", "bf16"), ("D", "256"), ("CAP", "0")], &[("T", "bf16"), ("D", "256"), ("CAP", "1")],
        &[("T", "f16"), ("D", "256"), ("CAP", "0")],
        &[("T", "bf16"), ("D", "256"), ("CAP", "0"), ("STORED", "1")],
        &[("T", "bf16"), ("D", "256"), ("CAP", "1"), ("STORED", "1")],
    ], only Arch::specific(9, 0), spills &["attention_dkv_wide_hopper"];
    LM_HEAD = "lm_head", T;
    LM_HEAD_DIVERGENCE = "lm_head_divergence", T;
    LM_HEAD_TOP = "lm_head_top", &[&[]];
    SAMPLING = "sampling", &[&[]];
}

/// A file by its stem.
pub fn find(name: &str) -> Option<&'static Kernel> {
    ALL.iter().find(|kernel| kernel.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_says_what_it_is() {
        for kernel in ALL {
            let about = kernel.about();
            assert!(about.len() > 10 && !about.contains("Macros"), "{}: {about}", kernel.name);
            for words in ["Contract:", "ound by"] {
                assert!(kernel.text.contains(words), "{} does not say {words}", kernel.name);
            }
            assert!(!kernel.variants.is_empty());
        }
        assert_eq!(find("rms_norm").unwrap().name, "rms_norm");
        assert!(find("no").is_none());
    }

    /// Gradients and log-probabilities are made in a fixed order.
    #[test]
    fn there_are_no_float_atomics() {
        for (name, text) in ALL.iter().map(|k| (k.name, k.text)).chain(HEADERS.iter().copied()) {
            for line in text.lines().filter(|line| line.contains("atomicAdd")) {
                // Integers add up to the same in any order: such lines say so.
                assert!(line.contains("// integers"), "{name}: {line}");
            }
        }
    }
}
