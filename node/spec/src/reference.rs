//! Every field with its default, for people.

/// A spec in TOML with all fields, of which those that may be left out are comments.
pub const REFERENCE: &str = include_str!("reference.toml");

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::{
        AppSpec, Format,
        decode::{Fault, Misfit, decode},
        document::Node,
        parse,
    };

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        app: Vec<AppSpec>,
    }

    /// The lines with nothing left out; prose stays a comment.
    fn whole() -> Vec<&'static str> {
        let uncovered = |line: &'static str| match line.strip_prefix('#') {
            Some(field) if !field.is_empty() && !field.starts_with(' ') => field,
            Some(_) | None => line,
        };
        REFERENCE.lines().map(uncovered).collect()
    }

    fn read(lines: &[&str]) -> Result<File, Vec<Misfit>> {
        decode(&Node::parse(&lines.join("\n"), Format::Toml).unwrap())
    }

    /// `[app.check]`: `app.check`.
    fn header(line: &str) -> Option<&str> {
        let table = line.strip_prefix('[')?;
        Some(table.trim_start_matches('[').split(']').next().unwrap())
    }

    fn key(line: &str) -> Option<&str> {
        let is_field = line.starts_with(|first: char| first.is_ascii_lowercase());
        is_field.then(|| line.split(' ').next().unwrap())
    }

    #[test]
    fn as_it_is_printed_it_is_a_small_spec() {
        let apps = parse(REFERENCE, Format::Toml).unwrap();
        let json = String::from_utf8(apps[0].to_json()).unwrap();
        assert_eq!(json, r#"{"name":"web","listen":[8080],"targets":["10.0.0.11:3000"]}"#);
    }

    #[test]
    fn what_is_shown_as_a_default_is_one() {
        let lines = whole();
        let all = read(&lines).unwrap();
        let mut checked = 0;
        for (index, line) in lines.iter().enumerate() {
            let is_default =
                REFERENCE.lines().nth(index).unwrap().starts_with('#') && !line.contains("# e.g.");
            if key(line).is_none() || !is_default {
                continue;
            }
            let mut without = lines.clone();
            without.remove(index);
            assert_eq!(read(&without).unwrap(), all, "`{line}` is not the default");
            checked += 1;
        }
        assert!(checked > 100, "{checked} defaults");
    }

    #[test]
    fn every_field_is_there() {
        let lines = whole();
        let headers: Vec<(usize, &str)> =
            lines.iter().enumerate().filter_map(|(index, line)| Some((index, header(line)?))).collect();
        let mut of_users = Vec::new();
        for &(at, table) in headers.iter().filter(|(at, _)| !lines[*at].contains("# as ")) {
            let mut with = lines.clone();
            with.insert(at + 1, "zzz = 1");
            let misfits = read(&with).unwrap_err();
            let expected = misfits.iter().find_map(|misfit| match &misfit.fault {
                Fault::UnknownField { field, expected, .. } if field == "zzz" => Some(*expected),
                _ => None,
            });
            let Some(expected) = expected else {
                of_users.push(table);
                continue;
            };
            let fields = lines[at + 1..].iter().take_while(|line| header(line).is_none());
            let mut shown: Vec<&str> = fields.filter_map(|line| key(line)).collect();
            let children =
                headers.iter().filter_map(|(_, other)| other.strip_prefix(table)?.strip_prefix('.'));
            shown.extend(children.map(|child| child.split('.').next().unwrap()));
            // Capitalised ones are those of another program's files.
            for field in expected.iter().filter(|field| !field.starts_with(char::is_uppercase)) {
                assert!(shown.contains(field), "[{table}] has `{field}`, which reference.toml does not show");
            }
        }
        assert_eq!(of_users, ["app.labels", "app.placement.require"]);
    }
}
