//! Hub, streams and catch-up together, on a state in memory.
