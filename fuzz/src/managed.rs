//! Managed memory for targets whose guests must not be able to damage it.

use std::sync::Arc;

use hmm_backend::policy::PolicySpec;
use hmm_backend::service::{FaultService, ServiceConfig};
use hmm_backend::{Backend, BackendConfig};

/// So many bytes under this policy, with a thread that serves CPU faults. A fault that cannot be served ends the process.
pub(crate) fn memory(bytes: u64, policy: &str) -> (Arc<Backend>, FaultService) {
    let mut config = BackendConfig::new(bytes);
    config.policy = Arc::new(policy.parse::<PolicySpec>().expect("it is one"));
    let backend = Backend::new(config).expect("userfaultfd is needed");
    let service = ServiceConfig {
        threads: vec![None],
        ..ServiceConfig::default()
    };
    let service = backend.start_service(service, |fault| {
        // A guest must not be able to cause this; and the thread that faulted would sleep for ever.
        eprintln!("{fault:?}");
        std::process::abort();
    });
    (backend, service.expect("a thread is needed"))
}
