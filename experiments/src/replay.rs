//! Replays a trace under a policy.
