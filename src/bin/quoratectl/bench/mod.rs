//! Load generator.
use std::io::Write;

use clap::Args;

use crate::{error::Error, flags::GlobalFlags};

/// Flags of `bench`.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {}

/// Runs `bench`.
pub(crate) async fn run(
    _: &BenchArgs,
    _: &GlobalFlags,
    _: &mut dyn Write,
) -> Result<(), Error> {
    Ok(())
}
