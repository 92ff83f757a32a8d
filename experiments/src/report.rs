//! Pages with plots about runs and sweeps.
