//! As much of protoc as prost's build script asks for: descriptors of some files, with imports.
//!
//! `protoc --include_imports --include_source_info -o OUT -I DIR... FILE...`

use std::{error::Error, ffi::OsString, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut out, mut folders, mut files) = (None, Vec::new(), Vec::new());
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("-o") => out = arguments.next(),
            Some("-I") => folders.extend(arguments.next()),
            Some(flag) if flag.starts_with("--") => {}
            _ => files.push(argument),
        }
    }
    let out: OsString = out.ok_or("no -o")?;
    let mut compiler = protox::Compiler::new(folders.iter().map(PathBuf::from))?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(files)?;
    fs::write(out, compiler.file_descriptor_set().encode_to_vec())?;
    Ok(())
}
