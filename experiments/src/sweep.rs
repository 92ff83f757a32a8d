//! Matrices of runs.
