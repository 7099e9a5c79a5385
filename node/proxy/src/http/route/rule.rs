//! Rules in CEL: an expression over a request that says whether a route takes it.
//!
//! Compiled once. What it does not ask for is not looked up: a variable is made when the expression names it.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use cel::{
    Context, Env, ExecutionError, Program, Value,
    common::{
        types::{CelMap, CelMapKey, CelString},
        value::{CowVal, Val},
    },
    context::VariableResolver,
};

use http::Method;

use super::{CompileError, Request, when::parameters};
use crate::{
    config::RouteConfig,
    http::{head::Head, headers::without_port},
};

/// Of an expression as it is written. Together with the bound on fields it bounds what one evaluation can cost.
const EXPRESSION_BYTES_MAX: usize = 1024;

thread_local! {
    /// The functions of CEL, once per worker: what is shared would be counted by all of them for each request.
    static FUNCTIONS: Arc<Env> = Arc::new(functions());
}

/// The standard ones, without optional values.
fn functions() -> Env {
    Env::default().with_optional_support(false).with_stdlib()
}

#[derive(Debug)]
pub(super) struct Rule(Program);

impl Rule {
    pub(super) fn compile(route: &RouteConfig, text: &str) -> Result<Rule, CompileError> {
        let fails = |why: String| CompileError::Rule { route: route.name.clone(), why };
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(fails(format!("longer than {EXPRESSION_BYTES_MAX} bytes")));
        }
        let program = Env::stdlib().with_optional_support(false).compile(text).map_err(|errors| {
            fails(errors.errors.first().map_or_else(String::new, |error| error.msg.clone()))
        })?;
        Ok(Rule(program))
    }

    /// Whether it takes the request.
    ///
    /// # Errors
    ///
    /// It could not be evaluated, or to something that is neither true nor false.
    pub(super) fn takes(&self, request: &Request<'_>) -> Result<bool, ExecutionError> {
        let Request { host, path, method, client, head, failed: _ } = *request;
        let variables = Variables { host, path, method, client, head };
        let mut context = Context::with_env(FUNCTIONS.with(Arc::clone));
        context.set_variable_resolver(&variables);
        match self.0.execute(&context)? {
            Value::Bool(takes) => Ok(takes),
            other => Err(ExecutionError::UnexpectedType {
                got: format!("{:?}", other.type_of()),
                want: "bool".to_owned(),
            }),
        }
    }
}

/// Looked up by their whole names.
struct Variables<'a> {
    host: &'a str,
    path: &'a str,
    method: &'a Method,
    client: &'a str,
    head: Option<&'a Head>,
}

impl VariableResolver for Variables<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let text = |text: &'b str| Some(CowVal::owned(CelString::from(text)));
        match name {
            "request.method" => text(self.method.as_str()),
            "request.path" => text(self.path),
            "request.host" => Some(CowVal::owned(CelString::from(host(self.host)))),
            "request.headers" => Some(CowVal::owned(headers(self.head))),
            "request.query" => Some(CowVal::owned(query(self.head))),
            "source.ip" => text(self.client),
            _ => None,
        }
    }
}

/// In lower case and without the port, as the hosts of routes are compared.
fn host(host: &str) -> String {
    without_port(host).to_ascii_lowercase()
}

/// By name in lower case. Several of one name are one, as if they had come in one line (RFC 9110 §5.3).
fn headers(head: Option<&Head>) -> CelMap<'_> {
    let mut fields: HashMap<String, Cow<'_, str>> = HashMap::new();
    for field in head.into_iter().flat_map(|head| head.iter()) {
        let name = String::from_utf8_lossy(field.name).to_ascii_lowercase();
        let value = String::from_utf8_lossy(field.value);
        let joint = if name == "cookie" { "; " } else { ", " };
        match fields.entry(name) {
            Entry::Vacant(vacant) => {
                vacant.insert(value);
            }
            Entry::Occupied(mut known) => {
                *known.get_mut() = Cow::Owned([known.get(), joint, &*value].concat());
            }
        }
    }
    map(fields)
}

/// By name; of several with one name the first. Nothing is decoded.
fn query(head: Option<&Head>) -> CelMap<'_> {
    let mut values: HashMap<String, Cow<'_, str>> = HashMap::new();
    let query = head.map_or("", Head::query);
    for (name, value) in parameters(query) {
        let name = String::from_utf8_lossy(name).into_owned();
        values.entry(name).or_insert_with(|| String::from_utf8_lossy(value));
    }
    map(values)
}

fn map(values: HashMap<String, Cow<'_, str>>) -> CelMap<'_> {
    let entries = values.into_iter().map(|(name, value)| {
        let value: Box<dyn Val + '_> = Box::new(CelString::from(value));
        (CelMapKey::from(name), value)
    });
    CelMap::from(entries.collect::<HashMap<_, _>>())
}
