//! What this proxy asks on its own account: copies, further legs of a hedge, questions to a service of the user's.

use std::task::{Context, Poll};

use super::{
    ask::Front,
    body::{BodyError, Source},
    head::Head,
};

/// Who asks. All of the body is there, and nobody is told of what comes before the answer.
pub(super) struct Own<'a, G> {
    body: &'a [u8],
    gone: G,
}

impl<'a, G: FnMut(&mut Context<'_>) -> Poll<()>> Own<'a, G> {
    /// `gone`: ready once nobody waits for the answer any more.
    pub(super) fn new(body: &'a [u8], gone: G) -> Self {
        Own { body, gone }
    }
}

impl<G> Source for Own<'_, G> {
    fn poll_bytes(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        Poll::Ready(Ok(()))
    }

    fn bytes(&self) -> &[u8] {
        self.body
    }

    fn consume(&mut self, n: usize) {
        self.body = &self.body[n..];
    }

    fn is_end(&self) -> bool {
        true
    }

    fn trailers(&self) -> &[u8] {
        &[]
    }
}

impl<G: FnMut(&mut Context<'_>) -> Poll<()>> Front for Own<'_, G> {
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        (self.gone)(cx)
    }

    fn inform(&mut self, _: &mut Head) {}

    fn go_on(&mut self) {}

    fn poll_informed(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}
