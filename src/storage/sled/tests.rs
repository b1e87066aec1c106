//! Crashes and damaged files.
