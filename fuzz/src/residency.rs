//! Operations on the residency table, beside a model of it.

use arbitrary::{Arbitrary, Unstructured};
use hmm_backend::residency_script::{self, Op};

pub fn run(bytes: &[u8]) {
    if let Ok(ops) = Vec::<Op>::arbitrary_take_rest(Unstructured::new(bytes)) {
        residency_script::run(&ops);
    }
}
