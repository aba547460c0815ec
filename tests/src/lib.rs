//! What crosses crates: parity with peers, gradcheck of every op, the program from outside.
