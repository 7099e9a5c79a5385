//! What must hold of every file that somebody may write: the target that `chaos-tests/fuzz` runs for minutes, and the
//! test here over its corpus. Not compiled otherwise.

use crate::{AppSpec, Diagnostic, Format, explain, file_to_toml, parse, validate};

/// The first byte says the format. A file is either refused with reasons that point into it, or what it says can be
/// written in every format and reads back as the same.
pub fn app_spec(data: &[u8]) {
    let Some((format, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let format = [Format::Toml, Format::Yaml, Format::Json][usize::from(format % 3)];
    match parse(text, format) {
        Ok(apps) => written_again(&apps),
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty(), "refused for no reason");
            diagnostics.iter().for_each(|diagnostic| points_into(text, diagnostic));
        }
    }
}

fn written_again(apps: &[AppSpec]) {
    for app in apps {
        assert_eq!(validate(app), []);
        let json = app.to_json();
        let again = AppSpec::from_json(&json).expect("what was written");
        assert_eq!(&again, app);
        assert_eq!(again.to_json(), json, "equal specs are equal bytes");
    }
    let json: Vec<String> =
        apps.iter().map(|app| String::from_utf8(app.to_json()).expect("JSON is text")).collect();
    let json = format!("{{\"app\":[{}]}}", json.join(","));
    let toml = file_to_toml(apps);
    for (text, format) in [(&toml, Format::Toml), (&json, Format::Json), (&json, Format::Yaml)] {
        assert_eq!(parse(text, format).as_deref(), Ok(apps), "{text}");
    }
}

fn points_into(text: &str, diagnostic: &Diagnostic) {
    let Diagnostic { code, message, help: _, span, line, column } = diagnostic;
    assert!(explain(code).is_some() && !message.is_empty());
    assert!(*line >= 1 && *line <= text.matches('\n').count() + 1 && *column >= 1);
    if let Some(span) = span {
        assert!(text.get(span.clone()).is_some(), "{diagnostic:?}");
    }
}

#[cfg(test)]
#[path = "../../../chaos-tests/fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    #[test]
    fn a_file_is_refused_with_reasons_or_reads_back() {
        replay("app_spec", 3_000, super::app_spec);
    }
}
