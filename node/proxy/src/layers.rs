//! User code on requests and responses: tower layers, registered by name as balance strategies are.
//!
//! A layer sees heads; bodies go past it. It may change the fields and the path of a request and the fields and the
//! status of its response, answer instead of the endpoint, or refuse. What it may not change (framing, the host, what
//! is about one connection) it does not see, and what it says about that is left out.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use tower::{BoxError, Layer, Service, ServiceExt, util::UnsyncBoxService};

/// The body of a response as layers have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// That of the endpoint, whatever it is.
    Passing,
    /// These bytes, instead.
    Own(Bytes),
}

type Made = Result<Response<Content>, BoxError>;
type Making = Pin<Box<dyn Future<Output = Made>>>;

/// Layers by name. An app names those that its requests go through, the outermost first.
///
/// ```
/// use flotilla_proxy::{Layers, layers::Content};
/// use http::{HeaderValue, Request, Response};
/// use tower::util::{MapRequestLayer, MapResponseLayer};
///
/// let mut layers = Layers::default();
/// layers.register("tag", MapRequestLayer::new(|mut request: Request<()>| {
///     request.headers_mut().insert("x-tag", HeaderValue::from_static("1"));
///     request
/// }));
/// layers.register("quiet", MapResponseLayer::new(|mut response: Response<Content>| {
///     response.headers_mut().remove("server");
///     response
/// }));
/// ```
#[derive(Clone, Default)]
pub struct Layers(BTreeMap<String, Factory>);

type Factory = Arc<dyn Fn(Next) -> Next + Send + Sync>;

impl Layers {
    /// Makes a layer known. It is applied once per worker and generation; its services stay on one thread.
    pub fn register<L>(&mut self, name: impl Into<String>, layer: L)
    where
        L: Layer<Next> + Send + Sync + 'static,
        L::Service: Service<Request<()>, Response = Response<Content>> + 'static,
        <L::Service as Service<Request<()>>>::Error: Into<BoxError>,
        <L::Service as Service<Request<()>>>::Future: 'static,
    {
        self.0.insert(name.into(), Arc::new(move |next| Next::new(layer.layer(next))));
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// These around each other, the first outermost. `None`: there is none of that name.
    pub(crate) fn stack(&self, names: &[String]) -> Option<Next> {
        let next = Next::new(tower::service_fn(go_on));
        names.iter().rev().try_fold(next, |next, name| Some(self.0.get(name)?(next)))
    }
}

/// What a layer is put around: the layers inside it, and at last the endpoint. A request goes on once.
#[derive(Clone)]
pub struct Next(Rc<RefCell<Boxed>>);

type Boxed = UnsyncBoxService<Request<()>, Response<Content>, BoxError>;

impl Next {
    fn new<S>(service: S) -> Next
    where
        S: Service<Request<()>, Response = Response<Content>> + 'static,
        S::Error: Into<BoxError>,
        S::Future: 'static,
    {
        Next(Rc::new(RefCell::new(UnsyncBoxService::new(ServiceExt::map_err(service, Into::into)))))
    }
}

impl Service<Request<()>> for Next {
    type Response = Response<Content>;
    type Error = BoxError;
    type Future = Making;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.borrow_mut().poll_ready(cx)
    }

    fn call(&mut self, request: Request<()>) -> Making {
        Box::pin(self.0.borrow_mut().call(request))
    }
}

/// Where a request that has come through all layers waits for its response.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<Passage>>);

#[derive(Default)]
struct Passage {
    request: Option<Request<()>>,
    response: Option<Response<Content>>,
    waker: Option<Waker>,
    is_used: bool,
}

impl Gate {
    fn passage(&self) -> MutexGuard<'_, Passage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request, once it has come through.
    pub(crate) fn take_request(&self) -> Option<Request<()>> {
        self.passage().request.take()
    }

    pub(crate) fn give_response(&self, response: Response<Content>) {
        let mut passage = self.passage();
        passage.response = Some(response);
        if let Some(waker) = passage.waker.take() {
            waker.wake();
        }
    }
}

/// The innermost service.
async fn go_on(request: Request<()>) -> Made {
    let gate = request.extensions().get::<Gate>().cloned();
    let gate = gate.ok_or("a layer has taken the extensions off the request")?;
    {
        let mut passage = gate.passage();
        if std::mem::replace(&mut passage.is_used, true) {
            return Err("a layer has sent the request on twice".into());
        }
        passage.request = Some(request);
    }
    let response = poll_fn(|cx| {
        let mut passage = gate.passage();
        match passage.response.take() {
            Some(response) => Poll::Ready(response),
            None => {
                passage.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    });
    Ok(response.await)
}
