//! Takes the chunks off a body that our own engine has framed.
//!
//! Not the reader for what others send: that is in `body`, and strict.

use std::io;

use http::HeaderMap;
use memchr::memmem;

use super::stream::{name, value};

/// Trailers as the engine lets them through.
const TRAILERS_MAX: usize = 64;

#[derive(Default)]
pub(crate) struct Chunks {
    stage: Stage,
    /// Of a line that came in pieces.
    partial: Vec<u8>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Size,
    Data(usize),
    /// Bytes of the line end behind a chunk that are still to come.
    DataEnd(usize),
    Trailers,
    Done,
}

/// What comes next of the bytes shown.
pub(crate) enum Part {
    /// So many bytes are nobody's.
    Framing(usize),
    /// At most so many bytes are the body's. [`Chunks::took`] says how many were taken.
    Data(usize),
    /// So many bytes are the end, and these its trailers.
    End(usize, Option<HeaderMap>),
}

impl Chunks {
    pub(crate) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    pub(crate) fn next(&mut self, bytes: &[u8]) -> io::Result<Part> {
        match self.stage {
            Stage::Size => {
                let Some((line, used)) = self.until(bytes, b"\r\n") else {
                    return Ok(Part::Framing(bytes.len()));
                };
                let size = std::str::from_utf8(&line).ok();
                let size = size.and_then(|size| usize::from_str_radix(size.trim_end(), 16).ok());
                self.stage = match size.ok_or(io::ErrorKind::InvalidData)? {
                    0 => Stage::Trailers,
                    size => Stage::Data(size),
                };
                // The line end of an empty trailer section is a line of its own.
                Ok(Part::Framing(used))
            }
            Stage::Data(left) => Ok(Part::Data(left.min(bytes.len()))),
            Stage::DataEnd(left) => {
                let n = left.min(bytes.len());
                self.stage = if n == left { Stage::Size } else { Stage::DataEnd(left - n) };
                Ok(Part::Framing(n))
            }
            Stage::Trailers => {
                if self.partial.is_empty() && bytes.starts_with(b"\r\n") {
                    self.stage = Stage::Done;
                    return Ok(Part::End(2, None));
                }
                if self.partial == b"\r" && bytes.starts_with(b"\n") {
                    self.stage = Stage::Done;
                    return Ok(Part::End(1, None));
                }
                let Some((section, used)) = self.until(bytes, b"\r\n\r\n") else {
                    return Ok(Part::Framing(bytes.len()));
                };
                self.stage = Stage::Done;
                Ok(Part::End(used, Some(trailers(&section)?)))
            }
            Stage::Done => Ok(Part::Framing(bytes.len())),
        }
    }

    /// So many bytes of the chunk were taken.
    pub(crate) fn took(&mut self, n: usize) {
        if let Stage::Data(left) = self.stage {
            self.stage = if n == left { Stage::DataEnd(2) } else { Stage::Data(left - n) };
        }
    }

    /// What stands before `end`, over all calls, and how many of `bytes` that and the end are. Otherwise all of
    /// them are kept.
    fn until(&mut self, bytes: &[u8], end: &[u8]) -> Option<(Vec<u8>, usize)> {
        let before = self.partial.len();
        self.partial.extend_from_slice(bytes);
        let at = memmem::find(&self.partial, end)?;
        let mut line = std::mem::take(&mut self.partial);
        line.truncate(at);
        Some((line, at + end.len() - before))
    }
}

fn trailers(section: &[u8]) -> io::Result<HeaderMap> {
    let mut trailers = HeaderMap::new();
    for line in section.split(|byte| *byte == b'\n').take(TRAILERS_MAX) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        trailers.append(name(&line[..colon])?, value(line[colon + 1..].trim_ascii())?);
    }
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8], piece: usize) -> (Vec<u8>, Option<HeaderMap>) {
        let mut chunks = Chunks::default();
        let (mut body, mut end) = (Vec::new(), None);
        for piece in bytes.chunks(piece) {
            let mut at = 0;
            while at < piece.len() {
                at += match chunks.next(&piece[at..]).unwrap() {
                    Part::Framing(n) => n,
                    Part::Data(n) => {
                        // Not everything is taken at once.
                        let n = n.div_ceil(2);
                        body.extend_from_slice(&piece[at..at + n]);
                        chunks.took(n);
                        n
                    }
                    Part::End(n, trailers) => {
                        end = trailers;
                        n
                    }
                };
            }
        }
        assert!(chunks.is_done());
        (body, end)
    }

    #[test]
    fn a_body_is_the_same_in_whatever_pieces_it_comes() {
        let plain = b"5\r\nhello\r\n10\r\n, this is a body\r\n0\r\n\r\n";
        let with_trailers = b"5\r\nhello\r\n0\r\ngrpc-status: 0\r\nx: a b\r\n\r\n";
        for piece in 1..=plain.len() {
            assert_eq!(decode(plain, piece), (b"hello, this is a body".to_vec(), None), "{piece}");
            let (body, trailers) = decode(with_trailers, piece);
            let trailers = trailers.unwrap();
            assert_eq!(
                (body.as_slice(), &trailers["grpc-status"], &trailers["x"]),
                (&b"hello"[..], &HeaderValue::from_static("0"), &HeaderValue::from_static("a b"),)
            );
        }
    }

    use http::HeaderValue;
}
