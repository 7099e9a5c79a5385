//! Which files certificates are in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    config::{CertificateSource, TlsConfig},
    file::{Print, read},
};

/// Certificates of one directory.
const DIRECTORY_MAX: usize = 10_000;

/// One certificate and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// For metrics and messages.
    pub(super) name: String,
    pub(super) chain: PathBuf,
    /// `None`: in the same file.
    pub(super) key: Option<PathBuf>,
}

/// In the order of the configuration.
pub(super) fn find(config: &TlsConfig) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    for source in &config.certificates {
        match source {
            CertificateSource::Files { chain, key } => {
                let name = chain.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                found.push(Found { name, chain: chain.clone(), key: Some(key.clone()) });
            }
            CertificateSource::Named { directory, name } => found.push(named(directory, name)?),
            CertificateSource::Directory(directory) => {
                for name in names(directory)? {
                    found.push(named(directory, &name)?);
                }
            }
        }
    }
    if found.is_empty() {
        return Err(match &config.certificates[..] {
            [CertificateSource::Directory(directory)] => {
                format!("there is no certificate in {}", directory.display())
            }
            _ => "no certificate is named".to_owned(),
        });
    }
    Ok(found)
}

fn named(directory: &Path, name: &str) -> Result<Found, String> {
    let chain = ["pem", "crt"].map(|extension| directory.join(format!("{name}.{extension}")));
    let Some(chain) = chain.into_iter().find(|path| path.is_file()) else {
        return Err(format!("there is no certificate `{name}` in {}", directory.display()));
    };
    let key = Some(directory.join(format!("{name}.key"))).filter(|path| path.is_file());
    Ok(Found { name: name.to_owned(), chain, key })
}

/// The certificates of a directory, by name; the first one is the default.
fn names(directory: &Path) -> Result<Vec<String>, String> {
    let cannot = |error| format!("{}: {error}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let is_chain = path.extension().is_some_and(|extension| extension == "pem" || extension == "crt");
        // Others lie there as well: certificates of authorities, say.
        let has_key = || path.with_extension("key").is_file() || holds_key(&path);
        if let (true, Some(name)) = (is_chain && has_key(), path.file_stem()) {
            names.push(name.to_string_lossy().into_owned());
        }
        if names.len() > DIRECTORY_MAX {
            return Err(format!("{}: more than {DIRECTORY_MAX} certificates", directory.display()));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn holds_key(path: &Path) -> bool {
    const MARK: &[u8] = b"PRIVATE KEY-----";
    read(path).is_ok_and(|content| content.windows(MARK.len()).any(|window| window == MARK))
}

pub(super) fn prints(config: &TlsConfig) -> Vec<Print> {
    let directories = config.certificates.iter().filter_map(|source| match source {
        CertificateSource::Files { .. } => None,
        CertificateSource::Named { directory, .. } | CertificateSource::Directory(directory) => {
            Some(directory.clone())
        }
    });
    let mut paths: Vec<PathBuf> = directories.chain(config.client_ca.clone()).collect();
    for source in &config.certificates {
        if let CertificateSource::Files { chain, key } = source {
            paths.extend([chain.clone(), key.clone()]);
        }
    }
    // What cannot be found now leaves its directory to be looked at.
    for found in find(config).unwrap_or_default() {
        paths.push(found.chain);
        paths.extend(found.key);
    }
    paths.sort();
    paths.dedup();
    paths.into_iter().map(Print::of).collect()
}
