//! What is true in the little world of the builtin model.
//!
//! Everything that its training text says comes from these tables, so a user can look up what the
//! model was told. Every word is common English and short: the tokenizer gives most of them one token.

/// An animal and what the model is told about it.
pub(super) struct Animal {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) home: &'static str,
    pub(super) legs: u32,
    /// Larger animals have larger numbers; two of one size are never compared.
    pub(super) size: u32,
}

const fn animal(name: &'static str, kind: &'static str, home: &'static str, legs: u32, size: u32) -> Animal {
    Animal { name, kind, home, legs, size }
}

/// Animals, with kind, home, number of legs and rank of size.
pub(super) const ANIMALS: [Animal; 32] = [
    animal("ant", "insect", "garden", 6, 1),
    animal("bee", "insect", "garden", 6, 1),
    animal("beetle", "insect", "forest", 6, 2),
    animal("butterfly", "insect", "garden", 6, 2),
    animal("mouse", "mammal", "house", 4, 3),
    animal("frog", "amphibian", "pond", 4, 3),
    animal("robin", "bird", "garden", 2, 3),
    animal("lizard", "reptile", "desert", 4, 4),
    animal("duck", "bird", "pond", 2, 5),
    animal("owl", "bird", "forest", 2, 5),
    animal("hen", "bird", "farm", 2, 5),
    animal("salmon", "fish", "river", 0, 5),
    animal("rabbit", "mammal", "field", 4, 5),
    animal("cat", "mammal", "house", 4, 6),
    animal("eagle", "bird", "mountain", 2, 6),
    animal("snake", "reptile", "desert", 0, 6),
    animal("penguin", "bird", "ice", 2, 6),
    animal("fox", "mammal", "forest", 4, 7),
    animal("dog", "mammal", "house", 4, 8),
    animal("goat", "mammal", "mountain", 4, 9),
    animal("sheep", "mammal", "farm", 4, 9),
    animal("wolf", "mammal", "forest", 4, 9),
    animal("pig", "mammal", "farm", 4, 10),
    animal("seal", "mammal", "ice", 0, 11),
    animal("lion", "mammal", "grassland", 4, 12),
    animal("tiger", "mammal", "jungle", 4, 12),
    animal("bear", "mammal", "forest", 4, 13),
    animal("cow", "mammal", "farm", 4, 14),
    animal("horse", "mammal", "farm", 4, 14),
    animal("shark", "fish", "sea", 0, 15),
    animal("elephant", "mammal", "grassland", 4, 16),
    animal("whale", "mammal", "sea", 0, 17),
];

/// Pairs of opposites, asked in both directions.
pub(super) const OPPOSITES: [(&str, &str); 40] = [
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("happy", "sad"),
    ("up", "down"),
    ("left", "right"),
    ("open", "closed"),
    ("day", "night"),
    ("wet", "dry"),
    ("light", "dark"),
    ("old", "young"),
    ("rich", "poor"),
    ("strong", "weak"),
    ("full", "empty"),
    ("hard", "soft"),
    ("high", "low"),
    ("long", "short"),
    ("early", "late"),
    ("near", "far"),
    ("loud", "quiet"),
    ("clean", "dirty"),
    ("thick", "thin"),
    ("wide", "narrow"),
    ("deep", "shallow"),
    ("brave", "afraid"),
    ("sweet", "bitter"),
    ("smooth", "rough"),
    ("inside", "outside"),
    ("above", "below"),
    ("always", "never"),
    ("first", "last"),
    ("push", "pull"),
    ("begin", "end"),
    ("win", "lose"),
    ("buy", "sell"),
    ("give", "take"),
    ("love", "hate"),
    ("true", "false"),
    ("safe", "dangerous"),
    ("summer", "winter"),
];

/// Countries and their capitals, asked in both directions.
pub(super) const CAPITALS: [(&str, &str); 24] = [
    ("France", "Paris"),
    ("Spain", "Madrid"),
    ("Italy", "Rome"),
    ("Germany", "Berlin"),
    ("Austria", "Vienna"),
    ("Greece", "Athens"),
    ("Egypt", "Cairo"),
    ("Japan", "Tokyo"),
    ("China", "Beijing"),
    ("Russia", "Moscow"),
    ("Norway", "Oslo"),
    ("Sweden", "Stockholm"),
    ("Finland", "Helsinki"),
    ("Denmark", "Copenhagen"),
    ("Poland", "Warsaw"),
    ("Portugal", "Lisbon"),
    ("Ireland", "Dublin"),
    ("England", "London"),
    ("Kenya", "Nairobi"),
    ("Cuba", "Havana"),
    ("Peru", "Lima"),
    ("Canada", "Ottawa"),
    ("Hungary", "Budapest"),
    ("Vietnam", "Hanoi"),
];

/// Things, as a sentence names them, and their usual colour.
pub(super) const COLOURS: [(&str, &str); 24] = [
    ("a banana", "yellow"),
    ("a lemon", "yellow"),
    ("the sun", "yellow"),
    ("a tomato", "red"),
    ("a strawberry", "red"),
    ("blood", "red"),
    ("a cherry", "red"),
    ("grass", "green"),
    ("a leaf", "green"),
    ("a lime", "green"),
    ("a pea", "green"),
    ("the sky", "blue"),
    ("the ocean", "blue"),
    ("snow", "white"),
    ("milk", "white"),
    ("salt", "white"),
    ("rice", "white"),
    ("coal", "black"),
    ("tar", "black"),
    ("a carrot", "orange"),
    ("a pumpkin", "orange"),
    ("chocolate", "brown"),
    ("wood", "brown"),
    ("a plum", "purple"),
];

/// Verbs and their past tense.
pub(super) const PAST: [(&str, &str); 24] = [
    ("go", "went"),
    ("eat", "ate"),
    ("see", "saw"),
    ("run", "ran"),
    ("sing", "sang"),
    ("swim", "swam"),
    ("write", "wrote"),
    ("speak", "spoke"),
    ("fly", "flew"),
    ("drink", "drank"),
    ("come", "came"),
    ("know", "knew"),
    ("grow", "grew"),
    ("find", "found"),
    ("think", "thought"),
    ("bring", "brought"),
    ("teach", "taught"),
    ("sleep", "slept"),
    ("keep", "kept"),
    ("feel", "felt"),
    ("leave", "left"),
    ("make", "made"),
    ("build", "built"),
    ("break", "broke"),
];

/// Work and what comes of it.
pub(super) const WORK: [(&str, &str); 16] = [
    ("baker", "bread"),
    ("painter", "pictures"),
    ("tailor", "clothes"),
    ("farmer", "corn"),
    ("writer", "books"),
    ("potter", "pots"),
    ("smith", "tools"),
    ("carpenter", "tables"),
    ("cook", "soup"),
    ("poet", "poems"),
    ("weaver", "cloth"),
    ("mason", "walls"),
    ("brewer", "beer"),
    ("jeweller", "rings"),
    ("shoemaker", "shoes"),
    ("composer", "songs"),
];

/// The days of the week, in order.
pub(super) const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// The months, in order.
pub(super) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// People in stories.
pub(super) const NAMES: [&str; 20] = [
    "Mia", "Tom", "Anna", "Ben", "Lucy", "Max", "Nora", "Sam", "Ella", "Leo", "Ruth", "Paul", "Zoe", "Jack", "Ida",
    "Omar", "Rosa", "Finn", "Kate", "Hugo",
];

/// Things that people in stories carry.
pub(super) const THINGS: [&str; 20] = [
    "ball", "book", "hat", "key", "cup", "lamp", "drum", "kite", "coat", "box", "bell", "map", "stone", "rope",
    "basket", "coin", "spoon", "chair", "letter", "clock",
];

/// Places that people in stories go to.
pub(super) const PLACES: [&str; 14] = [
    "park", "school", "market", "kitchen", "station", "beach", "library", "bridge", "castle", "village", "shop",
    "island", "tower", "bakery",
];

/// Colours and other looks of things in stories.
pub(super) const LOOKS: [&str; 12] =
    ["red", "blue", "green", "yellow", "white", "black", "brown", "old", "new", "small", "big", "heavy"];

/// Numbers as words.
pub(super) const NUMBERS: [&str; 21] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];
