//! A thread with a runtime of its own.
//!
//! Traffic and its origins run on such threads, so that a test that computes, or waits for a
//! command to end, never slows what it measures.

use std::{future::Future, thread};

use tokio::{runtime, sync::oneshot};
use tokio_util::sync::CancellationToken;

/// Ends with its owner: dropping it asks the thread to stop and waits until it has.
#[derive(Debug)]
pub(crate) struct Background<T> {
    stop: CancellationToken,
    outcome: oneshot::Receiver<T>,
    thread: Option<thread::JoinHandle<()>>,
}

impl<T: Send + 'static> Background<T> {
    /// `body` ends soon after its token is cancelled. What it has spawned ends with it.
    pub(crate) fn start<F>(name: &str, body: impl FnOnce(CancellationToken) -> F + Send + 'static) -> Self
    where
        F: Future<Output = T>,
    {
        let stop = CancellationToken::new();
        let (done, outcome) = oneshot::channel();
        let token = stop.clone();
        let run = move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // Nobody listens when the owner was dropped.
            drop(done.send(runtime.block_on(body(token))));
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run).unwrap();
        Self { stop, outcome, thread: Some(thread) }
    }

    /// What the body returned, once it has ended by itself.
    pub(crate) async fn finish(mut self) -> T {
        (&mut self.outcome).await.expect("the thread has not panicked")
    }

    pub(crate) async fn stop(self) -> T {
        self.stop.cancel();
        self.finish().await
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a background thread of this test panicked, see above");
        }
    }
}
