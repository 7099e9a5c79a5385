//! Rules in CEL: whether an expression can be true or false of a request at all.
//!
//! The language decides that while it runs; here each part is given the type that it must have, so that a mistake is
//! found before anything depends on it. What cannot be known (an element of a mixed list) fits everywhere.

use cel::{
    Env,
    common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators as op},
};

const MAX_BYTES: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Any,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Null,
    /// Of texts by text: what `headers` and `query` are.
    Texts,
    Map,
    List,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Type::Any => "anything",
            Type::Bool => "true or false",
            Type::Int => "a number",
            Type::Uint => "an unsigned number",
            Type::Double => "a fraction",
            Type::Text => "a text",
            Type::Bytes => "bytes",
            Type::Null => "null",
            Type::Texts | Type::Map => "a map",
            Type::List => "a list",
        }
    }

    fn fits(self, other: Type) -> bool {
        let is_map = |kind| matches!(kind, Type::Texts | Type::Map);
        self == other || self == Type::Any || other == Type::Any || is_map(self) && is_map(other)
    }
}

const VARIABLES: [(&str, &str, Type); 6] = [
    ("request", "method", Type::Text),
    ("request", "path", Type::Text),
    ("request", "host", Type::Text),
    ("request", "headers", Type::Texts),
    ("request", "query", Type::Texts),
    ("source", "ip", Type::Text),
];

/// What is wrong with it, in words.
pub(super) fn check(text: &str) -> Result<(), String> {
    if text.len() > MAX_BYTES {
        return Err(format!("it has {} bytes; at most {MAX_BYTES}", text.len()));
    }
    let parser = Env::stdlib().with_optional_support(false).parser();
    let parsed = parser.parse(text).map_err(|errors| match errors.errors.first() {
        Some(error) => format!("at character {}: {}", error.pos.1, error.msg),
        None => "it cannot be read".to_owned(),
    })?;
    match type_of(&parsed, &mut Vec::new())? {
        Type::Bool | Type::Any => Ok(()),
        other => Err(format!("it is {} and not true or false", other.name())),
    }
}

/// `scope`: the variables of the macros around it.
fn type_of(expr: &IdedExpr, scope: &mut Vec<(String, Type)>) -> Result<Type, String> {
    match &expr.expr {
        Expr::Literal(literal) => Ok(match literal {
            LiteralValue::Boolean(_) => Type::Bool,
            LiteralValue::Bytes(_) => Type::Bytes,
            LiteralValue::Double(_) => Type::Double,
            LiteralValue::Int(_) => Type::Int,
            LiteralValue::Null => Type::Null,
            LiteralValue::String(_) => Type::Text,
            LiteralValue::UInt(_) => Type::Uint,
        }),
        Expr::Ident(name) => match scope.iter().rev().find(|(known, _)| known == name) {
            Some((_, kind)) => Ok(*kind),
            None => Err(unknown(name)),
        },
        Expr::Select(select) => {
            let kind = match &select.operand.expr {
                Expr::Ident(name) if !scope.iter().any(|(known, _)| known == name) => {
                    let path = format!("{name}.{}", select.field);
                    let known = VARIABLES.iter().find(|(of, field, _)| of == name && *field == select.field);
                    known.map(|(_, _, kind)| *kind).ok_or_else(|| unknown(&path))?
                }
                _ => match type_of(&select.operand, scope)? {
                    Type::Texts => Type::Text,
                    Type::Map | Type::Any => Type::Any,
                    other => return Err(format!("{} has no `{}`", other.name(), select.field)),
                },
            };
            Ok(if select.test { Type::Bool } else { kind })
        }
        Expr::Call(call) => called(call, scope),
        Expr::List(list) => {
            for element in &list.elements {
                type_of(element, scope)?;
            }
            Ok(Type::List)
        }
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    type_of(&entry.key, scope)?;
                    type_of(&entry.value, scope)?;
                }
            }
            Ok(Type::Map)
        }
        Expr::Comprehension(comprehension) => comprehended(comprehension, scope),
        Expr::Struct(made) => Err(format!("there is no type `{}`", made.type_name)),
        Expr::Unspecified => Err("it is empty".to_owned()),
    }
}

fn unknown(name: &str) -> String {
    let names: Vec<String> = VARIABLES.iter().map(|(of, field, _)| format!("`{of}.{field}`")).collect();
    format!("there is no `{name}`; there are {}", names.join(", "))
}

/// `all`, `exists`, `filter` and `map`, as they are written out.
fn comprehended(comprehension: &ComprehensionExpr, scope: &mut Vec<(String, Type)>) -> Result<Type, String> {
    let ComprehensionExpr {
        iter_range,
        iter_var,
        iter_var2,
        accu_var,
        accu_init,
        loop_cond,
        loop_step,
        result,
    } = comprehension;
    let each = match type_of(iter_range, scope)? {
        Type::Texts => Type::Text,
        Type::List | Type::Map | Type::Any => Type::Any,
        other => return Err(format!("{} has no members to go through", other.name())),
    };
    let outside = scope.len();
    let sum = type_of(accu_init, scope)?;
    scope.push((accu_var.clone(), sum));
    scope.push((iter_var.clone(), each));
    scope.extend(iter_var2.clone().map(|name| (name, Type::Any)));
    let inside = [loop_cond, loop_step, result].map(|part| type_of(part, scope));
    scope.truncate(outside);
    let [condition, step, result] = inside;
    expect(condition?, Type::Bool)?;
    expect(step?, sum)?;
    result
}

fn expect(found: Type, wanted: Type) -> Result<(), String> {
    if found.fits(wanted) {
        Ok(())
    } else {
        Err(format!("{} is where {} belongs", found.name(), wanted.name()))
    }
}

fn called(call: &CallExpr, scope: &mut Vec<(String, Type)>) -> Result<Type, String> {
    let name = call.func_name.as_str();
    let target = call.target.iter().map(|target| &**target);
    let types = target.chain(&call.args).map(|arg| type_of(arg, scope)).collect::<Result<Vec<_>, _>>()?;
    let all = |wanted: Type| types.iter().try_for_each(|found| expect(*found, wanted));
    let alike = |what: &str| match types.as_slice() {
        [left, right] if !left.fits(*right) => {
            Err(format!("{} and {} cannot be {what}", left.name(), right.name()))
        }
        _ => Ok(()),
    };
    match (name, types.as_slice()) {
        (op::LOGICAL_AND | op::LOGICAL_OR | op::LOGICAL_NOT | op::NOT_STRICTLY_FALSE, _) => {
            all(Type::Bool).map(|()| Type::Bool)
        }
        (op::CONDITIONAL, [condition, yes, no]) => {
            expect(*condition, Type::Bool)?;
            Ok(if yes == no { *yes } else { Type::Any })
        }
        (op::EQUALS | op::NOT_EQUALS, _) => alike("compared").map(|()| Type::Bool),
        (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [left, _]) => {
            alike("compared")?;
            let is_ordered = !matches!(left, Type::Texts | Type::Map | Type::List | Type::Null);
            if is_ordered { Ok(Type::Bool) } else { Err(format!("{} has no order", left.name())) }
        }
        (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [left, right]) => {
            alike("calculated with")?;
            let sum = if *left == Type::Any { *right } else { *left };
            let can = match sum {
                Type::Any | Type::Int | Type::Uint | Type::Double => true,
                Type::Text | Type::Bytes | Type::List => name == op::ADD,
                Type::Bool | Type::Null | Type::Texts | Type::Map => false,
            };
            if can { Ok(sum) } else { Err(format!("{} cannot be calculated with", sum.name())) }
        }
        (op::NEGATE, [one]) if one.fits(Type::Int) || one.fits(Type::Double) => Ok(*one),
        (op::NEGATE, [one]) => Err(format!("{} cannot be calculated with", one.name())),
        (op::INDEX, [of, at]) => match of {
            Type::Texts => expect(*at, Type::Text).map(|()| Type::Text),
            Type::List => expect(*at, Type::Int).map(|()| Type::Any),
            Type::Map | Type::Any => Ok(Type::Any),
            other => Err(format!("{} has no members", other.name())),
        },
        (op::IN, [one, of]) => match of {
            Type::Texts => expect(*one, Type::Text).map(|()| Type::Bool),
            Type::List | Type::Map | Type::Any => Ok(Type::Bool),
            other => Err(format!("{} has no members", other.name())),
        },
        ("startsWith" | "endsWith" | "contains" | "matches", [_, _]) => all(Type::Text).map(|()| Type::Bool),
        ("size", [one]) => match one {
            Type::Any | Type::Text | Type::Bytes | Type::Texts | Type::Map | Type::List => Ok(Type::Int),
            other => Err(format!("{} has no size", other.name())),
        },
        ("string", [_]) => Ok(Type::Text),
        ("int", [_]) => Ok(Type::Int),
        ("uint", [_]) => Ok(Type::Uint),
        ("double", [_]) => Ok(Type::Double),
        ("bool", [_]) => Ok(Type::Bool),
        ("bytes", [_]) => Ok(Type::Bytes),
        ("dyn", [_]) => Ok(Type::Any),
        _ => Err(format!("there is no function `{name}` of {}", count(types.len()))),
    }
}

fn count(values: usize) -> String {
    if values == 1 { "one value".to_owned() } else { format!("{values} values") }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn what_is_true_or_false_of_a_request_is_a_rule() {
        for rule in [
            "true",
            r#"request.headers["x-beta"] == "1" && source.ip.startsWith("10.")"#,
            r#"request.method in ["GET", "HEAD"] || !request.path.matches("^/v[0-9]+")"#,
            r#""x-beta" in request.headers"#,
            "has(request.query.v) && int(request.query.v) > 2",
            r#"request.headers.exists(name, name.startsWith("x-"))"#,
            r#"[1, 2].map(n, n * 2).exists(n, n == 4)"#,
            r#"size(request.path) > 3 && request.host.size() + 1 < 20"#,
            r#"(request.host == "a" ? 1 : 2) == 2"#,
            r#"request.headers.filter(n, n == "a").size() == 0"#,
            r#"bool(request.query["on"])"#,
            "request.query.v + request.query.w == 'ab'",
        ] {
            assert_eq!(check(rule), Ok(()), "{rule}");
        }
    }

    #[test]
    fn what_is_not_is_told_with_its_reason() {
        for (rule, why) in [
            ("request.path", "it is a text and not true or false"),
            ("1 + 1", "it is a number and not true or false"),
            ("request.path == 1", "a text and a number cannot be compared"),
            ("request.path && true", "a text is where true or false belongs"),
            ("true && request.path == 1", "a text and a number cannot be compared"),
            ("request.path - 'x' == ''", "a text cannot be calculated with"),
            ("request.headers[1] == ''", "a number is where a text belongs"),
            ("request.path.foo == ''", "a text has no `foo`"),
            ("request.path.startsWith(1)", "a number is where a text belongs"),
            ("request.path.lower() == ''", "there is no function `lower` of one value"),
            ("request.headers < request.query", "a map has no order"),
            ("'a' in request.path", "a text has no members"),
            ("-request.path == ''", "a text cannot be calculated with"),
            ("request.path.all(c, true)", "a text has no members to go through"),
            ("[1].exists(n, request.path)", "a text is where true or false belongs"),
        ] {
            assert_eq!(check(rule), Err(why.to_owned()), "{rule}");
        }
        for (rule, why) in [
            ("reqest.path == ''", "there is no `reqest.path`; there are `request.method`, "),
            ("request.body == ''", "there is no `request.body`; "),
            ("path == ''", "there is no `path`; "),
            ("request.path ==", "at character "),
            ("(", "at character "),
            ("", "at character "),
        ] {
            let found = check(rule).unwrap_err();
            assert!(found.starts_with(why), "{rule}: {found}");
        }
        assert!(
            check(&format!("'{}' == ''", "x".repeat(2000))).unwrap_err().starts_with("it has 2008 bytes")
        );
    }
}
