//! Responses made smaller on their way to clients that can read gzip (RFC 1952).
//!
//! Whole files of text are worth it, and nothing is ever taken out of a coding that it came in. What is there of a
//! response goes out even while more is awaited, so a stream of events stays one.

use std::{
    io::Write,
    task::{Context, Poll},
};

use flate2::{Compression, write::GzEncoder};

use super::{
    body::{BodyError, Framing, Source},
    head::{Field, Head, Tag, tokens},
};
use crate::config::CompressionConfig;

/// Of the body, before what is made of it must have gone out.
const STEP_BYTES: usize = 32 * 1024;

/// What is to be said about the coding of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    AsItIs,
    /// The same, but another client would get it compressed.
    Varies,
    Gzip,
}

/// Whether the client takes gzip (RFC 9110 §12.5.3).
pub(crate) fn takes_gzip(request: &Head) -> bool {
    let mut any = false;
    let mut gzip = None;
    for coding in named(request, b"accept-encoding").flat_map(tokens) {
        let mut parts = coding.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let is_wanted = !parts.any(is_zero_weight);
        if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") {
            gzip = Some(is_wanted);
        } else if name == b"*" {
            any = is_wanted;
        }
    }
    gzip.unwrap_or(any)
}

/// `q=0`, `q=0.0` and so on.
fn is_zero_weight(parameter: &[u8]) -> bool {
    let Some(weight) = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q=")) else {
        return false;
    };
    !weight.is_empty() && weight.iter().all(|byte| matches!(byte, b'0' | b'.'))
}

/// What becomes of a response with a body of that framing.
pub(crate) fn choose(config: &CompressionConfig, response: &Head, body: Framing, takes_gzip: bool) -> Coding {
    let is_long = match body {
        Framing::Length(bytes) => bytes > 0 && bytes >= config.bytes_min,
        Framing::Chunked | Framing::UntilClose => true,
    };
    // A part of a file is no file of its own, and those without a body have nothing to be made smaller.
    let is_whole = !matches!(response.status(), 100..200 | 204 | 205 | 206 | 304);
    // What vouches for the bytes would no longer be true of them (RFC 9530).
    let is_bound = response.iter().any(|field| {
        [&b"content-encoding"[..], b"content-range", b"content-digest", b"repr-digest", b"digest"]
            .iter()
            .any(|name| field.name.eq_ignore_ascii_case(name))
    });
    let may_change = !named(response, b"cache-control")
        .flat_map(tokens)
        .any(|token| token.eq_ignore_ascii_case(b"no-transform"));
    let fits = is_long && is_whole && !is_bound && may_change && is_of_type(config, response);
    match (fits, takes_gzip) {
        (false, _) => Coding::AsItIs,
        (true, false) => Coding::Varies,
        (true, true) => Coding::Gzip,
    }
}

/// Without its parameters, against `text/html` or `text/*`.
fn is_of_type(config: &CompressionConfig, response: &Head) -> bool {
    let Some(kind) = named(response, b"content-type").next() else { return false };
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    config.types.iter().any(|wanted| match wanted.strip_suffix('*') {
        Some(family) => {
            kind.get(..family.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(family.as_bytes()))
        }
        None => kind.eq_ignore_ascii_case(wanted.as_bytes()),
    })
}

/// Says in the head what was chosen.
pub(crate) fn announce(coding: Coding, response: &mut Head) {
    if coding == Coding::AsItIs {
        return;
    }
    let varies = named(response, b"vary")
        .flat_map(tokens)
        .any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"));
    if !varies {
        response.add("Vary", &[b"Accept-Encoding"]);
    }
    if coding == Coding::Varies {
        return;
    }
    // RFC 9110 §8.8.3.3: what is compressed on the way is not the same byte for byte.
    let strong = named(response, b"etag").next().filter(|etag| etag.starts_with(b"\"")).map(<[u8]>::to_vec);
    let is_gone = |field: &Field<'_>| {
        field.tag == Tag::ContentLength
            || field.name.eq_ignore_ascii_case(b"accept-ranges")
            || strong.is_some() && field.name.eq_ignore_ascii_case(b"etag")
    };
    response.retain(|field| !is_gone(&field));
    if let Some(etag) = strong {
        response.add("ETag", &[b"W/", &etag]);
    }
    response.add("Content-Encoding", &[b"gzip"]);
}

fn named<'a>(head: &'a Head, name: &'static [u8]) -> impl Iterator<Item = &'a [u8]> {
    head.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// One response on its way.
pub(crate) struct Gzip {
    encoder: GzEncoder<Vec<u8>>,
    /// Of what the encoder has made.
    sent: usize,
    /// Everything that went in has come out.
    is_flushed: bool,
    is_done: bool,
}

impl Gzip {
    pub(crate) fn new(config: &CompressionConfig) -> Gzip {
        let encoder = GzEncoder::new(Vec::new(), Compression::new(config.level));
        Gzip { encoder, sent: 0, is_flushed: true, is_done: false }
    }

    fn bytes(&self) -> &[u8] {
        &self.encoder.get_ref()[self.sent..]
    }
}

/// A body, compressed.
pub(crate) struct Squeezed<'a, S> {
    pub(crate) source: &'a mut S,
    pub(crate) gzip: &'a mut Gzip,
}

impl<S: Source> Source for Squeezed<'_, S> {
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let Squeezed { source, gzip } = self;
        loop {
            if !gzip.bytes().is_empty() || gzip.is_done {
                return Poll::Ready(Ok(()));
            }
            gzip.encoder.get_mut().clear();
            gzip.sent = 0;
            let written = match source.poll_bytes(cx) {
                Poll::Ready(Ok(())) => {
                    let n = source.bytes().len().min(STEP_BYTES);
                    let written = gzip.encoder.write_all(&source.bytes()[..n]);
                    source.consume(n);
                    gzip.is_flushed = false;
                    gzip.is_done = source.bytes().is_empty() && source.is_end();
                    if gzip.is_done { written.and_then(|()| gzip.encoder.try_finish()) } else { written }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if gzip.is_flushed => return Poll::Pending,
                Poll::Pending => {
                    gzip.is_flushed = true;
                    gzip.encoder.flush()
                }
            };
            // A vector takes everything.
            if written.is_err() {
                return Poll::Ready(Err(BodyError::BrokeOff));
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        self.gzip.bytes()
    }

    fn consume(&mut self, n: usize) {
        self.gzip.sent += n;
    }

    fn is_end(&self) -> bool {
        self.gzip.is_done
    }

    fn trailers(&self) -> &[u8] {
        self.source.trailers()
    }
}

#[cfg(test)]
mod tests;
