//! Style rules that a test can check.
