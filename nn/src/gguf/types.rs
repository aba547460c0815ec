//! The element types of ggml that are read.

/// How a tensor's elements are stored.
#[allow(non_camel_case_types, missing_docs, reason = "ggml's own names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl GgmlType {
    /// Every type that is read.
    pub const ALL: [GgmlType; 11] = {
        use GgmlType::*;
        [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K]
    };

    /// The number that stands for the type in a file.
    pub const fn id(self) -> u32 {
        match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::Q4_0 => 2,
            GgmlType::Q4_1 => 3,
            GgmlType::Q5_0 => 6,
            GgmlType::Q5_1 => 7,
            GgmlType::Q8_0 => 8,
            GgmlType::Q4_K => 12,
            GgmlType::Q5_K => 13,
            GgmlType::Q6_K => 14,
            GgmlType::BF16 => 30,
        }
    }

    /// The type that a number in a file stands for, if it is read.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    /// Elements of a block. A row is a whole number of blocks.
    pub const fn block_len(self) -> usize {
        match self.blocks() {
            Some(kind) => kind.block_len(),
            None => 1,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match (self.blocks(), self) {
            (Some(kind), _) => kind.block_bytes(),
            (None, GgmlType::F32) => 4,
            (None, _) => 2,
        }
    }
}

/// The name of a type by its number, read or not, for messages.
pub(crate) fn type_name(id: u32) -> String {
    if let Some(kind) = GgmlType::from_id(id) {
        return format!("{kind:?}");
    }
    let name = match id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {id}, which ggml does not define"),
    };
    name.to_owned()
}
